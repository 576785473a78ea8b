#include "foveate/attention/sparse/landmark_retrieval.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <limits>

#include "foveate/ops/fused.h"
#include "foveate/ops/merge/merge.h"
#include "foveate/ops/pairs/pair_scores.h"
#include "foveate/ops/select/select.h"
#include "foveate/plan/row_ranges.h"

namespace foveate::attention {

using at::Tensor;

namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();
constexpr int64_t kFewRows = 256;     // that read single keys as they lie
constexpr int64_t kMostLists = 8192;  // top_k for each row; bounds what is held for fetched rows

at::ScalarType wide_type(const Tensor& t) { return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// The call without its first keys, which no row sees.
Inputs without_keys(const Inputs& in, int64_t first) {
  Inputs rest = in;
  const int64_t left = in.k.size(2) - first;
  rest.k = in.k.narrow(2, first, left), rest.v = in.v.narrow(2, first, left);
  rest.rule.query_start = in.rule.query_start.value_or(in.k.size(2) - in.q.size(2)) - first;
  if (in.rule.key_lengths) rest.rule.key_lengths = *in.rule.key_lengths - first;
  if (in.rule.key_documents) rest.rule.key_documents = in.rule.key_documents->narrow(1, first, left);
  if (in.rule.row_start) rest.rule.row_start = (*in.rule.row_start - first).clamp_min_(0);
  if (in.rule.row_end) rest.rule.row_end = (*in.rule.row_end - first).clamp_min_(0);
  return rest;
}

// What the rule shows each of the rows from `position` on, by positions in the text; unset: all before.  first:
// position of the call's first key.  A window reaches keys that left memory.
std::optional<RowRanges> shown_positions(const Inputs& in, int64_t position, int64_t first) {
  Rule rule = in.rule;
  const int64_t rows = in.q.size(2);
  if (!cuts_texts(rule)) {
    if (!rule.window_left && !rule.head_window) return std::nullopt;
    rule.query_start = position;
    return row_ranges(rule, rows, position + rows);
  }
  RowRanges shown = row_ranges(rule, rows, in.k.size(2));
  require(shown.whole, "landmark: every query must see one range of keys, got documents in pieces; use mode=grouped");
  shown.start = shown.start + first, shown.end = shown.end + first;
  return shown;
}

// The softmax over a row's own keys and the blocks it fetched, [B, Hq, n, Dv].
Tensor joined(const ops::Attended& own, const ops::Attended& fetched) {
  const int64_t each = fetched.lse.size(3);
  if (fetched.lse.numel() <= kFewRows && !at::GradMode::is_enabled()) {  // a third of the operators
    const Tensor logits = at::cat({own.lse.unsqueeze(3), fetched.lse}, 3);
    const Tensor sees_nothing = logits.amax(3, true).eq(kMinusInfinity);
    const Tensor weights = at::softmax(logits, 3).masked_fill(sees_nothing, 0);
    const Tensor outs = at::cat({own.out.unsqueeze(3), fetched.out}, 3).to(weights.scalar_type());
    return weights.unsqueeze(3).matmul(outs).squeeze(3).to(own.out.scalar_type());
  }
  std::vector<ops::Attended> parts = {own};
  for (int64_t r = 0; r < each; ++r) parts.push_back({fetched.out.select(3, r), fetched.lse.select(3, r)});
  return ops::merge_by_lse(parts).out;
}

// x [B, Hq, n, ..] of query heads -> [B, Hkv, Hq / Hkv * n, ..]
Tensor by_key_head(const Tensor& x, int64_t key_heads) {
  return x.unflatten(1, {key_heads, x.size(1) / key_heads}).flatten(2, 3);
}

}  // namespace

void LandmarkRetrieval::set(const Tensor& keys, int64_t first) {
  keys_ = keys, first_ = first, count_ = keys.size(2);
  moved_before_ = -1;
}

void LandmarkRetrieval::append(const Tensor& keys) {
  const int64_t added = keys.size(2);
  if (added == 0) return;
  if (!keys_.defined() || count_ + added > keys_.size(2)) {
    const Tensor larger =
        at::empty({keys.size(0), keys.size(1), count_ + added + count_ / 2, keys.size(3)}, keys.options());
    if (keys_.defined()) larger.narrow(2, 0, count_).copy_(keys_.narrow(2, 0, count_));
    keys_ = larger;
  }
  keys_.narrow(2, count_, added).copy_(keys);
  count_ += added;
}

void LandmarkRetrieval::drop_before(int64_t block) {
  const int64_t dropped = block - first_;
  if (dropped <= count_ / 2) return;  // so that dropping costs O(1) for a block
  keys_ = keys_.narrow(2, dropped, count_ - dropped).clone();
  first_ = block, count_ -= dropped;
  moved_before_ = -1;
}

void LandmarkRetrieval::truncate(int64_t end) {
  count_ = std::clamp<int64_t>(end - first_, 0, count_);
  moved_before_ = -1;
}

int64_t LandmarkRetrieval::bytes() const {
  int64_t sum = 0;
  for (const Tensor* t : {&keys_, &moved_, &table_.cos, &table_.sin})
    if (t->defined()) sum += int64_t(t->nbytes());
  return sum;
}

// Of the candidates before a chunk those whose landmarks are held: the others are hidden from all rows, and what is
// left has the same places without them.
int64_t LandmarkRetrieval::held_candidates(int64_t before) const {
  return std::min(options_.candidates(before), before - first_);
}

// Rows of one or more chunks that all fetch, or that all do not.
struct LandmarkRetrieval::Group {
  int64_t position = 0, rows = 0;    // in the text
  std::vector<int64_t> local_start;  // of each row, in the text
  bool fetches = false;
  std::optional<RowRanges> shown;  // by positions in the text; unset: all before
  Tensor blocks;                   // [B, Hq, rows, top_k] int64 numbers of chosen blocks, -1 none
  Tensor moves;                    // the same: by how many blocks each is moved towards the row
};

int64_t LandmarkRetrieval::rows_together(int64_t position, int64_t rows) const {
  const int64_t chunk = options_.chunk_length(), to_cut = chunk - position % chunk;
  const int64_t room = std::max(kMostLists / options_.top_k, to_cut);
  return std::min(rows, to_cut + (room - to_cut) / chunk * chunk);
}

// cos and sin of whole blocks: rotations add up, so one table moves keys later and, turned round, queries earlier.
void LandmarkRetrieval::make_table(const Inputs& in, int64_t blocks) {
  if (table_.cos.defined() && table_.cos.size(0) >= blocks) return;
  const int64_t room = blocks + blocks / 2;
  table_ = in.rotary->rotation(at::arange(0, room, at::kLong) * options_.block, wide_type(in.q));
}

// Landmark keys where a chunk behind `before` blocks scores them, [B, Hkv, candidates, D].
Tensor LandmarkRetrieval::moved(const Inputs& in, int64_t before) {
  if (moved_before_ == before) return moved_;
  const int64_t count = held_candidates(before), latest = count - options_.top_k;
  moved_ = keys_.narrow(2, before - count - first_, count).detach().to(wide_type(in.q));
  if (options_.positions == Landmark::Positions::stingy) {
    // All but the latest top_k at the first place, which is that of the youngest of them.
    make_table(in, count + 1);
    const Tensor moves = (latest - 1 - at::arange(count, at::kLong)).clamp_min_(0);
    moved_ = ops::Rotation{table_.cos.index_select(0, moves), table_.sin.index_select(0, moves)}.rotate(moved_);
  }
  moved_before_ = before;
  return moved_;
}

// scores [B, Hq, n, candidates] -> numbers of the chosen candidates [B, Hq, n, top_k] int32.
Tensor LandmarkRetrieval::best(const Tensor& scores, int64_t key_heads, bool by_row) const {
  const bool over_tokens = options_.select == Landmark::Select::max_over_tokens && !by_row;
  const bool over_heads = options_.select == Landmark::Select::max_over_heads;
  const std::vector<int64_t> full{scores.size(0), scores.size(1), scores.size(2), options_.top_k};
  if (!over_tokens && !over_heads && !options_.share_in_group) return ops::select_top(scores, options_.top_k);
  const Tensor hidden = scores.eq(kMinusInfinity);
  Tensor shares = at::softmax(scores, -1).masked_fill(hidden, kMinusInfinity);
  if (over_tokens) shares = shares.amax(2, true);
  if (over_heads) shares = shares.amax(1, true);
  if (options_.share_in_group && !over_heads) shares = shares.unflatten(1, {key_heads, -1}).amax(2);
  Tensor chosen = ops::select_top(shares, options_.top_k);
  if (options_.share_in_group && !over_heads) chosen = chosen.repeat_interleave(full[1] / key_heads, 1);
  return chosen.expand(full);
}

// Fills the group's blocks and moves.
void LandmarkRetrieval::choose(const Inputs& in, bool by_row, Group& group) {
  const int64_t chunk = options_.chunk_length(), key_heads = in.k.size(1);
  const Tensor q = in.q.detach().to(wide_type(in.q));
  group.blocks = at::empty({q.size(0), q.size(1), group.rows, options_.top_k}, at::kLong);
  group.moves = at::empty_like(group.blocks);
  for (int64_t row = 0; row < group.rows;) {
    const int64_t position = group.position + row, before = options_.blocks_before(position);
    const int64_t rows = std::min(group.rows - row, chunk - position % chunk), count = held_candidates(before);
    Tensor scores = by_key_head(q.narrow(2, row, rows), key_heads).matmul(moved(in, before).transpose(2, 3));
    scores = in.score.capped(scores.unflatten(2, {-1, rows}).flatten(1, 2).mul_(in.score.scale_of(in.q.size(3))));
    if (group.shown) hide(*group.shown, row, before - count, scores);
    const Tensor chosen = best(scores, key_heads, by_row);
    place(chosen, row, count, before - count, group);
    if (group.shown)  // by others: nothing for who does not see the landmark
      group.blocks.narrow(2, row, rows)
          .masked_fill_(scores.gather(3, chosen.to(at::kLong).clamp_min_(0)).eq(kMinusInfinity), -1);
    row += rows;
  }
}

// Makes scores [B, Hq, n, candidates] of rows from `row` on -inf for landmarks that they do not see.
void LandmarkRetrieval::hide(const RowRanges& shown, int64_t row, int64_t oldest, Tensor& scores) const {
  const Tensor landmark = at::arange(oldest + 1, oldest + scores.size(3) + 1, at::kLong) * options_.block - 1;
  const auto of_rows = [&](const Tensor& t) { return t.narrow(2, row, scores.size(2)).unsqueeze(3); };
  scores.masked_fill_(of_rows(shown.start).gt(landmark).logical_or(of_rows(shown.end).le(landmark)), kMinusInfinity);
}

// chosen [B, Hq, n, top_k] of `count` candidates, for the group's rows from `row` on.  Slot of the r-th of the chosen:
// r, one further for the latest top_k; a chunk follows top_k + 1 slots.  Where fewer can be chosen, the first slots
// stay empty.
void LandmarkRetrieval::place(const Tensor& chosen, int64_t row, int64_t count, int64_t oldest, Group& group) const {
  const int64_t each = options_.top_k, latest = count - each, rows = chosen.size(2);
  const Tensor given = chosen.contiguous();
  const int32_t* from = given.const_data_ptr<int32_t>();
  int64_t *blocks = group.blocks.mutable_data_ptr<int64_t>(), *moves = group.moves.mutable_data_ptr<int64_t>();
  for (int64_t list = 0; list < chosen.size(0) * chosen.size(1) * rows; ++list, from += each) {
    const int64_t to = (list / rows * group.rows + row + list % rows) * each;
    const int64_t empty = std::count(from, from + each, -1);
    for (int64_t r = 0; r < each; ++r) {
      const int64_t c = from[r];
      blocks[to + r] = c < 0 ? -1 : c + oldest;
      moves[to + r] = c < 0 ? 0 : empty + r + (c >= latest) - c + latest - 1;
    }
  }
}

// Chunk, unfinished block, and all blocks before where nothing is fetched: the grouped softmax as it is.
ops::Attended LandmarkRetrieval::local_part(const Inputs& in, int64_t first, const Group& group) const {
  const int64_t start = group.local_start.front();
  Inputs near = without_keys(in, start - first);
  if (group.local_start.back() != start) {
    const Tensor starts = (at::tensor(group.local_start, at::kLong) - start).view({1, 1, -1});
    near.rule.row_start = near.rule.row_start ? at::maximum(*near.rule.row_start, starts) : starts;
  }
  near.score.landmarks = regular_landmarks(start, near.k.size(2), options_.block);
  return ops::attend(near.q, near.k, near.v, near.rule, near.score);
}

// What rows see of their blocks' normal tokens, wherever these lie: chosen [B, Hkv, (heads of a group, rows, top_k)].
Rule LandmarkRetrieval::fetched_rule(const Inputs& in, const Group& group, const Tensor& chosen,
                                     const Fetched& from) const {
  Rule rule = Rule::full();
  rule.row_start = (from.places * options_.block).clamp_min(0);
  rule.row_end = *rule.row_start + (options_.block - 1);
  if (!group.shown) return rule;
  const Tensor moved = (from.places - chosen) * options_.block;
  const auto of_lists = [&](const Tensor& t) {
    const Tensor of_rows = t.expand({chosen.size(0), in.q.size(1), group.rows}).unsqueeze(3);
    return by_key_head(of_rows.expand({-1, -1, -1, options_.top_k}), in.k.size(1)).flatten(2) + moved;
  };
  rule.row_start = at::maximum(*rule.row_start, of_lists(group.shown->start));
  rule.row_end = at::minimum(*rule.row_end, of_lists(group.shown->end));
  return rule;
}

// One block for each row, by places [B, Hkv, n].  A few rows list single keys; of many those with one block stand side
// by side.
Plan LandmarkRetrieval::plan_of(const Tensor& places, Rule rule) const {
  const int64_t block = options_.block;
  if (places.size(2) > kFewRows)
    return BlockPlan{1, block, places.ge(0).to(at::kInt), places.to(at::kInt).unsqueeze(3), {}, {}, std::move(rule)};
  const Tensor index = at::empty({places.size(0), places.size(1), places.size(2), block - 1}, at::kInt);
  const Tensor given = places.contiguous();
  const int64_t* place = given.const_data_ptr<int64_t>();
  int32_t* key = index.mutable_data_ptr<int32_t>();
  for (int64_t list = 0; list < places.numel(); ++list)
    for (int64_t u = 0; u < block - 1; ++u) *key++ = place[list] < 0 ? -1 : int32_t(place[list] * block + u);
  return TokenPlan{1, index, std::move(rule)};
}

// Queries where they see their chosen blocks: [B, Hq, rows, top_k, D].
Tensor LandmarkRetrieval::moved_queries(const Tensor& q, const Group& group) const {
  const Tensor each = q.unsqueeze(3).expand({-1, -1, -1, options_.top_k, -1});
  if (options_.positions == Landmark::Positions::text) return each;
  const bool is_fused = ops::can_fuse() && (q.scalar_type() == at::kFloat || q.scalar_type() == at::kBFloat16);
  if (is_fused) return ops::rotated_for_each(q, group.moves, {table_.cos, table_.sin.neg()});
  const Tensor moves = group.moves.flatten();
  const ops::Rotation back{table_.cos.index_select(0, moves), table_.sin.index_select(0, moves).neg_()};
  return back.rotate(each.reshape({1, 1, -1, q.size(3)})).view(each.sizes());
}

// For every chosen block its normal tokens' softmax, and the landmark's logit as its log-sum-exp: [B, Hq, rows, top_k,
// Dv] and [B, Hq, rows, top_k].
ops::Attended LandmarkRetrieval::fetched_parts(const Inputs& in, const Group& group, const Fetch& fetch) {
  const int64_t key_heads = in.k.size(1), each = options_.top_k, repeats = in.q.size(1) / key_heads;
  const Tensor chosen = by_key_head(group.blocks, key_heads).flatten(2);  // [B, Hkv, (heads of a group, rows, each)]
  const Tensor q = moved_queries(in.q, group).reshape({in.q.size(0), key_heads, chosen.size(2), in.q.size(3)});

  const Fetched from = fetch(chosen);
  ops::Score score = in.score;
  score.sink = std::nullopt;  // joins once, with the local part
  const bool needs_rule = group.shown || chosen.size(2) > kFewRows;
  const Plan plan = plan_of(from.places, needs_rule ? fetched_rule(in, group, chosen, from) : Rule::full());
  const ops::Attended parts = ops::attend(q, from.k, from.v, plan, score);
  const Tensor landmarks = (first_ > 0 ? chosen - first_ : chosen).unsqueeze(3);
  Tensor gates =
      score.capped(ops::pair_scores(q, keys_.narrow(2, 0, count_), landmarks, score.scale_of(q.size(3))).squeeze(3));
  if (group.shown)  // else every landmark has keys
    gates = gates.masked_fill(parts.lse.detach().eq(kMinusInfinity), kMinusInfinity);
  const auto by_query = [&](const Tensor& t) { return t.unflatten(2, {repeats, group.rows, each}).flatten(1, 2); };
  return {by_query(parts.out), by_query(gates)};
}

// All that a group's rows see, by positions in the text.
RunPlan LandmarkRetrieval::runs_of(const Inputs& in, const Group& group) const {
  const int64_t block = options_.block, each = group.fetches ? options_.top_k : 0, heads = in.q.size(0) * in.q.size(1);
  RunPlan plan{1, at::empty({in.q.size(0), in.q.size(1), group.rows, each + 1}, at::kInt), {}, in.rule};
  plan.end = at::empty_like(plan.start);
  plan.rule.query_start = group.position;
  const int64_t* blocks = each > 0 ? group.blocks.const_data_ptr<int64_t>() : nullptr;
  int32_t *start = plan.start.mutable_data_ptr<int32_t>(), *end = plan.end.mutable_data_ptr<int32_t>();
  for (int64_t head = 0; head < heads; ++head)
    for (int64_t row = 0; row < group.rows; ++row) {
      for (int64_t r = 0; r < each; ++r, ++blocks)  // -1: an empty range
        *start++ = int32_t(std::max<int64_t>(*blocks, 0) * block), *end++ = int32_t((*blocks + 1) * block);
      *start++ = int32_t(group.local_start[size_t(row)]), *end++ = int32_t(group.position + row + 1);
    }
  return plan;
}

Attended LandmarkRetrieval::attend(const Inputs& in, int64_t first, bool by_row, const Fetch& fetch) {
  const int64_t queries = in.q.size(2), start = in.rule.query_start.value_or(in.k.size(2) - queries);
  Attended attended{.out = {}, .lse = {}, .plans = {}};
  std::vector<Tensor> outs;
  const auto fetches = [&](int64_t position) {
    return options_.candidates(options_.blocks_before(position)) > options_.top_k;
  };
  for (int64_t row = 0; row < queries || outs.empty();) {
    Group group{.position = first + start + row};
    const int64_t most = rows_together(group.position, queries - row);
    group.fetches = queries > 0 && fetches(group.position);
    for (; group.rows < most && fetches(group.position + group.rows) == group.fetches; ++group.rows)
      group.local_start.push_back(std::max(first, options_.local_start(group.position + group.rows)));
    if (group.rows == 0) group.local_start.push_back(first);  // no queries
    const Inputs part = narrow_rows(in, row, group.rows);
    group.shown = shown_positions(part, group.position, first);
    const ops::Attended own = local_part(part, first, group);
    if (group.fetches) choose(part, by_row, group);
    outs.push_back(group.fetches ? joined(own, fetched_parts(part, group, fetch)) : own.out);
    attended.plans.push_back({row, group.rows, runs_of(part, group)});
    row += group.rows;
  }
  attended.out = outs.size() == 1 ? outs[0] : at::cat(outs, 2);
  return attended;
}

}  // namespace foveate::attention
