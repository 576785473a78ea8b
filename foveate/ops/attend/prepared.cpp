#include "foveate/ops/attend/prepared.h"

#include <ATen/TensorOperators.h>

#include <algorithm>
#include <limits>

#include "foveate/base/random.h"
#include "foveate/ops/attend/storage.h"

namespace foveate::ops {

using at::Tensor;
using kernels::DType;

DType dtype_of(const Tensor& t) {
  if (t.scalar_type() == at::kBFloat16) return DType::bf16;
  if (t.scalar_type() == at::kByte) return DType::q8;
  return t.scalar_type() == at::kHalf ? DType::f16 : DType::f32;
}

Tensor readable(const Tensor& t) { return t.stride(3) == 1 || t.size(3) == 1 ? t : t.contiguous(); }

Tensor empty_rows(const Tensor& like, const c10::SymInt& dim) { return empty_rows(like, dim, like.scalar_type()); }

Tensor empty_rows(const Tensor& like, const c10::SymInt& dim, at::ScalarType type) {
  const auto b = like.sym_size(0), h = like.sym_size(1), n = like.sym_size(2);
  const auto options = like.options().dtype(type);
  if (like.sym_stride(1) < like.sym_stride(2)) return like.new_empty_symint({b, n, h, dim}, options).transpose(1, 2);
  return like.new_empty_symint({b, h, n, dim}, options);
}

kernels::View view_of(const Tensor& t) { return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2)}; }

int64_t landmark_block(const Problem& p) {
  const auto* blocks = std::get_if<BlockPlan>(&p.plan);
  if (!std::holds_alternative<Rule>(p.plan) && !(blocks && blocks->key_block % kernels::kPanelKeys == 0)) return 0;
  const Tensor marks = p.score.landmarks->contiguous();
  const auto closes = [&](int64_t block) {
    const bool* mark = marks.const_data_ptr<bool>();
    for (int64_t b = 0; b < marks.size(0); ++b)
      for (int64_t key = 1; key <= marks.size(1); ++key, ++mark)
        if (*mark != ((key & (block - 1)) == 0)) return false;
    return true;
  };
  for (const int64_t block : {16, 32, 64})
    if (closes(block)) return block;
  return 0;
}

Prepared::Prepared(const Problem& p) {
  auto& a = arguments;
  const Tensor q = keep(readable(p.q)), k = keep(readable(p.k)), v = keep(readable(p.v));
  const Problem shapes = shaped(p);
  a.type = dtype_of(q), a.keys_in_8_bits = dtype_of(k) == DType::q8;
  a.batch = q.size(0), a.heads = q.size(1), a.queries = q.size(2);
  a.kv_heads = k.size(1), a.keys = shapes.k.size(2);
  a.rows = rows_of(p.plan, q);
  if (p.heads.keys) {
    const auto map = [&](const Tensor& heads) { return keep(heads.contiguous()).data_ptr<int64_t>(); };
    a.key_heads = map(*p.heads.keys), a.value_heads = map(p.heads.values.value_or(*p.heads.keys));
  }
  a.dim = int(q.size(3)), a.value_dim = int(shapes.v.size(3));
  a.q = view_of(q), a.k = view_of(k), a.v = view_of(v);
  if (p.pages) {
    a.page_size = k.size(2), a.page_count = p.pages->size(1);
    a.pages = keep(p.pages->clamp(0, std::max<int64_t>(k.size(0) - 1, 0)).contiguous()).data_ptr<int32_t>();
  }
  set_rule(rule_of(p.plan));
  if (const auto* blocks = std::get_if<BlockPlan>(&p.plan)) {
    a.query_block = blocks->query_block, a.key_block = blocks->key_block;
    add_list(blocks->index, &blocks->count, nullptr, true);
    if (blocks->full_index) add_list(*blocks->full_index, &*blocks->full_count, nullptr, false);
  } else if (const auto* tokens = std::get_if<TokenPlan>(&p.plan)) {
    a.query_block = tokens->query_block, a.key_block = 1;
    add_list(tokens->index, nullptr, nullptr, true);
  } else if (const auto* runs = std::get_if<RunPlan>(&p.plan)) {
    a.query_block = runs->query_block, a.key_block = 1;
    add_list(runs->start, nullptr, &runs->end, true);
  }
  if (p.score.landmarks) a.score.landmark_block = int(landmark_block(shapes));
  set_score(p.score);
}

const Tensor& Prepared::keep(Tensor t) { return held.emplace_back(std::move(t)); }

