#include "foveate/attention/sparse/block_topk.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <numeric>

#include "foveate/attention/dense.h"
#include "foveate/attention/sparse/block_lists.h"
#include "foveate/attention/summaries.h"
#include "foveate/ops/select/pool.h"

namespace foveate::attention {
namespace {

using at::Tensor;

Tensor means_of(const Tensor& k, int64_t block) {
  return ops::pool_segments(k.detach(), ops::even_cuts(k.size(2), block), ops::Pooling::mean);
}

}  // namespace

int64_t BlockTopk::chunk_multiple() const { return std::lcm(query_block, block); }

Attended BlockTopk::attend(const Inputs& in) const {
  if (decode == Decode::dense && is_generated_row(in)) return Dense{}.attend(in);
  return attend_by(in, means_of(keys_in_sight(in), block));
}

Attended BlockTopk::attend_by(const Inputs& in, const Tensor& means) const {
  validate();
  const BlockGrid grid(in, query_block, block, name);
  const int64_t rows = grid.rows();
  if (rows == 0 || in.k.size(2) == 0) return Dense{}.attend(in);
  const bool shares = head_share != HeadShare::none, by_all = head_share == HeadShare::all;
  const BlockScores by_means = scores_by_means(grid, in.q, means, shares);
  const auto scores = [&](int64_t first, int64_t count) {
    const Tensor own = by_means(first, count);
    return by_all ? own.mean(1, true) : own;
  };
  const auto forced = [&](const BlockGrid::Span& s) { return grid.own_blocks(s).logical_and(grid.seen(s)); };
  const Tensor seen = grid.seen(grid.span(0, rows)).sum(-1);
  const Tensor takes = density > 0 ? seen.to(at::kDouble).mul_(density).floor_().to(at::kLong)
                                   : at::full({1, 1, rows}, blocks, at::kLong);
  const int64_t heads = by_all ? 1 : shares ? in.k.size(1) : in.q.size(1);
  if (takes.ge(seen).all().item<bool>()) return Dense{}.attend(in);
  return attend_blocks(grid, select_blocks(grid, scores, forced, takes, 0, in.q.size(0) * heads), in);
}

namespace {

// Keeps means of all blocks beside the cache.
class BlockTopkState final : public SummarisedState {
 public:
  BlockTopkState(const BlockTopk& options, const StateOptions& state)
      : SummarisedState(
            options.block, [options](const Tensor& k) { return means_of(k, options.block); }, state),
        options_(options) {}

  Attended prefill(const Inputs& in) override { return by_means(appended(in)); }

  Attended decode(const Inputs& in) override {
    if (options_.decode == BlockTopk::Decode::dense) return Dense{}.attend(appended(in));
    return by_row(in, [&](const Inputs& all) { return by_means(all); });
  }

  int64_t read_bytes() const override {
    if (options_.decode == BlockTopk::Decode::dense) return CachedState::read_bytes();
    const int64_t all = chunks();
    const int64_t kept =
        options_.density > 0 ? std::max<int64_t>(1, int64_t(options_.density * double(all))) : options_.blocks;
    return kept >= all ? CachedState::read_bytes() : bytes_of_row(kept * options_.block);
  }

 private:
  Attended by_means(const Inputs& all) { return options_.attend_by(all, summaries_.of(all.k)); }

  BlockTopk options_;
};

}  // namespace

std::unique_ptr<State> BlockTopk::make_state(const StateOptions& options) const {
  validate();
  return std::make_unique<BlockTopkState>(*this, options);
}

}  // namespace foveate::attention
