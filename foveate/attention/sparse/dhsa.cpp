#include "foveate/attention/sparse/dhsa.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>

#include <algorithm>
#include <numeric>

#include "foveate/attention/dense.h"
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

// A block whose rows sit at positions [first_row_position, end_position).
ops::Candidates Dhsa::candidates(const Rule& rule, int64_t first_row_position, int64_t end_position) const {
  const int64_t first = rule.window_left ? std::max<int64_t>(0, first_row_position - *rule.window_left) : 0;
  if (local_anchor == LocalAnchor::block_end) return {first, end_position, global_tokens, local_tokens};
  const int64_t before = std::max<int64_t>(local_tokens, 1) - 1;  // a row always keeps its own key
  return {first, end_position, global_tokens, before + end_position - first_row_position};
}

Attended Dhsa::attend(const Inputs& in) const {
  return decode == Decode::dense && is_generated_row(in) ? Dense{}.attend(in) : attend_prompt(in);
}

Attended Dhsa::attend_prompt(const Inputs& in) const {
  validate();
  const int64_t queries = in.q.size(2), keys = in.k.size(2);
  const int64_t start = in.rule.query_start.value_or(keys - queries);
  const int64_t dense_rows = in.ends_prompt ? std::min(instruction_tokens, queries) : 0, rows = queries - dense_rows;
  Attended attended{.out = {}, .lse = {}, .plans = {}};
  std::vector<at::Tensor> outs, lses;
  const auto run = [&](int64_t first, int64_t count, Plan plan) {
    if (count == 0 && queries > 0) return;
    const ops::Attended part = ops::attend(in.q.narrow(2, first, count), in.k, in.v, plan, in.score);
    outs.push_back(part.out);
    lses.push_back(part.lse);
    attended.plans.push_back({first, count, std::move(plan)});
  };
  Rule sparse_rule = in.rule, dense_rule = in.rule;
  sparse_rule.query_start = start;
  dense_rule.query_start = start + rows;
  const auto query_cuts = ops::even_cuts(rows, query_block), key_cuts = ops::even_cuts(keys, chunk);
  const at::Tensor chunks = pool(in.k.detach(), key_cuts);
  std::vector<ops::Candidates> candidates_of;
  for (size_t b = 0; b + 1 < query_cuts.size(); ++b)
    candidates_of.push_back(candidates(in.rule, start + query_cuts[b], start + query_cuts[b + 1]));
  const at::Tensor scores = ops::score_blocks(in.q.narrow(2, 0, rows).detach(), chunks, query_cuts, pooling_of(pooling),
                                              /*by_group=*/true);  // [B, 1|Hkv, blocks, chunks] fp32
  run(0, rows, TokenPlan{query_block, ops::select_tokens(scores, key_cuts, candidates_of, budget), sparse_rule});
  run(rows, dense_rows, dense_rule);
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
    const ops::Candidates candidates = dhsa_.candidates(in.rule, keys - 1, keys);
    TokenPlan plan{1, ops::select_tokens(scores, ops::even_cuts(keys, dhsa_.chunk), {&candidates, 1}, dhsa_.budget),
                   in.rule};
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