void Prepared::set_rule(const Rule& rule) {
  kernels::RuleView& r = arguments.rule;
  r.query_start = rule.query_start.value_or(arguments.keys - arguments.queries);
  r.left = rule.window_left.value_or(kernels::kNoLimit);
  r.right = rule.window_right.value_or(kernels::kNoLimit);
  r.sinks = rule.sinks;
  const auto longs = [&](const std::optional<Tensor>& t) {
    return t ? keep(t->contiguous()).data_ptr<int64_t>() : nullptr;
  };
  r.head_window = longs(rule.head_window);
  r.key_lengths = longs(rule.key_lengths);
  const auto documents = [&](const std::optional<Tensor>& t) {
    return t ? keep(t->to(at::kInt).contiguous()).data_ptr<int32_t>() : nullptr;
  };
  r.query_documents = documents(rule.query_documents);
  r.key_documents = documents(rule.key_documents);
  const auto numbers = [&](const std::optional<Tensor>& t) -> kernels::RowNumbers {
    if (!t) return {};
    static const int64_t kNothing = 0;
    const Tensor& whole = keep(t->contiguous());
    return {whole.numel() == 0 ? &kNothing : whole.data_ptr<int64_t>(), whole.size(0) == 1 ? 0 : whole.stride(0),
            whole.size(1) == 1 ? 0 : whole.stride(1)};
  };
  arguments.query_order = numbers(rule.query_order);
  r.row_start = numbers(rule.row_start);
  r.row_end = numbers(rule.row_end);
}

void Prepared::add_list(const Tensor& index, const Tensor* count, const Tensor* end, bool checks_rule) {
  const auto ints = [&](const Tensor& t) -> const int32_t* {
    return keep(t.clamp(-1, std::numeric_limits<int32_t>::max()).to(at::kInt).contiguous()).data_ptr<int32_t>();
  };
  kernels::ListView list;
  list.index = ints(index);
  list.count = count ? ints(*count) : nullptr;
  list.end = end ? ints(*end) : nullptr;
  const int64_t blocks = index.size(2);
  list.heads = index.size(1), list.capacity = index.size(3);
  list.batch = index.size(0) == 1 ? 0 : index.size(1) * blocks;
  list.head = index.size(1) == 1 ? 0 : blocks;
  list.checks_rule = checks_rule;
  arguments.lists.push_back(list);
}

const float* Prepared::floats(const Tensor& t) {
  return keep(t.detach().to(at::kFloat).contiguous()).data_ptr<float>();
}

void Prepared::set_score(const Score& score) {
  auto& s = arguments.score;
  s.scale = float(score.scale_of(arguments.dim));
  s.soft_cap = float(score.soft_cap.value_or(0));
  s.leaky = float(score.leaky.value_or(1));
  s.drop_below = dropout_threshold(score.dropout);
  s.keep_scale = float(1 / (1 - score.dropout));
  if (score.dropout > 0) arguments.dropout_seed = score.seed();
  if (score.bias) {
    const Tensor& bias = keep(score.bias->scalar_type() == at::kDouble ? score.bias->to(at::kFloat) : *score.bias);
    const auto stride = [&](int axis) { return bias.size(axis) == 1 ? 0 : bias.stride(axis); };
    s.bias = static_cast<const char*>(bias.data_ptr());
    s.bias_type = dtype_of(bias);
    arguments.bias_batch = stride(0), s.bias_head = stride(1), s.bias_query = stride(2), s.bias_key = stride(3);
  }
  if (score.slopes) s.slopes = floats(*score.slopes);
  if (score.relative) set_relative(*score.relative);
  if (score.sink) arguments.sink = floats(*score.sink);
}

void Prepared::set_relative(const Relative& relative) {
  auto& r = arguments.score.relative;
  constexpr int64_t kFar = int64_t{1} << 30;  // columns are clamped: beyond, all offsets are alike
  const auto ints = [&](const Tensor& t) {
    return keep(t.clamp(-kFar + 1, kFar - 1).to(at::kInt).contiguous()).data_ptr<int32_t>();
  };
  const Tensor& logits = relative.logits;
  const int64_t columns = logits.size(3), rows = logits.size(2) * columns;
  r.logits = floats(logits);
  r.query = logits.size(2) == 1 ? 0 : columns;
  r.head = logits.size(1) == 1 ? 0 : rows;
  arguments.relative_batch = logits.size(0) == 1 ? 0 : logits.size(1) * rows;
  r.axes = int(relative.sizes.size()), r.columns = int(columns);
  std::copy(relative.sizes.begin(), relative.sizes.end(), r.sizes);
  r.queries = ints(relative.queries), r.keys = ints(relative.keys);
  r.query_stride = arguments.queries, r.key_stride = arguments.keys;
}

}  // namespace foveate::ops
