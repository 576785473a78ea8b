#include "foveate/attention/sparse/landmark_state.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cstring>

#include "foveate/attention/sparse/landmark_retrieval.h"
#include "foveate/base/record_file.h"
#include "foveate/ops/quantise/quantise.h"

namespace foveate::attention {
namespace {

using at::Tensor;

// Whole blocks in a file, a record for each batch entry and key head: keys, then values.
class BlocksOnDisk {
 public:
  // k, v [B, Hkv, n, D]: what blocks will be like.  ring: blocks that the file holds at most, 0: any number.
  BlocksOnDisk(const std::string& folder, const Tensor& k, const Tensor& v, int64_t block, int64_t ring)
      : batch_(k.size(0)),
        heads_(k.size(1)),
        block_(block),
        ring_(ring),
        key_bytes_(size_t(block * k.size(3) * k.element_size())),
        record_(key_bytes_ + size_t(block * v.size(3) * v.element_size())),
        file_(folder, record_.size()) {}

  // Block number `number` from k, v [B, Hkv, block, D].
  void write(int64_t number, const Tensor& k, const Tensor& v) {
    for (int64_t b = 0; b < batch_; ++b)
      for (int64_t h = 0; h < heads_; ++h) {
        const Tensor keys = k[b][h].contiguous(), values = v[b][h].contiguous();
        std::memcpy(record_.data(), keys.const_data_ptr(), keys.nbytes());
        std::memcpy(record_.data() + key_bytes_, values.const_data_ptr(), values.nbytes());
        file_.write(record_of(number, b, h), record_);
      }
  }
  // One head's block into k, v [block, D], contiguous.
  void read(int64_t number, int64_t b, int64_t h, const Tensor& k, const Tensor& v) {
    file_.read(record_of(number, b, h), record_);
    std::memcpy(k.data_ptr(), record_.data(), key_bytes_);
    std::memcpy(v.data_ptr(), record_.data() + key_bytes_, record_.size() - key_bytes_);
  }

 private:
  int64_t record_of(int64_t number, int64_t b, int64_t h) const {
    return ((ring_ > 0 ? number % ring_ : number) * batch_ + b) * heads_ + h;
  }
  int64_t batch_, heads_, block_, ring_;
  size_t key_bytes_;
  std::vector<std::byte> record_;
  RecordFile file_;
};

class LandmarkState final : public State {
 public:
  LandmarkState(const Landmark& options, const StateOptions& state_options)
      : options_(options),
        rule_(state_options.rule),
        rollback_(state_options.rollback),
        cache_(state_options.cache),
        retrieval_(options) {}

  Attended prefill(const Inputs& in) override { return run(in, false); }
  Attended decode(const Inputs& in) override { return run(in, true); }

  void truncate(int64_t length) override {
    require(length >= 0 && length <= cache_.length(), "truncate: length must be 0 .. {}, got {}", cache_.length(),
            length);
    require(
        fetchable_from(length) >= kept_from(),
        "truncate: blocks from position {} on must still be kept, got those from {}; ask for rollback when the state "
        "is made",
        fetchable_from(length), kept_from());
    const int64_t needed = in_memory_from(length);
    if (needed < held_from()) bring_back(needed);
    cache_.truncate(length, length - std::min(length, needed));
    retrieval_.truncate(length / options_.block);
  }

  Snapshot save() const override {
    Snapshot snapshot = cache_.save();
    if (snapshot.empty()) return snapshot;
    snapshot["block"] = at::tensor({options_.block}, at::kLong);
    if (!disk_) return snapshot;
    const auto [k, v] = whole_blocks(kept_from(), held_from());
    snapshot["k"] = at::cat({k, cache_.k()}, 2), snapshot["v"] = at::cat({v, cache_.v()}, 2);
    snapshot["counts"] = at::tensor({cache_.length(), cache_.length() - kept_from(), int64_t{0}}, at::kLong);
    return snapshot;
  }

  void load(const Snapshot& snapshot) override {
    clear();
    if (snapshot.empty()) return;
    const auto saved = snapshot.find("block");
    const bool has_block =
        saved != snapshot.end() && saved->second.scalar_type() == at::kLong && saved->second.numel() == 1;
    const int64_t block = has_block ? saved->second.item<int64_t>() : 0;
    require(block == options_.block, "landmark: a saved state must be of blocks of {}, got {}", options_.block,
            has_block ? std::to_string(block) : "none");
    cache_.load(snapshot);
    const int64_t from = held_from(), needed = fetchable_from(cache_.length());
    if (cache_.head() != 0 || from % options_.block != 0 || from > needed) {
      clear();
      fail("landmark: a saved state must hold whole blocks from position {} on, got those from {}", needed, from);
    }
  }

