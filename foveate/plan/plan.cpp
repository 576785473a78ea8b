#include "foveate/plan/plan.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>

#include "foveate/base/error.h"
#include "foveate/plan/pieces.h"
#include "foveate/plan/row_ranges.h"

namespace foveate {
namespace {

std::string shape_text(const at::Tensor& t) {
  return fmt::format("[{}]", fmt::join(t.sizes().begin(), t.sizes().end(), ", "));
}

void check_order(const std::optional<at::Tensor>& order, int64_t batch, int64_t heads, int64_t queries) {
  if (!order) return;
  const at::Tensor& t = *order;
  require(t.scalar_type() == at::kLong && t.dim() == 3 && (t.size(0) == batch || t.size(0) == 1) &&
              (t.size(1) == heads || t.size(1) == 1),
          "rule: query_order must be int64 [{} or 1, {} or 1, rows], got {} {}", batch, heads,
          c10::toString(t.scalar_type()), shape_text(t));
  const at::Tensor flat = t.contiguous();
  const int64_t* ids = flat.const_data_ptr<int64_t>();
  std::vector<int64_t> seen(size_t(queries), -1);  // by the last list that had the query
  for (int64_t i = 0; i < flat.numel(); ++i) {
    require(ids[i] >= -1 && ids[i] < queries, "rule: query_order must be -1 .. {}, got {}", queries - 1, ids[i]);
    if (ids[i] < 0) continue;
    int64_t& last = seen[size_t(ids[i])];
    require(last != i / t.size(2), "rule: query_order must not hold a query twice, got {} twice", ids[i]);
    last = i / t.size(2);
  }
}

void check_rule(const Rule& rule, const at::Tensor& q, const at::Tensor& k) {
  const int64_t batch = q.size(0), heads = q.size(1), queries = q.size(2), keys = k.size(2);
  constexpr int64_t kFarthest = int64_t{1} << 48;  // positions are added and subtracted: far from overflow
  const auto check_number = [&](std::optional<int64_t> value, std::string_view name, int64_t low) {
    require(value.value_or(0) >= low && value.value_or(0) <= kFarthest, "rule: {} must be {} .. 2^48, got {}", name,
            low, value.value_or(0));
  };
  check_number(rule.window_left, "window_left", 0);
  check_number(rule.window_right, "window_right", 0);
  check_number(rule.query_start, "query_start", -kFarthest);
  require(rule.sinks >= 0, "rule: sinks must be >= 0, got {}", rule.sinks);
  const auto check = [&](const std::optional<at::Tensor>& t, std::string_view name, at::IntArrayRef shape,
                         bool broadcasts) {
    if (!t) return;
    bool fits = t->scalar_type() == at::kLong && t->dim() == int64_t(shape.size());
    for (int64_t axis = 0; fits && axis < t->dim(); ++axis)
      fits = t->size(axis) == shape[axis] || (broadcasts && axis < 2 && t->size(axis) == 1);
    require(fits, "rule: {} must be int64 [{}], got {} {}", name, fmt::join(shape.begin(), shape.end(), ", "),
            c10::toString(t->scalar_type()), shape_text(*t));
  };
  check(rule.head_window, "head_window", {heads}, false);
  check(rule.key_lengths, "key_lengths", {batch}, false);
  check(rule.query_documents, "query_documents", {batch, queries}, false);
  check(rule.key_documents, "key_documents", {batch, keys}, false);
  check(rule.row_start, "row_start", {batch, heads, queries}, true);
  check(rule.row_end, "row_end", {batch, heads, queries}, true);
  check_order(rule.query_order, batch, heads, queries);
  require(rule.query_documents.has_value() == rule.key_documents.has_value(),
          "rule: query_documents and key_documents must come together, got only one");
}

void check_lists(const at::Tensor& index, const at::Tensor* count, int64_t query_block, std::string_view name,
                 int64_t rows, const at::Tensor& q, const at::Tensor& k) {
  const int64_t batch = q.size(0), heads = q.size(1), kv_heads = k.size(1);
  require(query_block >= 1, "plan: query_block must be >= 1, got {}", query_block);
  const int64_t blocks = (rows + query_block - 1) / query_block;
  const auto fits = [&](const at::Tensor& t, int64_t dim) {
    const bool integer = t.scalar_type() == at::kInt || t.scalar_type() == at::kLong;
    return integer && t.dim() == dim && (t.size(0) == batch || t.size(0) == 1) &&
           (t.size(1) == 1 || t.size(1) == kv_heads || t.size(1) == heads) && t.size(2) == blocks;
  };
  require(fits(index, 4), "plan: {} must be integers [{} or 1, one of 1/{}/{}, {}, capacity], got {} {}", name, batch,
          kv_heads, heads, blocks, c10::toString(index.scalar_type()), shape_text(index));
  if (count)
    require(fits(*count, 3) && count->size(0) == index.size(0) && count->size(1) == index.size(1),
            "plan: the count of {} must be integers of its shape without capacity, got {}", name, shape_text(*count));
}

}  // namespace

bool cuts_texts(const Rule& rule) { return rule.key_lengths || rule.key_documents || rule.row_start || rule.row_end; }

const Rule& rule_of(const Plan& plan) {
  if (const auto* blocks = std::get_if<BlockPlan>(&plan)) return blocks->rule;
  if (const auto* tokens = std::get_if<TokenPlan>(&plan)) return tokens->rule;
  if (const auto* runs = std::get_if<RunPlan>(&plan)) return runs->rule;
  return std::get<Rule>(plan);
}

int64_t rows_of(const Plan& plan, const at::Tensor& q) {
  const Rule& rule = rule_of(plan);
  return rule.query_order ? rule.query_order->size(2) : q.size(2);
}

void check_plan(const Plan& plan, const at::Tensor& q, const at::Tensor& k) {
  check_rule(rule_of(plan), q, k);
  const int64_t rows = rows_of(plan, q);
  if (const auto* blocks = std::get_if<BlockPlan>(&plan)) {
    require(blocks->key_block >= 1, "plan: key_block must be >= 1, got {}", blocks->key_block);
    check_lists(blocks->index, &blocks->count, blocks->query_block, "index", rows, q, k);
    require(blocks->full_index.has_value() == blocks->full_count.has_value(),
            "plan: full_index and full_count must come together, got only one");
    if (blocks->full_index)
      check_lists(*blocks->full_index, &*blocks->full_count, blocks->query_block, "full_index", rows, q, k);
  } else if (const auto* tokens = std::get_if<TokenPlan>(&plan)) {
    check_lists(tokens->index, nullptr, tokens->query_block, "index", rows, q, k);
  } else if (const auto* runs = std::get_if<RunPlan>(&plan)) {
    check_lists(runs->start, nullptr, runs->query_block, "start", rows, q, k);
    check_lists(runs->end, nullptr, runs->query_block, "end", rows, q, k);
    require(runs->start.sizes() == runs->end.sizes(), "plan: start and end must have one shape, got {} and {}",
            shape_text(runs->start), shape_text(runs->end));
  }
}

namespace {

// Ranges of single queries under a rule that shows each row one range: counted by their ends, not by pairs.  Unset:
// another plan.
std::optional<double> pairs_of_ranges(const Plan& plan, const at::Tensor& q, const at::Tensor& k) {
  const auto* runs = std::get_if<RunPlan>(&plan);
  if (!runs || runs->query_block != 1 || q.numel() == 0 || runs->rule.query_order) return std::nullopt;
  const RowRanges seen = row_ranges(runs->rule, q.size(2), k.size(2));
  if (!seen.whole) return std::nullopt;
  const auto by_head = [&](const at::Tensor& t) {
    return t.size(1) == 1 ? t : t.repeat_interleave(q.size(1) / t.size(1), 1);
  };
  const at::Tensor begin = at::maximum(by_head(runs->start), seen.start.unsqueeze(3));
  const at::Tensor pairs = (at::minimum(by_head(runs->end), seen.end.unsqueeze(3)) - begin).clamp_min(0);
  return double(pairs.sum().item<int64_t>()) * double(q.size(0) / pairs.size(0)) * double(q.size(1) / pairs.size(1));
}

}  // namespace

double visible_pairs(const Plan& plan, const at::Tensor& q, const at::Tensor& k) {
  check_plan(plan, q, k);
  if (const auto pairs = pairs_of_ranges(plan, q, k)) return *pairs;
  const PieceWalker walker(plan, q, k);
  const int64_t heads = q.size(1), groups = walker.groups();
  double pairs = 0;
  walker.for_each_tile([&](const RowTile& tile) {
    walker.for_each_piece(tile, [&](const Piece& piece) {
      // the mask's axes of length 1 stand for the whole axis
      const int64_t shape[] = {q.size(0), groups, tile.blocks, heads / groups, tile.block_rows, piece.keys};
      double seen = piece.visible.defined() ? double(piece.visible.sum().item<int64_t>()) : 1;
      for (int axis = 0; axis < 6; ++axis)
        if (!piece.visible.defined() || piece.visible.size(axis) == 1) seen *= double(shape[axis]);
      pairs += seen;
    });
  });
  return pairs;
}

}  // namespace foveate
