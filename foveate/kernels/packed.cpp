#include "foveate/kernels/packed.h"

#include <algorithm>
#include <cstring>

#include "foveate/base/error.h"

namespace foveate::kernels {
namespace {

constexpr int kSteps = kPackedInputs / 2;  // of an even and an odd input
// Of weights that a thread takes at a time: it fetches some kilobytes behind them in vain, so few large items; the bits
// do not depend on where they end.
constexpr int64_t kLeastItem = int64_t{32} << 10, kLargestItem = int64_t{256} << 10;
// Fewer bytes than this are sooner read by one thread (2 x Zen 4, OpenMP): 90 KiB in 4.0 us instead of 4.7, 135 KiB in
// 6.9 instead of 5.5.
constexpr int64_t kSerialBytes = int64_t{128} << 10;

bool is_known(const QuantFormat& f) {
  if (f.bits == 2 || f.bits == 3 || f.bits == 6) return f.group == 16 && f.block == 256;
  return f.group == 32 &&
         (f.bits == 8 ? f.block == 32 : (f.bits == 4 || f.bits == 5) && (f.block == 32 || f.block == 256));
}

// Bytes of `inputs` inputs of a row block, at most a piece.
int64_t piece_bytes(const QuantFormat& f, int64_t inputs) {
  return packed_codes_at(f.group, f.block, f.has_minimum) + inputs / kPackedInputs * packed_code_bytes(f.bits);
}

int64_t block_bytes(const QuantFormat& f, int64_t in) {
  const int64_t piece = packed_piece(f.block), rest = in % piece;
  return in / piece * piece_bytes(f, piece) + (rest ? piece_bytes(f, rest) : 0);
}

constexpr int kHalves = 2 * kPackedRows;  // 16-bit halves of a vector of words

// Puts codes `step` of 16 for all halves of a vector into the `bits` vectors of words, which start as zeros.
void put_codes(int bits, int step, const uint16_t* codes, uint16_t* words) {
  const int whole = 16 / bits, above = whole * bits, left = step - above;
  const auto put = [&](int word, int from, int mask, int to) {
    for (int i = 0; i < kHalves; ++i)
      words[word * kHalves + i] = uint16_t(words[word * kHalves + i] | (codes[i] >> from & mask) << to);
  };
  if (left < 0) return put(step / whole, 0, 0xff, step % whole * bits);
  if (bits == 6) {  // four bits above one word, two above another
    put(left, 0, 15, above);
    return put(4 + left / 2, 4, 3, above + left % 2 * 2);
  }
  for (int k = 0; k < bits; ++k) put(k, k, 1, above);
}

// Codes of 16 rows and 32 inputs.
void pack_codes(int bits, const std::vector<QuantRow>& rows, int64_t first, uint16_t* words) {
  uint16_t codes[kSteps][kHalves];
  for (int row = 0; row < kPackedRows; ++row) {
    const uint8_t* from = rows[size_t(row)].codes.data() + first;
    for (int step = 0; step < kSteps; ++step)
      for (int i = 0; i < 2; ++i) codes[step][2 * row + i] = from[2 * step + i];
  }
  std::fill_n(words, bits * kHalves, uint16_t{0});
  for (int step = 0; step < kSteps; ++step) put_codes(bits, step, codes[step], words);
}

// values[group][16 rows] of `count` groups from `first` on.
template <class T>
char* pack_scales(const std::vector<QuantRow>& rows, std::vector<T> QuantRow::*values, int64_t first, int64_t count,
                  char* to) {
  for (int64_t i = first; i < first + count; ++i)
    for (const QuantRow& row : rows) {
      std::memcpy(to, &(row.*values)[size_t(i)], sizeof(T));
      to += sizeof(T);
    }
  return to;
}

// Puts vectors [count][length] side by side as a level's kernels read them (tile.h).
Floats64 interleave(const float* from, int64_t stride, int64_t vectors, int64_t length) {
  Floats64 to(vectors * length);
  for (int64_t first = 0; first < vectors; first += kPackedPass) {
    const int64_t some = std::min<int64_t>(kPackedPass, vectors - first);
    for (int64_t v = 0; v < some; ++v)
      for (int64_t i = 0; i < length; ++i)
        std::memcpy(to.data() + first * length + i * some + v, from + (first + v) * stride + i, sizeof(float));
  }
  return to;
}

// Up to kPackedVectors / terms rows of x as a level's kernels read them.
class Inputs {
 public:
  Inputs(const Table& table, const float* x, int64_t stride, int64_t rows, int64_t in, int terms)
      : vectors_(rows * terms) {
    const bool pairs = has_pairs(table);
    const int64_t length = pairs ? in / 2 : in, sixteens = in / 16;
    if (pairs) x_ = Floats64(vectors_ * length);
    sums_ = Floats64(vectors_ * sixteens), sums_of_32_ = Floats64(vectors_ * sixteens / 2);
    for (int64_t row = 0; row < rows; ++row)
      table.packed_inputs(x + row * stride, int(in), terms, pairs ? x_.data() + row * terms * length : nullptr,
                          sums_.data() + row * terms * sixteens);
    for (int64_t i = 0; i < vectors_ * sixteens / 2; ++i)
      sums_of_32_.data()[i] = sums_.data()[2 * i] + sums_.data()[2 * i + 1];
    units_ = pairs ? x_.data() : x;
    if (vectors_ == 1) return;
    x_ = interleave(units_, pairs ? length : stride, vectors_, length);
    units_ = x_.data();
    sums_ = interleave(sums_.data(), sixteens, vectors_, sixteens);
    sums_of_32_ = interleave(sums_of_32_.data(), sixteens / 2, vectors_, sixteens / 2);
  }
  void put(const QuantFormat& format, PackedTile& tile) const {
    tile.x = units_, tile.vectors = int(vectors_);
    tile.sums = (format.group == 16 ? sums_ : sums_of_32_).data();
  }