  int64_t length() const override { return cache_.length(); }
  int64_t bytes() const override { return cache_.bytes() + retrieval_.bytes(); }
  int64_t read_bytes() const override {
    const int64_t next = cache_.length(), count = options_.blocks_before(next) - fetchable_from(next) / options_.block;
    const int64_t near = next - options_.local_start(next), most = rule_.window_left ? *rule_.window_left + 1 : next;
    const int64_t token = cache_.token_bytes();
    if (count <= options_.top_k) return std::min({near, cache_.held(), most}) * token;
    const int64_t landmark =
        cache_.held() > 0 ? cache_.k().size(0) * cache_.k().size(1) * ops::row_dim(cache_.k()) * 4 : 0;
    const int64_t fetched = std::min(options_.top_k * group_, count) * options_.block;
    return std::min(near + fetched, most) * token + count * landmark;
  }

 private:
  // Rows are attended part by part, so that what can be dropped or written to disk is before more is appended.
  Attended run(const Inputs& in, bool by_row) {
    const int64_t before = cache_.length(), rows = in.k.size(2);
    options_.check_retrieval(in, before + rows);
    require(!cuts_texts(in.rule) || (options_.offload.empty() && options_.max_blocks == 0 && !rule_.window_left),
            "landmark: padding, documents and ranges of keys need all keys in memory, got a state with offload, "
            "max_blocks or a layer's window; attend without a state");
    group_ = in.q.size(1) / std::max<int64_t>(in.k.size(1), 1);
    Attended attended{.out = {}, .lse = {}, .plans = {}};
    std::vector<Tensor> outs;
    try {
      for (int64_t row = 0; row < rows || outs.empty();) {
        const int64_t count = retrieval_.rows_together(before + row, rows - row);
        read_landmarks(in.q.scalar_type());  // a loaded state has none
        settle();
        Inputs part = narrow_rows(in, row, count);
        cache_.append(in.k.narrow(2, row, count), in.v.narrow(2, row, count));
        read_landmarks(in.q.scalar_type());
        part.k = cache_.k(), part.v = cache_.v();
        part.rule.query_start = cache_.held() - count;
        part.score.landmarks = std::nullopt;
        Attended of_part = retrieval_.attend(part, held_from(), by_row, [&](const Tensor& chosen) {
          return disk_ ? from_disk(chosen)
                       : LandmarkRetrieval::Fetched{cache_.k(), cache_.v(), chosen - held_from() / options_.block};
        });
        outs.push_back(of_part.out);
        for (PlannedRows& plan : of_part.plans) {
          plan.first_row += row;
          attended.plans.push_back(std::move(plan));
        }
        row += count;
      }
    } catch (...) {
      if (fetchable_from(before) >= kept_from()) truncate(before);
      throw;
    }
    attended.out = outs.size() == 1 ? outs[0] : at::cat(outs, 2);
    return attended;
  }

  // Positions in the text from which on: tokens are in memory; anything is kept; rows from `length` on may fetch; they
  // may read what must be in memory.  All are multiples of the block.
  int64_t held_from() const { return cache_.length() - cache_.held(); }
  int64_t kept_from() const { return disk_ ? disk_from_ : held_from(); }
  int64_t fetchable_from(int64_t length) const {
    const int64_t before = options_.blocks_before(length);
    const int64_t seen = rule_.window_left ? std::max<int64_t>(0, length - *rule_.window_left) / options_.block : 0;
    const int64_t hidden = std::clamp<int64_t>(before - options_.top_k - 1, 0, seen);  // places count top_k + 1 blocks
    return std::max(before - options_.candidates(before), hidden) * options_.block;
  }
  int64_t in_memory_from(int64_t length) const {
    return options_.offload.empty() ? fetchable_from(length) : options_.local_start(length);
  }

  // Keys of the landmarks of whole blocks, as q has them; before any of these blocks leaves memory.
  void read_landmarks(at::ScalarType type) {
    const int64_t block = options_.block, held = held_from(), whole = cache_.length() / block;
    if (cache_.held() == 0 || retrieval_.end() >= whole) return;
    if (retrieval_.end() < held / block) retrieval_.set(ops::widened(cache_.k(), type).narrow(2, 0, 0), held / block);
    const int64_t first = (retrieval_.end() + 1) * block - 1 - held;
    retrieval_.append(ops::widened(cache_.k().slice(2, first, whole * block - held, block), type));
  }

