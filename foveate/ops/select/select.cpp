#include "foveate/ops/select/select.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/scalar_tensor.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

#include "foveate/base/error.h"
#include "foveate/ops/parallel.h"

namespace foveate::ops {
namespace {

struct KeyRange {
  int64_t first, last;
};

// The ranges that one block takes, ascending and disjoint.
std::vector<KeyRange> choose(std::span<const float> scores, std::span<const int64_t> cuts, const Candidates& c,
                             int64_t budget) {
  const int64_t allowed = c.last - c.first;
  if (allowed <= budget) return {{c.first, c.last}};
  const int64_t middle = c.first + c.forced_head, tail = c.last - c.forced_tail;
  std::vector<KeyRange> taken = {{c.first, middle}, {tail, c.last}};
  int64_t left = budget - c.forced_head - c.forced_tail;
  std::vector<int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  const auto rank = [&](int64_t chunk) {
    return std::isnan(scores[chunk]) ? -std::numeric_limits<float>::infinity() : scores[chunk];
  };
  std::ranges::stable_sort(order, [&](int64_t a, int64_t b) { return rank(a) > rank(b); });
  for (const int64_t chunk : order) {
    if (left == 0) break;
    const int64_t first = std::max(cuts[chunk], middle), last = std::min(cuts[chunk + 1], tail);
    if (first >= last) continue;
    taken.push_back({first, std::min(last, first + left)});
    left -= taken.back().last - first;
  }
  std::ranges::sort(taken, {}, &KeyRange::first);
  return taken;
}

}  // namespace

at::Tensor select_tokens(const at::Tensor& scores, std::span<const int64_t> cuts,
                         std::span<const Candidates> candidates, int64_t budget) {
  const int64_t blocks = scores.size(2), chunks = scores.size(3);
  const int64_t sets = std::ssize(candidates), of_batch = sets == blocks ? 1 : scores.size(0);
  require(sets == of_batch * blocks && std::ssize(cuts) == chunks + 1,
          "select_tokens: one candidate set per block, or per sequence and block, and one cut more than chunks, got {} "
          "for {} and {} for {}",
          sets, blocks, cuts.size(), chunks);
  int64_t capacity = 0;
  for (const Candidates& c : candidates) {
    const int64_t allowed = std::max<int64_t>(c.last - c.first, 0);
    require(allowed <= budget || std::min(c.forced_head + c.forced_tail, allowed) <= budget,
            "select_tokens: forced keys must be <= budget, got {} + {} > {}", c.forced_head, c.forced_tail, budget);
    capacity = std::max(capacity, std::min(allowed, budget));
  }
  const at::Tensor flat = scores.detach().to(at::kFloat).contiguous();
  const at::Tensor index = at::full({scores.size(0), scores.size(1), blocks, capacity}, -1, at::kInt);
  const float* score = flat.const_data_ptr<float>();
  int32_t* out = index.mutable_data_ptr<int32_t>();
  const int64_t lists = scores.size(0) * scores.size(1) * blocks;
  for (int64_t list = 0; list < lists; ++list) {
    const int64_t batch = of_batch == 1 ? 0 : list / (scores.size(1) * blocks);
    const Candidates& c = candidates[batch * blocks + list % blocks];
    int32_t* next = out + list * capacity;
    for (const KeyRange& range : choose({score + list * chunks, size_t(chunks)}, cuts, c, budget))
      for (int64_t key = range.first; key < range.last; ++key) *next++ = int32_t(key);
  }
  return index;
}

namespace {

// Orders entries by one number: forced, then score, then lower index.  0: banned.
uint64_t rank_of(float score, int64_t index, bool forced, bool banned) {
  if (banned || (score == -std::numeric_limits<float>::infinity() && !forced)) return 0;
  uint32_t order = 0;  // of NaN
  if (!std::isnan(score)) {
    const auto bits = std::bit_cast<uint32_t>(score == 0 ? 0.0f : score);  // -0 equals 0
    order = bits >> 31 ? ~bits : bits | 0x80000000u;
  }
  return uint64_t{forced} << 63 | uint64_t{order} << 31 | (0x7fffffffu - uint64_t(index));
}

int32_t index_of(uint64_t rank) { return int32_t(0x7fffffffu - (rank & 0x7fffffffu)); }
bool is_forced(uint64_t rank) { return rank >> 63 != 0; }

struct ScoreRow {
  const float* scores;
  const bool *forced, *banned;  // null: none
  int64_t entries;
};

// Ranks of all entries that may be taken, in no order.
void rank_all(const ScoreRow& row, std::vector<uint64_t>& ranks) {
  ranks.clear();
  for (int64_t i = 0; i < row.entries; ++i) {
    const bool banned = row.banned && row.banned[i], forced = row.forced && row.forced[i] && !banned;
    const uint64_t rank = rank_of(row.scores[i], i, forced, banned);
    if (rank > 0) ranks.push_back(rank);
  }
}

// As rank_all, but only the `count` best: few, in descending order while they are found.
void rank_few(const ScoreRow& row, int64_t count, std::vector<uint64_t>& ranks) {
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  ranks.assign(size_t(count), 0);
  float last = kLowest;  // the score of the last of them: one that is not above it comes behind, unless forced
  for (int64_t i = 0; i < row.entries; ++i) {
    if (!row.forced && ranks.back() > 0 && !(row.scores[i] > last)) continue;
    const bool banned = row.banned && row.banned[i], forced = row.forced && row.forced[i] && !banned;
    const uint64_t rank = rank_of(row.scores[i], i, forced, banned);
    if (rank <= ranks.back()) continue;
    size_t at = ranks.size() - 1;
    for (; at > 0 && ranks[at - 1] < rank; --at) ranks[at] = ranks[at - 1];
    ranks[at] = rank;
    if (ranks.back() > 0) last = row.scores[index_of(ranks.back())];
    if (std::isnan(last)) last = kLowest;
  }
  ranks.erase(std::ranges::find(ranks, 0u), ranks.end());
}

// Into a row of -1.
void take_best(const ScoreRow& row, int64_t count, std::vector<uint64_t>& ranks, int32_t* out) {
  constexpr int64_t kFew = 8;
  if (0 < count && count <= kFew)
    rank_few(row, count, ranks);
  else
    rank_all(row, ranks);
  const int64_t legal = std::ssize(ranks), taken = std::min(legal, count);
  if (taken < legal) std::nth_element(ranks.begin(), ranks.begin() + taken, ranks.end(), std::greater<>());
  for (int64_t i = 0; i < taken; ++i) out[i] = index_of(ranks[size_t(i)]);
  std::sort(out, out + taken);
}

// Scores [.., N] as rows, with what is forced and banned.
struct RowsOfScores {
  RowsOfScores(const at::Tensor& scores, const std::optional<at::Tensor>& forced_entries,
               const std::optional<at::Tensor>& banned_entries, std::string_view caller) {
    require(scores.dim() >= 1 && scores.is_floating_point(), "{}: scores must be floating point [.., N], got {}",
            caller, c10::toString(scores.scalar_type()));
    flat = scores.detach().to(at::kFloat).contiguous();
    entries = scores.size(-1), rows = entries > 0 ? flat.numel() / entries : 0;
    require(entries < std::numeric_limits<int32_t>::max(), "{}: entries must be < 2^31, got {}", caller, entries);
    const auto mask = [&](const std::optional<at::Tensor>& t, std::string_view name) {
      if (!t) return at::Tensor();
      bool fits = t->scalar_type() == at::kBool && t->dim() <= scores.dim();
      for (int64_t axis = 1; fits && axis <= t->dim(); ++axis)
        fits = t->size(-axis) == 1 || t->size(-axis) == scores.size(-axis);
      require(fits, "{}: {} must be bool and broadcast to [{}], got {} [{}]", caller, name,
              fmt::join(scores.sizes().begin(), scores.sizes().end(), ", "), c10::toString(t->scalar_type()),
              fmt::join(t->sizes().begin(), t->sizes().end(), ", "));
      return t->expand(scores.sizes()).contiguous();
    };
    forced = mask(forced_entries, "forced"), banned = mask(banned_entries, "banned");
  }

