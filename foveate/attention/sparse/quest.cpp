#include "foveate/attention/sparse/quest.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/cummax.h>
#include <ATen/ops/cummin.h>
#include <ATen/ops/matmul.h>

#include <algorithm>

#include "foveate/attention/dense.h"
#include "foveate/attention/sparse/block_lists.h"
#include "foveate/attention/summaries.h"
#include "foveate/ops/quantise/quantise.h"
#include "foveate/ops/select/pool.h"
#include "foveate/ops/select/select.h"

namespace foveate::attention {
namespace {

using at::Tensor;

// Rows of one call that choose together, by position: [count, 1] int64 but for k.
struct Part {
  int64_t start, count;
  Tensor position, own;  // of their queries; pages of their keys
};

// max(q_c M_c, q_c m_c) summed over c is one product: of q's positive and negative parts with M and m.  [B, Hq|Hkv,
// rows, 2 * D]
Tensor signed_parts(const Quest& o, const Inputs& in, const Part& rows, int64_t first, at::ScalarType type) {
  const Tensor q = in.q.detach().narrow(2, first, rows.count).to(type);
  const Tensor parts = at::cat({q.clamp_min(0), q.clamp_max(0)}, 3);
  return o.share == Quest::Share::group ? parts.unflatten(1, {in.k.size(1), -1}).sum(2) : parts;
}

// x [B, H, rows, 2 * D] times summaries [B, Hkv, n, 2 * D] -> [B, H, rows, n]
Tensor bounds(const Tensor& x, const Tensor& summaries) {
  const int64_t groups = summaries.size(1), each = x.size(1) / groups;
  const Tensor folded = x.reshape({x.size(0), groups, each * x.size(2), x.size(3)});
  return at::matmul(folded, summaries.transpose(2, 3)).view({x.size(0), x.size(1), x.size(2), summaries.size(2)});
}

// The bound of a row's own page as it was when the row's key was its last: [B, H, rows, 1].
Tensor own_bounds(const Quest& o, const Tensor& x, const Tensor& k, const Part& rows) {
  const int64_t first = rows.start / o.page * o.page, length = rows.start + rows.count - first;
  const int64_t pages = (length + o.page - 1) / o.page;
  const Tensor keys = ops::widened(k.detach().narrow(2, first, length), at::kFloat).to(x.scalar_type());
  const Tensor paged = at::constant_pad_nd(keys, {0, 0, 0, pages * o.page - length}).unflatten(2, {pages, o.page});
  const Tensor running = at::cat({std::get<0>(at::cummax(paged, 3)), std::get<0>(at::cummin(paged, 3))}, 4)
                             .flatten(2, 3)
                             .narrow(2, rows.start - first, rows.count);
  return (x.unflatten(1, {k.size(1), -1}) * running.unsqueeze(2)).sum(-1, true).flatten(1, 2);
}

}  // namespace

int64_t Quest::pages() const { return std::max(least_pages, budget / page); }

Tensor Quest::summaries(const Tensor& k) const {
  const auto cuts = ops::even_cuts(k.size(2), page);
  const Tensor keys = ops::widened(k.detach(), at::kFloat);
  const Tensor smallest = ops::pool_segments(keys.neg(), cuts, ops::Pooling::max).neg_();
  return at::cat({ops::pool_segments(keys, cuts, ops::Pooling::max), smallest}, 3);
}

Attended Quest::attend_pages(const Inputs& in, const Tensor& summaries) const {
  validate();
  const int64_t queries = in.q.size(2), keys = in.k.size(2), all = summaries.size(2);
  const int64_t start = in.rule.query_start.value_or(keys - queries);
  if (queries == 0 || all <= pages()) return Dense{}.attend(in);
  require(start >= 0 && start + queries <= keys, "quest: queries must sit at keys 0 .. {}, got {} from {} on", keys - 1,
          queries, start);
  const BlockGrid grid(in, 1, page, name);
  constexpr int64_t kMostScores = int64_t{1} << 21;  // held at a time
  const int64_t step = std::max<int64_t>(1, kMostScores / std::max<int64_t>(1, in.q.size(0) * in.q.size(1) * all));
  std::vector<Tensor> lists;
  for (int64_t first = 0; first < queries; first += step) {
    Part rows{start + first, std::min(step, queries - first), {}, {}};
    rows.position = at::arange(rows.start, rows.start + rows.count, at::kLong).unsqueeze(1);
    rows.own = rows.position.div(page, "floor");
    const Tensor x = signed_parts(*this, in, rows, first, summaries.scalar_type());
    Tensor scores = bounds(x, summaries);
    if (rows.start + rows.count < keys || rows.count > 1) {  // else the last page ends with the row's key
      const Tensor own = own_bounds(*this, x, in.k, rows);
      scores.scatter_(3, rows.own.expand({own.size(0), own.size(1), -1, 1}), own);
    }
    const Tensor hidden = grid.seen(grid.span(first, rows.count)).logical_not_();
    std::optional<Tensor> forced;
    if (force_latest) forced = at::arange(all, at::kLong).eq(rows.own);
    lists.push_back(ops::select_top(scores, pages(), {.forced = forced, .banned = hidden}));
  }
  const Tensor index = lists.size() == 1 ? lists[0] : at::cat(lists, 2);
  return attend_blocks(grid, index, in);
}

Attended Quest::attend(const Inputs& in) const {
  validate();
  if (in.k.size(2) == 0 || (rows == Rows::prompt && !is_generated_row(in))) return Dense{}.attend(in);
  return attend_pages(in, summaries(in.k));
}

namespace {

// Keeps the summaries of all pages beside the cache.
class QuestState final : public CachedState {
 public:
  QuestState(const Quest& quest, const StateOptions& options)
      : CachedState(std::nullopt, options),
        quest_(quest),
        pages_(quest.page, [quest](const Tensor& k) { return quest.summaries(k); }) {}

  Attended prefill(const Inputs& in) override {
    const Inputs all = appended(in);
    return quest_.rows == Quest::Rows::prompt ? Dense{}.attend(all) : quest_.attend_pages(all, pages_.of(all.k));
  }

  Attended decode(const Inputs& in) override {
    return by_row(in, [&](const Inputs& all) { return quest_.attend_pages(all, pages_.of(all.k)); });
  }

  void truncate(int64_t length) override {
    CachedState::truncate(length);
    pages_.truncate(length);
  }

  void load(const Snapshot& snapshot) override {
    CachedState::load(snapshot);
    pages_.clear();
  }

  int64_t bytes() const override { return CachedState::bytes() + pages_.bytes(); }

  int64_t read_bytes() const override {
    const int64_t all = (length() + quest_.page - 1) / quest_.page;
    if (all <= quest_.pages()) return CachedState::read_bytes();
    return std::min(seen(), quest_.pages() * quest_.page) * cache_.token_bytes() + all * pages_.chunk_bytes();
  }

 private:
  Quest quest_;
  ChunkSummaries pages_;
};

}  // namespace

std::unique_ptr<State> Quest::make_state(const StateOptions& options) const {
  validate();
  return std::make_unique<QuestState>(*this, options);
}

}  // namespace foveate::attention