 private:
  int64_t vectors_;
  const float* units_ = nullptr;
  Floats64 x_, sums_, sums_of_32_;
};

}  // namespace

std::shared_ptr<float> PackedMemory::take(int64_t bytes) {
  constexpr int64_t kChunk = int64_t{32} << 20;  // what is not used of it is never touched
  if (used_bytes_ + bytes > chunk_bytes_) {
    chunk_bytes_ = std::max(kChunk, bytes), used_bytes_ = 0;
    chunk_ = std::make_shared<Floats64>(chunk_bytes_ / 4);
  }
  const int64_t at = used_bytes_;
  used_bytes_ += (bytes + 63) / 64 * 64;
  return std::shared_ptr<float>(chunk_, chunk_->data() + at / 4);
}

PackedMatrix::PackedMatrix(const QuantFormat& format, int64_t out, int64_t in, const RowReader& read,
                           PackedMemory& memory, const Pool& pool)
    : format_(format), out_(out), in_(in) {
  require(is_known(format), "packed: format must be one that the kernels know, got {} bits, groups of {} in {}",
          format.bits, format.group, format.block);
  constexpr int64_t kMostInputs = int64_t{1} << 26;  // what kernels count in 32 bits
  require(out >= 1 && in >= kPackedInputs && in <= kMostInputs && in % kPackedInputs == 0 && in % format.block == 0,
          "packed: out must be >= 1 and in a multiple of {} up to 2^26, got [{}, {}]",
          std::max(kPackedInputs, format.block), out, in);
  block_bytes_ = block_bytes(format, in);
  const int64_t blocks = (out + kPackedRows - 1) / kPackedRows;
  data_ = memory.take(bytes());
  std::vector<std::vector<QuantRow>> rows(size_t(std::max(pool.threads, 1)));
  run_queue(pool, blocks, [&](int64_t block, int worker) { pack_block(block, rows[size_t(worker)], read); });
}

void PackedMatrix::pack_block(int64_t block, std::vector<QuantRow>& rows, const RowReader& read) const {
  const int64_t present = std::min<int64_t>(kPackedRows, out_ - block * kPackedRows);
  if (rows.empty() || present < kPackedRows) rows.assign(kPackedRows, QuantRow(format_, in_));
  for (int64_t row = 0; row < present; ++row) read(block * kPackedRows + row, rows[size_t(row)]);
  char* to = reinterpret_cast<char*>(data_.get()) + block * block_bytes_;
  const int64_t piece = packed_piece(format_.block);
  for (int64_t first = 0; first < in_; first += piece) to = pack_piece(rows, first, std::min(piece, in_ - first), to);
}

char* PackedMatrix::pack_piece(const std::vector<QuantRow>& rows, int64_t first, int64_t inputs, char* to) const {
  const int64_t groups = format_.has_group_scales() ? format_.block / format_.group : 0;
  char *at = to, *codes = to + packed_codes_at(format_.group, format_.block, format_.has_minimum);
  for (int64_t i = first / format_.block; i < (first + inputs) / format_.block; ++i) {
    at = pack_scales(rows, &QuantRow::scales, i, 1, at);
    if (format_.has_minimum) at = pack_scales(rows, &QuantRow::minima, i, 1, at);
    at = pack_scales(rows, &QuantRow::group_scales, i * groups, groups, at);
    if (format_.has_minimum) at = pack_scales(rows, &QuantRow::group_minima, i * groups, groups, at);
  }
  std::fill(at, codes, '\0');
  for (int64_t i = first; i < first + inputs; i += kPackedInputs, codes += packed_code_bytes(format_.bits))
    pack_codes(format_.bits, rows, i, reinterpret_cast<uint16_t*>(codes));
  return codes;
}

int64_t PackedMatrix::bytes() const { return (out_ + kPackedRows - 1) / kPackedRows * block_bytes_; }

PackedView PackedMatrix::rows(int64_t first, int64_t count) const {
  PackedView rows;
  rows.data = reinterpret_cast<const char*>(data_.get()) + first / kPackedRows * block_bytes_;
  rows.block_bytes = block_bytes_;
  rows.in = int(in_), rows.bits = format_.bits, rows.lowest = format_.lowest;
  rows.group = format_.group, rows.block = format_.block, rows.has_minimum = format_.has_minimum;
  rows.first = first % kPackedRows, rows.count = count;
  return rows;
}

namespace {

// What threads take one after the other: some row blocks of one product.
struct Item {
  size_t product;
  int64_t first, count;  // output rows
};

std::vector<Item> make_items(std::span<const PackedProduct> products, int64_t bytes) {
  std::vector<Item> items;
  for (size_t i = 0; i < products.size(); ++i) {
    const PackedMatrix& w = *products[i].weights;
    const int64_t rows = std::max<int64_t>((bytes + w.row_block_bytes() - 1) / w.row_block_bytes(), 1) * kPackedRows;
    for (int64_t first = 0; first < w.out(); first += rows)
      items.push_back({i, first, std::min(rows, w.out() - first)});
  }
  return items;
}

}  // namespace

void multiply(const Table& table, const float* x, int64_t x_stride, int64_t rows,
              std::span<const PackedProduct> products, int terms, const Pool& pool) {
  if (rows == 0 || products.empty()) return;
  int64_t bytes = 0;
  for (const PackedProduct& p : products) {
    require(p.weights->in() == products.front().weights->in(), "packed: weights must read the same {} inputs, got {}",
            products.front().weights->in(), p.weights->in());
    bytes += p.weights->bytes();
  }
  const std::vector<Item> items =
      make_items(products, std::clamp(bytes / std::max(pool.threads, 1), kLeastItem, kLargestItem));
  const Pool one;
  const int used = has_pairs(table) ? terms : 1;
  for (int64_t row = 0, some; row < rows; row += some) {
    some = std::min<int64_t>(kPackedVectors / used, rows - row);
    const Inputs inputs(table, x + row * x_stride, x_stride, some, products.front().weights->in(), used);
    run_queue(bytes * some < kSerialBytes ? one : pool, std::ssize(items), [&](int64_t index, int) {
      const Item& item = items[size_t(index)];
      const PackedProduct& p = products[item.product];
      PackedTile tile;
      inputs.put(p.weights->format(), tile);
      tile.weights = p.weights->rows(item.first, item.count), tile.terms = used;
      tile.y = p.y + row * p.y_stride + item.first, tile.y_stride = p.y_stride;
      table.packed_multiply(tile);
    });
  }
}

void dequantize_rows(const Table& table, const PackedMatrix& weights, int64_t first, int64_t count, DType type,
                     void* to, int64_t stride, const Pool& pool) {
  const int64_t items = (first % kPackedRows + count + kPackedRows - 1) / kPackedRows;
  run_queue(pool, count > 0 ? items : 0, [&](int64_t item, int) {  // a row block, the first and last perhaps in part
    const int64_t begin = std::max(first, (first / kPackedRows + item) * kPackedRows);
    const int64_t end = std::min(first + count, (first / kPackedRows + item + 1) * kPackedRows);
    table.packed_values(weights.rows(begin, end - begin), type,
                        static_cast<char*>(to) + (begin - first) * stride * int64_t(bytes_of(type)), stride);
  });
}

}  // namespace foveate::kernels
