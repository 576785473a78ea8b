#include "foveate/ops/select/select.h"

#include <ATen/ops/full.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "foveate/base/error.h"

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
  require(std::ssize(candidates) == blocks && std::ssize(cuts) == chunks + 1,
          "select_tokens: one candidate set per block and one cut more than chunks, got {} for {} and {} for {}",
          candidates.size(), blocks, cuts.size(), chunks);
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
    const Candidates& c = candidates[list % blocks];
    int32_t* next = out + list * capacity;
    for (const KeyRange& range : choose({score + list * chunks, size_t(chunks)}, cuts, c, budget))
      for (int64_t key = range.first; key < range.last; ++key) *next++ = int32_t(key);
  }
  return index;
}

}  // namespace foveate::ops