  // visit(row, ScoreRow, room for ranks), rows side by side.
  template <class Visit>
  void for_each(const Visit& visit) const {
    constexpr int64_t kScoresAtOnce = 16384;
    const int64_t at_once = std::clamp<int64_t>(kScoresAtOnce / std::max<int64_t>(entries, 1), 1, 64);
    run_queue(torch_pool(), (rows + at_once - 1) / at_once, [&](int64_t item, int) {
      std::vector<uint64_t> ranks;
      for (int64_t row = item * at_once; row < std::min((item + 1) * at_once, rows); ++row) {
        const auto at_row = [&](const at::Tensor& t) {
          return t.defined() ? t.const_data_ptr<bool>() + row * entries : nullptr;
        };
        visit(row, ScoreRow{flat.const_data_ptr<float>() + row * entries, at_row(forced), at_row(banned), entries},
              ranks);
      }
    });
  }

  at::Tensor flat, forced, banned;
  int64_t entries, rows;
};

}  // namespace

at::Tensor select_top(const at::Tensor& scores, const at::Tensor& counts, const TopOptions& options) {
  const RowsOfScores of(scores, options.forced, options.banned, "select_top");
  std::vector<int64_t> shape = scores.sizes().vec();
  shape.pop_back();
  bool fits = counts.scalar_type() == at::kLong && counts.dim() <= int64_t(shape.size());
  for (int64_t axis = 1; fits && axis <= counts.dim(); ++axis)
    fits = counts.size(-axis) == 1 || counts.size(-axis) == shape[shape.size() - size_t(axis)];
  require(fits, "select_top: counts must be int64 and broadcast to [{}], got {} [{}]", fmt::join(shape, ", "),
          c10::toString(counts.scalar_type()), fmt::join(counts.sizes().begin(), counts.sizes().end(), ", "));
  const int64_t least = counts.numel() > 0 ? counts.min().item<int64_t>() : 0;
  require(least >= 0, "select_top: count must be >= 0, got {}", least);
  const int64_t room = counts.numel() > 0 ? std::min(counts.max().item<int64_t>(), of.entries) : 0;
  const at::Tensor count = counts.expand(shape).contiguous();
  if (of.forced.defined() && of.forced.numel() > 0) {
    const at::Tensor kept = (of.banned.defined() ? of.forced.logical_and(of.banned.logical_not()) : of.forced).sum(-1);
    const at::Tensor over = (kept - count).flatten();
    const int64_t worst = over.argmax().item<int64_t>();
    require(over[worst].item<int64_t>() <= 0, "select_top: forced entries must be <= count, got {} > {}",
            kept.flatten()[worst].item<int64_t>(), count.flatten()[worst].item<int64_t>());
  }
  shape.push_back(room);
  const at::Tensor index = at::full(shape, -1, at::kInt);
  const int64_t* count_of = count.const_data_ptr<int64_t>();
  int32_t* out = index.mutable_data_ptr<int32_t>();
  of.for_each([&](int64_t row, const ScoreRow& scored, std::vector<uint64_t>& ranks) {
    take_best(scored, count_of[row], ranks, out + row * room);
  });
  return index;
}

at::Tensor select_top(const at::Tensor& scores, int64_t count, const TopOptions& options) {
  return select_top(scores, at::scalar_tensor(count, at::kLong), options);
}

namespace {

struct Share {
  double share;
  bool crossing;
};

// The entries of one row, ascending.
std::vector<int32_t> take_mass(const ScoreRow& row, Share wanted, std::vector<uint64_t>& ranks) {
  rank_all(row, ranks);
  std::sort(ranks.begin(), ranks.end(), std::greater<>());
  const auto mass_of = [&](uint64_t rank) {
    const float score = row.scores[index_of(rank)];
    return std::isnan(score) ? 0.0 : double(score);
  };
  double total = 0, held = 0;
  for (const uint64_t rank : ranks) total += mass_of(rank);
  std::vector<int32_t> taken;
  for (const uint64_t rank : ranks) {
    const double mass = mass_of(rank), bound = wanted.share * total;
    const bool fits = wanted.share >= 1 || (wanted.crossing ? held < bound : held + mass <= bound);
    if (!is_forced(rank) && !fits) break;
    taken.push_back(index_of(rank));
    held += mass;
  }
  std::sort(taken.begin(), taken.end());
  return taken;
}

}  // namespace

at::Tensor select_mass(const at::Tensor& scores, const at::Tensor& share, const MassOptions& options) {
  const RowsOfScores of(scores, options.forced, options.banned, "select_mass");
  if (of.flat.numel() > 0)
    require(!of.flat.lt(0).any().item<bool>(), "select_mass: scores must be >= 0, got {}", of.flat.min().item<float>());
  std::vector<int64_t> shape = scores.sizes().vec();
  shape.back() = 1;
  bool fits = share.is_floating_point() && share.dim() <= scores.dim();
  for (int64_t axis = 1; fits && axis <= share.dim(); ++axis)
    fits = share.size(-axis) == 1 || share.size(-axis) == shape[shape.size() - size_t(axis)];
  require(fits, "select_mass: share must be floating point and broadcast to [{}], got {} [{}]", fmt::join(shape, ", "),
          c10::toString(share.scalar_type()), fmt::join(share.sizes().begin(), share.sizes().end(), ", "));
  const at::Tensor shares = share.detach().to(at::kDouble).expand(shape).contiguous();
  const double* share_of = shares.const_data_ptr<double>();
  for (int64_t row = 0; row < shares.numel(); ++row)
    require(share_of[row] >= 0 && share_of[row] <= 1, "select_mass: share must be 0 .. 1, got {}", share_of[row]);
  std::vector<std::vector<int32_t>> taken(size_t(of.rows));
  of.for_each([&](int64_t row, const ScoreRow& scored, std::vector<uint64_t>& ranks) {
    taken[size_t(row)] = take_mass(scored, {share_of[row], options.crossing}, ranks);
  });
  size_t longest = 0;
  for (const auto& list : taken) longest = std::max(longest, list.size());
  shape.back() = int64_t(longest);
  const at::Tensor index = at::full(shape, -1, at::kInt);
  int32_t* out = index.mutable_data_ptr<int32_t>();
  for (size_t row = 0; row < taken.size(); ++row) std::copy(taken[row].begin(), taken[row].end(), out + row * longest);
  return index;
}

at::Tensor select_mass(const at::Tensor& scores, double share, const MassOptions& options) {
  return select_mass(scores, at::scalar_tensor(share, at::kDouble), options);
}

}  // namespace foveate::ops
