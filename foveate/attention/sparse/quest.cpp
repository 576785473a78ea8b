#include "foveate/attention/sparse/quest.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/cummax.h>
#include <ATen/ops/cummin.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros_like.h>

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

// max(q_c M_c, q_c m_c) summed over c is one product: of q's positive and negative parts with M and m.  [B, Hq|Hkv,
// count, 2 * D] of rows [first, first + count).
Tensor signed_parts(const Quest& o, const Inputs& in, int64_t first, int64_t count, at::ScalarType type) {
  const Tensor q = in.q.detach().narrow(2, first, count).to(type);
  const Tensor parts = at::cat({q.clamp_min(0), q.clamp_max(0)}, 3);
  return o.share == Quest::Share::group ? parts.unflatten(1, {in.k.size(1), -1}).sum(2) : parts;
}

// x [B, H, rows, 2 * D] times summaries [B, Hkv, n, 2 * D] -> [B, H, rows, n]
Tensor bounds(const Tensor& x, const Tensor& summaries) {
  const int64_t groups = summaries.size(1), each = x.size(1) / groups;
  const Tensor folded = x.reshape({x.size(0), groups, each * x.size(2), x.size(3)});
  return at::matmul(folded, summaries.transpose(2, 3)).view({x.size(0), x.size(1), x.size(2), summaries.size(2)});
}

// The bounds of the own pages of rows from position `start` on as they were when the row's key was the last: [B, H,
// rows, 1].
Tensor own_bounds(const Quest& o, const Tensor& x, const Tensor& k, int64_t start) {
  const int64_t rows = x.size(2), first = start / o.page * o.page, length = start + rows - first;
  const int64_t pages = (length + o.page - 1) / o.page;
  const Tensor keys = ops::widened(k.detach().narrow(2, first, length), at::kFloat).to(x.scalar_type());
  const Tensor paged = at::constant_pad_nd(keys, {0, 0, 0, pages * o.page - length}).unflatten(2, {pages, o.page});
  const Tensor running = at::cat({std::get<0>(at::cummax(paged, 3)), std::get<0>(at::cummin(paged, 3))}, 4)
                             .flatten(2, 3)
                             .narrow(2, start - first, rows);
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
  if (queries == 0 || all <= pages()) return Dense{}.attend(in);
  const int64_t start = first_query_key(in, name);
  const BlockGrid grid(in, 1, page, name);
  const auto scores = [&](int64_t first, int64_t count) {
    const Tensor x = signed_parts(*this, in, first, count, summaries.scalar_type());
    const Tensor scores = bounds(x, summaries);
    const int64_t position = start + first;
    if (position + count == keys && count == 1) return scores;  // the last page ends with the row's key
    const Tensor own = own_bounds(*this, x, in.k, position);
    const Tensor page_of = at::arange(position, position + count, at::kLong).div_(page, "floor").unsqueeze(1);
    return scores.scatter(3, page_of.expand({own.size(0), own.size(1), -1, 1}), own);
  };
  const auto forced = [&](const BlockGrid::Span& span) {
    const Tensor own = grid.own_blocks(span);
    return force_latest ? own : at::zeros_like(own);
  };
  const int64_t lists = in.q.size(0) * (share == Share::group ? in.k.size(1) : in.q.size(1));
  const Tensor takes = at::full({1, 1, queries}, pages(), at::kLong);
  return attend_blocks(grid, select_blocks(grid, scores, forced, takes, 0, lists), in);
}

Attended Quest::attend(const Inputs& in) const {
  validate();
  if (in.k.size(2) == 0 || (rows == Rows::prompt && !is_generated_row(in))) return Dense{}.attend(in);
  return attend_pages(in, summaries(keys_in_sight(in)));
}

namespace {

// Keeps the summaries of all pages beside the cache.
class QuestState final : public SummarisedState {
 public:
  QuestState(const Quest& quest, const StateOptions& options)
      : SummarisedState(
            quest.page, [quest](const Tensor& k) { return quest.summaries(k); }, options),
        quest_(quest) {}

  Attended prefill(const Inputs& in) override {
    const Inputs all = appended(in);
    return quest_.rows == Quest::Rows::prompt ? Dense{}.attend(all) : quest_.attend_pages(all, summaries_.of(all.k));
  }

  Attended decode(const Inputs& in) override {
    return by_row(in, [&](const Inputs& all) { return quest_.attend_pages(all, summaries_.of(all.k)); });
  }

  int64_t read_bytes() const override {
    return chunks() <= quest_.pages() ? CachedState::read_bytes() : bytes_of_row(quest_.pages() * quest_.page);
  }

 private:
  Quest quest_;
};

}  // namespace

std::unique_ptr<State> Quest::make_state(const StateOptions& options) const {
  validate();
  return std::make_unique<QuestState>(*this, options);
}

}  // namespace foveate::attention