  // Drops what rows behind the last `rollback` tokens cannot reach, and writes to disk what they only fetch.
  void settle() {
    const int64_t earliest = std::max<int64_t>(0, cache_.length() - rollback_), block = options_.block;
    const int64_t reach = fetchable_from(earliest), from = in_memory_from(earliest), held = held_from();
    retrieval_.drop_before(reach / block);
    if (from <= held) return;
    if (options_.offload.empty()) {  // the older half at once, so that dropping costs O(1) for a token
      if (from - held > cache_.length() - from) cache_.keep(0, cache_.length() - from);
      return;
    }
    if (!disk_) {
      const int64_t slack = (rollback_ + options_.chunk_length()) / block + 2;
      disk_.emplace(options_.offload, cache_.k(), cache_.v(), block,
                    options_.max_blocks > 0 ? options_.max_blocks + slack : 0);
      disk_from_ = held;
    }
    for (int64_t at = std::max(held, reach); at < from; at += block)
      disk_->write(at / block, cache_.k().narrow(2, at - held, block), cache_.v().narrow(2, at - held, block));
    cache_.keep(0, cache_.length() - from);
    disk_from_ = std::max(disk_from_, std::min(reach, from));
  }

  // What was chosen, each head's blocks once: [B, Hkv, most blocks * block, D].
  LandmarkRetrieval::Fetched from_disk(const Tensor& chosen) {
    const int64_t batch = chosen.size(0), heads = chosen.size(1), n = chosen.size(2), block = options_.block;
    const Tensor given = chosen.contiguous(), places = at::empty({batch, heads, n}, chosen.options());
    std::vector<std::vector<int64_t>> wanted;
    size_t most = 1;
    for (int64_t list = 0; list < batch * heads; ++list) {
      const int64_t* ids = given.const_data_ptr<int64_t>() + list * n;
      std::vector<int64_t> sorted(ids, ids + n);
      std::ranges::sort(sorted);
      sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
      if (!sorted.empty() && sorted.front() < 0) sorted.erase(sorted.begin());
      int64_t* to = places.mutable_data_ptr<int64_t>() + list * n;
      for (int64_t i = 0; i < n; ++i)
        to[i] = ids[i] < 0 ? -1 : std::ranges::lower_bound(sorted, ids[i]) - sorted.begin();
      most = std::max(most, sorted.size());
      wanted.push_back(std::move(sorted));
    }
    const Tensor k = room(cache_.k(), int64_t(most) * block), v = room(cache_.v(), int64_t(most) * block);
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t h = 0; h < heads; ++h) {
        const std::vector<int64_t>& blocks = wanted[size_t(b * heads + h)];
        for (size_t i = 0; i < blocks.size(); ++i)
          read(blocks[i], b, h, k[b][h].narrow(0, int64_t(i) * block, block),
               v[b][h].narrow(0, int64_t(i) * block, block));
        const int64_t used = std::ssize(blocks) * block;  // nobody reads the rest, but it must be numbers
        k[b][h].narrow(0, used, k.size(2) - used).zero_(), v[b][h].narrow(0, used, v.size(2) - used).zero_();
      }
    return {k, v, places};
  }

  static Tensor room(const Tensor& like, int64_t tokens) {
    return at::empty({like.size(0), like.size(1), tokens, like.size(3)}, like.options());
  }

  // One head's block, from disk or memory.
  void read(int64_t number, int64_t b, int64_t h, const Tensor& k, const Tensor& v) const {
    const int64_t at = number * options_.block - held_from();
    if (at < 0) return disk_->read(number, b, h, k, v);
    k.copy_(cache_.k()[b][h].narrow(0, at, options_.block));
    v.copy_(cache_.v()[b][h].narrow(0, at, options_.block));
  }

  std::pair<Tensor, Tensor> whole_blocks(int64_t from, int64_t until) const {
    const int64_t block = options_.block;
    const Tensor k = room(cache_.k(), until - from), v = room(cache_.v(), until - from);
    for (int64_t at = from; at < until; at += block)
      for (int64_t b = 0; b < k.size(0); ++b)
        for (int64_t h = 0; h < k.size(1); ++h)
          read(at / block, b, h, k[b][h].narrow(0, at - from, block), v[b][h].narrow(0, at - from, block));
    return {k, v};
  }

  // Blocks on disk from `from` on into memory again.
  void bring_back(int64_t from) {
    const auto [k, v] = whole_blocks(from, held_from());
    cache_.load({{"k", at::cat({k, cache_.k()}, 2)},
                 {"v", at::cat({v, cache_.v()}, 2)},
                 {"counts", at::tensor({cache_.length(), cache_.length() - from, int64_t{0}}, at::kLong)}});
  }

  void clear() {
    cache_.load({});
    retrieval_ = LandmarkRetrieval(options_);
    disk_.reset();
    disk_from_ = 0;
  }

  Landmark options_;
  Rule rule_;
  int64_t rollback_, group_ = 1;
  KvCache cache_;                // the latest tokens
  LandmarkRetrieval retrieval_;  // of all whole blocks that can be fetched
  mutable std::optional<BlocksOnDisk> disk_;
  int64_t disk_from_ = 0;  // blocks from this position to held_from() are on disk
};

}  // namespace

std::unique_ptr<State> make_landmark_state(const Landmark& options, const StateOptions& state_options) {
  return std::make_unique<LandmarkState>(options, state_options);
}

}  // namespace foveate::attention
