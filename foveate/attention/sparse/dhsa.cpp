#include "foveate/attention/sparse/dhsa.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>

#include <algorithm>
#include <numeric>

#include "foveate/attention/dense.h"
#include "foveate/attention/sparse/block_lists.h"
#include "foveate/attention/summaries.h"
#include "foveate/ops/quantise/quantise.h"
#include "foveate/ops/select/pool.h"

namespace foveate::attention {
namespace {

ops::Pooling pooling_of(Dhsa::Pooling pooling) {
  switch (pooling) {
    case Dhsa::Pooling::avgpool_norm:
      return ops::Pooling::mean_times_root;
    case Dhsa::Pooling::avgpool:
      return ops::Pooling::mean;
    case Dhsa::Pooling::maxpool:
      return ops::Pooling::max;
  }
  fail("dhsa: unknown pooling");
}

}  // namespace

void Dhsa::validate() const {
  check_options(*this);
  require(global_tokens + local_tokens <= budget,
          "dhsa: global_tokens + local_tokens must be <= budget, got {} + {} > {}", global_tokens, local_tokens,
          budget);
  if (local_anchor == LocalAnchor::block_end) return;
  const int64_t forced = global_tokens + std::max<int64_t>(local_tokens - 1, 0) + query_block;
  require(
      forced <= budget,
      "dhsa: global_tokens + local_tokens - 1 + query_block must be <= budget (or local_anchor=block_end), got {} > {}",
      forced, budget);
}

int64_t Dhsa::chunk_multiple() const { return std::lcm(query_block, chunk); }

at::Tensor Dhsa::pool(const at::Tensor& rows, std::span<const int64_t> cuts) const {
  const at::Tensor x = ops::widened(rows, at::kFloat);
  const at::Tensor shared = head_share ? x.mean(1, true, x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat) : x;
  return ops::pool_segments(shared, cuts, pooling_of(pooling));
}

std::vector<ops::Candidates> Dhsa::candidates(const Inputs& in, int64_t rows_of_block) const {
  const BlockGrid grid(in, rows_of_block, chunk, name);
  const BlockGrid::Span span = grid.span(0, grid.rows());
  const at::Tensor starts = span.seen.start.contiguous(), ends = span.seen.end.contiguous();
  const bool from_end = local_anchor == LocalAnchor::block_end;
  const at::Tensor tails = (from_end ? span.end - local_tokens : span.begin + 1 - std::max<int64_t>(local_tokens, 1));
  std::vector<ops::Candidates> all;
  for (int64_t batch = 0; batch < std::max(starts.size(0), ends.size(0)); ++batch)
    for (int64_t row = 0; row < grid.rows(); ++row) {
      const auto number = [&](const at::Tensor& t) {
        return t.const_data_ptr<int64_t>()[(t.size(0) == 1 ? 0 : batch) * grid.rows() + row];
      };
      const int64_t first = number(starts), last = number(ends), tail = tails.const_data_ptr<int64_t>()[row];
      all.push_back({first, last, global_tokens, std::max<int64_t>(last - tail, 0)});
    }
  return all;
}

Attended Dhsa::attend(const Inputs& in) const {
  return decode == Decode::dense && is_generated_row(in) ? Dense{}.attend(in) : attend_prompt(in);
}

Attended Dhsa::attend_prompt(const Inputs& in) const {
  validate();
  const int64_t queries = in.q.size(2), keys = in.k.size(2);
  const int64_t dense_rows = in.ends_prompt ? std::min(instruction_tokens, queries) : 0, rows = queries - dense_rows;
  Attended attended{.out = {}, .lse = {}, .plans = {}};
  std::vector<at::Tensor> outs, lses;
  const auto run = [&](int64_t first, const Inputs& part, Plan plan) {
    if (part.q.size(2) == 0 && queries > 0) return;
    const ops::Attended own = ops::attend(part.q, part.k, part.v, plan, part.score);
    outs.push_back(own.out);
    lses.push_back(own.lse);
    attended.plans.push_back({first, part.q.size(2), std::move(plan)});
  };
  const Inputs sparse = narrow_rows(in, 0, rows), dense = narrow_rows(in, rows, dense_rows);
  const auto query_cuts = ops::even_cuts(rows, query_block), key_cuts = ops::even_cuts(keys, chunk);
  const at::Tensor chunks = pool(in.k.detach(), key_cuts);
  const at::Tensor scores = ops::score_blocks(sparse.q.detach(), chunks, query_cuts, pooling_of(pooling),
                                              /*by_group=*/true);  // [B, 1|Hkv, blocks, chunks] fp32
  const auto allowed = candidates(sparse, query_block);
  run(0, sparse, TokenPlan{query_block, ops::select_tokens(scores, key_cuts, allowed, budget), sparse.rule});
  run(rows, dense, dense.rule);
  attended.out = outs.size() == 1 ? outs[0] : at::cat(outs, 2);
  attended.lse = lses.size() == 1 ? lses[0] : at::cat(lses, 2);
  return attended;
}

namespace {

// Keeps summaries of all chunks beside the cache, so that a decoded token reads them and its own keys only.
class DhsaState final : public CachedState {
 public:
  DhsaState(const Dhsa& dhsa, const StateOptions& options)
      : CachedState(std::nullopt, options), dhsa_(dhsa), summaries_(dhsa.chunk, [dhsa](const at::Tensor& k) {
          return dhsa.pool(k, ops::even_cuts(k.size(2), dhsa.chunk));
        }) {}

  Attended prefill(const Inputs& in) override { return dhsa_.attend_prompt(appended(in)); }

  Attended decode(const Inputs& in) override {
    if (dhsa_.decode == Dhsa::Decode::dense) return Dense{}.attend(appended(in));
    return by_row(in, [&](const Inputs& all) { return decode_row(all); });  // the open chunk's mean grows with each row
  }

  void truncate(int64_t length) override {
    CachedState::truncate(length);
    summaries_.truncate(length);
  }

  void load(const Snapshot& snapshot) override {
    CachedState::load(snapshot);
    summaries_.clear();
  }

  int64_t bytes() const override { return CachedState::bytes() + summaries_.bytes(); }

  int64_t read_bytes() const override {
    if (dhsa_.decode == Dhsa::Decode::dense) return CachedState::read_bytes();
    const int64_t chunks = (length() + dhsa_.chunk - 1) / dhsa_.chunk;
    return std::min(seen(), dhsa_.budget) * cache_.token_bytes() + chunks * summaries_.chunk_bytes();
  }

 private:
  Attended decode_row(const Inputs& in) {
    const int64_t keys = in.k.size(2);
    const at::Tensor scores = ops::score_blocks(in.q, summaries_.of(in.k), std::array<int64_t, 2>{0, 1},
                                                pooling_of(dhsa_.pooling), /*by_group=*/true);
    const auto allowed = dhsa_.candidates(in, 1);
    TokenPlan plan{1, ops::select_tokens(scores, ops::even_cuts(keys, dhsa_.chunk), allowed, dhsa_.budget), in.rule};
    const ops::Attended attended = ops::attend(in.q, in.k, in.v, plan, in.score);
    return {attended.out, attended.lse, {{0, 1, std::move(plan)}}};
  }

  Dhsa dhsa_;
  ChunkSummaries summaries_;
};

}  // namespace

std::unique_ptr<State> Dhsa::make_state(const StateOptions& options) const {
  validate();
  return std::make_unique<DhsaState>(*this, options);
}

}  // namespace foveate::attention
