#include "foveate/attention/sparse/dhsa.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <functional>
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

int64_t Dhsa::chunk_multiple() const { return chunks == Chunks::even ? std::lcm(query_block, chunk) : query_block; }

std::vector<LearnedPart> Dhsa::learned_parts(const LayerShape& shape) const {
  if (chunks != Chunks::learned) return {};
  return boundary_parts(shape.kv_heads * shape.head_dim, {half_window, boundary_heads});
}

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

namespace {

constexpr std::string_view kCuts = "dhsa.cuts", kLists = "dhsa.lists";

// What an earlier layer left under a name.
const std::vector<at::Tensor>& left(const Inputs& in, std::string_view name, std::string_view option,
                                    std::string_view earlier) {
  require(in.shared, "dhsa: {} is for the layers of one forward pass, got a call alone, which shares nothing", option);
  const auto found = in.shared->find(name);
  require(found != in.shared->end(), "dhsa: {} needs an earlier layer {} in the same forward pass, got none", option,
          earlier);
  return found->second;
}

Dhsa::Cuts shared_cuts(const Inputs& in) {
  Dhsa::Cuts all;
  for (const at::Tensor& cuts : left(in, kCuts, "chunks=shared", "with chunks=learned")) {
    const int64_t* first = cuts.const_data_ptr<int64_t>();
    all.emplace_back(first, first + cuts.numel());
    require(all.back().back() == in.k.size(2), "dhsa: shared chunks must be of the same {} keys, got {}", in.k.size(2),
            all.back().back());
  }
  return all;
}

// Keys [first, end) of sequence b that some row sees.
std::pair<int64_t, int64_t> text_of(const SeenKeys& seen, int64_t b) {
  const auto row = [&](const at::Tensor& t) { return t.select(0, t.size(0) == 1 ? 0 : b); };
  const at::Tensor start = row(seen.start), end = row(seen.end), some = end.gt(start).nonzero().flatten();
  if (some.numel() == 0) return {0, 0};
  return {start.index_select(0, some).min().item<int64_t>(), end.index_select(0, some).max().item<int64_t>()};
}

// Layers whose lists may be the same say the same.
std::string lists_name(const Dhsa& dhsa, const Inputs& in) {
  Dhsa plain = dhsa;
  const Dhsa given;
  plain.lists = given.lists, plain.decode = given.decode;
  if (plain.chunks == Dhsa::Chunks::shared) plain.chunks = Dhsa::Chunks::learned;
  if (plain.chunks == Dhsa::Chunks::learned) plain.chunk = given.chunk;
  // how an earlier layer found its chunks is its own affair
  plain.theta = given.theta, plain.nms_window = given.nms_window, plain.chunks_per_block = given.chunks_per_block;
  plain.half_window = given.half_window, plain.boundary_heads = given.boundary_heads;
  return fmt::format("{}.{}.{}", kLists, in.rule.window_left.value_or(-1), to_spec(plain).text());
}

}  // namespace

Dhsa::Cuts Dhsa::cuts_of(const Inputs& in) const {
  const at::NoGradGuard no_grad;
  const int64_t keys = in.k.size(2);
  if (chunks == Chunks::even) return {ops::even_cuts(keys, chunk)};
  if (chunks == Chunks::shared) return shared_cuts(in);
  learned(in, name, "mha_in");
  const SeenKeys seen = shown_keys(without_windows(in.rule), in.q.size(2), keys, name);
  Cuts all;
  for (int64_t b = 0; b < in.k.size(0); ++b) {
    const auto [first, end] = text_of(seen, b);
    const at::Tensor logits =
        boundary_logits(in.k.narrow(0, b, 1).narrow(2, first, end - first), *in.learned, {half_window, boundary_heads});
    const ChunkLimits limits{theta, nms_window, (end - first) / query_block * chunks_per_block, half_window,
                             in.ends_prompt ? std::min(instruction_tokens, in.q.size(2)) : 0};
    std::vector<int64_t>& cuts = all.emplace_back(1, 0);  // padding is a chunk of its own, which no row may take
    for (const int64_t cut : choose_cuts(logits.select(0, 0), limits))
      if (first + cut > cuts.back()) cuts.push_back(first + cut);
    if (cuts.back() < keys) cuts.push_back(keys);
  }
  if (in.shared) {
    std::vector<at::Tensor>& left = (*in.shared)[std::string(kCuts)];
    left.clear();
    for (const auto& cuts : all) left.push_back(at::tensor(cuts, at::kLong));
  }
  return all;
}

namespace {

// Of sequence b, from what goes by sequence or is the same for all.
std::span<const ops::Candidates> of_sequence(std::span<const ops::Candidates> all, size_t b, size_t blocks) {
  return all.size() == blocks ? all : all.subspan(b * blocks, blocks);
}

// Lists [1, ..., longest] of sequences as those of a batch.
at::Tensor joined(std::vector<at::Tensor> lists) {
  int64_t longest = 0;
  for (const at::Tensor& list : lists) longest = std::max(longest, list.size(3));
  for (at::Tensor& list : lists) list = at::constant_pad_nd(list, {0, longest - list.size(3)}, -1);
  return at::cat(lists);
}

// Lists of the blocks of in.q between query_cuts [B, 1|Hkv, blocks, longest] int32.
at::Tensor select(const Dhsa& o, const Inputs& in, const Dhsa::Cuts& cuts, std::span<const int64_t> query_cuts,
                  std::span<const ops::Candidates> allowed) {
  const auto scores = [&](const at::Tensor& q, const at::Tensor& k, std::span<const int64_t> key_cuts) {
    return ops::score_blocks(q.detach(), o.pool(k.detach(), key_cuts), query_cuts, pooling_of(o.pooling),
                             /*by_group=*/true);  // [B, 1|Hkv, blocks, chunks] fp32
  };
  if (cuts.size() == 1) return ops::select_tokens(scores(in.q, in.k, cuts[0]), cuts[0], allowed, o.budget);
  std::vector<at::Tensor> lists;
  for (size_t b = 0; b < cuts.size(); ++b) {
    const auto own = [&](const at::Tensor& t) { return t.narrow(0, int64_t(b), 1); };
    lists.push_back(ops::select_tokens(scores(own(in.q), own(in.k), cuts[b]), cuts[b],
                                       of_sequence(allowed, b, query_cuts.size() - 1), o.budget));
  }
  return joined(std::move(lists));
}

}  // namespace

Attended Dhsa::attend(const Inputs& in) const {
  return decode == Decode::dense && is_generated_row(in) ? Dense{}.attend(in) : attend_prompt(in);
}

Attended Dhsa::attend_prompt(const Inputs& in) const {
  validate();
  return attend_chunks(in, cuts_of(in));
}

Attended Dhsa::attend_chunks(const Inputs& in, const Cuts& cuts) const {
  const int64_t queries = in.q.size(2);
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
  const std::string name = lists_name(*this, in);
  at::Tensor index;
  if (lists == Lists::shared) {
    index = left(in, name, "lists=shared", "of the same options and window").front();
  } else {
    Inputs scored = sparse;
    scored.k = keys_in_sight(in);
    index = select(*this, scored, cuts, ops::even_cuts(rows, query_block), candidates(sparse, query_block));
    if (in.shared) (*in.shared)[name] = {index};
  }
  run(0, sparse, TokenPlan{query_block, index, sparse.rule});
  run(rows, dense, dense.rule);
  attended.out = outs.size() == 1 ? outs[0] : at::cat(outs, 2);
  attended.lse = lses.size() == 1 ? lses[0] : at::cat(lses, 2);
  return attended;
}

namespace {

// Keeps summaries of all chunks beside the cache, so that a decoded token reads them and its own keys only.
class DhsaState final : public SummarisedState {
 public:
  DhsaState(const Dhsa& dhsa, const StateOptions& options)
      : SummarisedState(
            dhsa.chunk, [dhsa](const at::Tensor& k) { return dhsa.pool(k, ops::even_cuts(k.size(2), dhsa.chunk)); },
            options),
        dhsa_(dhsa) {}

  Attended prefill(const Inputs& in) override { return dhsa_.attend_prompt(appended(in)); }

  Attended decode(const Inputs& in) override {
    if (dhsa_.decode == Dhsa::Decode::dense) return Dense{}.attend(appended(in));
    return by_row(in, [&](const Inputs& all) { return decode_row(all); });  // the open chunk's mean grows with each row
  }

  int64_t read_bytes() const override {
    return dhsa_.decode == Dhsa::Decode::dense ? CachedState::read_bytes() : bytes_of_row(dhsa_.budget);
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
};

// Keeps where the prompt was cut, and summaries of all chunks but the last, which every new key joins.
class CutDhsaState final : public CachedState {
 public:
  CutDhsaState(const Dhsa& dhsa, const StateOptions& options) : CachedState(std::nullopt, options), dhsa_(dhsa) {}

  Attended prefill(const Inputs& in) override {
    const Inputs all = appended(in);
    const Dhsa::Cuts cuts = dhsa_.cuts_of(all);
    starts_.clear(), closed_.clear();
    for (const auto& one : cuts) starts_.emplace_back(one.begin(), std::max(one.begin() + 1, one.end() - 1));
    return dhsa_.attend_chunks(all, cuts);
  }

  Attended decode(const Inputs& in) override {
    if (dhsa_.decode == Dhsa::Decode::dense) return Dense{}.attend(appended(in));
    return by_row(in, [&](const Inputs& all) { return decode_row(all); });
  }

  void truncate(int64_t length) override {
    CachedState::truncate(length);
    for (auto& starts : starts_)
      while (starts.size() > 1 && starts.back() >= length) starts.pop_back();
    closed_.clear();
  }

  // Starts of chunks [B, most + 1] int64, -1 behind the end of each.
  Snapshot save() const override {
    Snapshot snapshot = CachedState::save();
    if (length() == 0) return snapshot;
    std::vector<std::vector<int64_t>> all = starts_;
    if (all.empty()) all.assign(size_t(cache_.k().size(0)), {0});  // no prompt was read
    size_t most = 0;
    for (const auto& starts : all) most = std::max(most, starts.size());
    const at::Tensor saved = at::full({std::ssize(all), int64_t(most) + 1}, -1, at::kLong);
    for (size_t b = 0; b < all.size(); ++b)
      std::ranges::copy(all[b], saved.mutable_data_ptr<int64_t>() + b * (most + 1));
    snapshot["chunk_starts"] = saved;
    return snapshot;
  }

  void load(const Snapshot& snapshot) override {
    starts_.clear(), closed_.clear();
    CachedState::load(snapshot);
    if (length() == 0) return;
    const auto found = snapshot.find("chunk_starts");
    if (found == snapshot.end() || !fits(found->second)) {
      starts_.clear();
      CachedState::load({});
      fail("dhsa: a saved state of these options must have chunk_starts that ascend from 0 below its {} keys",
           snapshot.at("k").size(2));
    }
  }

  int64_t bytes() const override {
    int64_t sum = CachedState::bytes();
    for (const at::Tensor& chunks : closed_) sum += int64_t(chunks.nbytes());
    return sum;
  }

  int64_t read_bytes() const override {
    if (dhsa_.decode == Dhsa::Decode::dense || length() == 0) return CachedState::read_bytes();
    const at::Tensor key = cache_.k().narrow(2, 0, 1);
    const int64_t summary = (dhsa_.head_share ? 1 : key.size(1)) * ops::row_dim(key) * int64_t(sizeof(float));
    int64_t sum = 0;
    for (const auto& starts : starts_)  // kept keys, summaries, and the open chunk's keys
      sum += (std::ssize(starts) - 1) * summary + (length() - starts.back()) * int64_t(key.nbytes()) / key.size(0);
    return sum + std::min(seen(), dhsa_.budget) * cache_.token_bytes();
  }

 private:
  // Takes the starts where they are some.
  bool fits(const at::Tensor& all) {
    if (all.dim() != 2 || all.scalar_type() != at::kLong || all.size(0) != cache_.k().size(0)) return false;
    for (int64_t b = 0; b < all.size(0); ++b) {
      const at::Tensor row = all[b].contiguous();
      const int64_t *first = row.const_data_ptr<int64_t>(), *end = std::find(first, first + row.numel(), -1);
      starts_.emplace_back(first, end);
      const auto& starts = starts_.back();
      if (end == first + row.numel() || starts.empty() || starts.front() != 0 || starts.back() >= length() ||
          std::ranges::adjacent_find(starts, std::greater_equal()) != starts.end())
        return false;
    }
    return true;
  }

  Attended decode_row(const Inputs& in) {
    const int64_t keys = in.k.size(2), batch = in.k.size(0);
    if (starts_.empty()) starts_.assign(size_t(batch), {0});
    const auto allowed = dhsa_.candidates(in, 1);
    std::vector<at::Tensor> lists;
    for (int64_t b = 0; b < batch; ++b) {
      std::vector<int64_t> cuts = starts_[size_t(b)];
      const int64_t open = cuts.back();
      const at::Tensor k = in.k.narrow(0, b, 1);
      if (std::ssize(closed_) == b)
        closed_.push_back(cuts.size() > 1 ? dhsa_.pool(k.narrow(2, 0, open), cuts) : at::Tensor());
      at::Tensor chunks = dhsa_.pool(k.narrow(2, open, keys - open), std::array<int64_t, 2>{0, keys - open});
      if (closed_[size_t(b)].defined()) chunks = at::cat({closed_[size_t(b)], chunks}, 2);
      cuts.push_back(keys);
      const at::Tensor scores = ops::score_blocks(in.q.narrow(0, b, 1), chunks, std::array<int64_t, 2>{0, 1},
                                                  pooling_of(dhsa_.pooling), /*by_group=*/true);
      lists.push_back(ops::select_tokens(scores, cuts, of_sequence(allowed, size_t(b), 1), dhsa_.budget));
    }
    TokenPlan plan{1, joined(std::move(lists)), in.rule};
    const ops::Attended attended = ops::attend(in.q, in.k, in.v, plan, in.score);
    return {attended.out, attended.lse, {{0, 1, std::move(plan)}}};
  }

  Dhsa dhsa_;
  std::vector<std::vector<int64_t>> starts_;  // of the chunks of each batch entry; none: no prompt was read
  std::vector<at::Tensor> closed_;            // [1, 1|Hkv, chunks - 1, D] of each, made when first needed
};

}  // namespace

std::unique_ptr<State> Dhsa::make_state(const StateOptions& options) const {
  validate();
  if (chunks != Chunks::even) return std::make_unique<CutDhsaState>(*this, options);
  return std::make_unique<DhsaState>(*this, options);
}

}  // namespace foveate::attention
