#include "tests/support/attend_problems.h"

#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <numeric>

#include "foveate/kernels/level.h"

namespace foveate::test {

using at::Tensor;

std::vector<std::string> all_levels() {
  std::vector<std::string> names = {"definition"};
  for (const kernels::Table* table : kernels::levels()) names.emplace_back(table->name);
  return names;
}

Tensor longs(std::vector<int64_t> values, at::IntArrayRef shape) { return at::tensor(values, at::kLong).view(shape); }

namespace {

// Which row of the plan a query is, -1 none.
std::function<int64_t(int64_t, int64_t, int64_t)> row_of(const Shape& s, const Rule& rule) {
  if (!rule.query_order) return [](int64_t, int64_t, int64_t i) { return i; };
  const Tensor order = rule.query_order->contiguous();
  const int64_t heads = order.size(1), rows = order.size(2);
  const bool by_batch = order.size(0) > 1;
  std::vector<std::vector<int64_t>> row(size_t(order.size(0) * heads), std::vector<int64_t>(size_t(s.queries), -1));
  for (int64_t n = 0; n < order.numel(); ++n)
    if (const int64_t query = order.const_data_ptr<int64_t>()[n]; query >= 0)
      row[size_t(n / rows)][size_t(query)] = n % rows;
  return [row, heads, by_batch](int64_t b, int64_t h, int64_t i) {
    return row[size_t((by_batch ? b : 0) * heads + (heads > 1 ? h : 0))][size_t(i)];
  };
}

int64_t plan_rows(const Shape& s, const Rule& rule) { return rule.query_order ? rule.query_order->size(2) : s.queries; }

}  // namespace

// Visibility by the words of rule.h, one pair at a time.
Visible visible_by(const Rule& rule, const Shape& s) {
  return [rule, s, of = row_of(s, rule)](int64_t b, int64_t h, int64_t i, int64_t j) -> int {
    if (of(b, h, i) < 0) return 0;
    const int64_t p = rule.query_start.value_or(s.keys - s.queries) + i;
    const auto row = [&](const Tensor& t) {
      return t[t.size(0) == 1 ? 0 : b][t.size(1) == 1 ? 0 : h][i].item<int64_t>();
    };
    if (rule.window_right && j > p + *rule.window_right) return 0;
    if (rule.window_left && j < p - *rule.window_left && j >= rule.sinks) return 0;
    if (rule.head_window) {
      const int64_t left = (*rule.head_window)[h].item<int64_t>();
      if (left >= 0 && j < p - left && j >= rule.sinks) return 0;
    }
    if (rule.key_lengths && j >= (*rule.key_lengths)[b].item<int64_t>()) return 0;
    if (rule.query_documents &&
        (*rule.query_documents)[b][i].item<int64_t>() != (*rule.key_documents)[b][j].item<int64_t>())
      return 0;
    if (rule.row_start && j < row(*rule.row_start)) return 0;
    if (rule.row_end && j >= row(*rule.row_end)) return 0;
    return 1;
  };
}

Problem make_problem(const Shape& s, Plan plan, Visible visible, uint64_t seed) {
  return {random_tensor({s.batch, s.heads, s.queries, s.dim}, seed),
          random_tensor({s.batch, s.kv_heads, s.keys, s.dim}, seed + 1),
          random_tensor({s.batch, s.kv_heads, s.keys, s.value_dim}, seed + 2),
          std::move(plan),
          {},
          std::move(visible)};
}

Problem rule_problem(const Shape& s, const Rule& rule) { return make_problem(s, rule, visible_by(rule, s)); }

// Block lists with another list for every head of `plan_heads`, some empty, some in the full set.
Problem block_problem(const Shape& s, int64_t plan_heads, int64_t query_block, int64_t key_block, const Rule& rule) {
  const int64_t rows = (plan_rows(s, rule) + query_block - 1) / query_block,
                columns = (s.keys + key_block - 1) / key_block;
  Random random(17);
  std::vector<int64_t> kind(size_t(s.batch * plan_heads * rows * columns));  // 0 none, 1 partial, 2 full
  for (int64_t& k : kind) k = int64_t(random.below(3));
  BlockPlan plan{query_block,
                 key_block,
                 at::zeros({s.batch, plan_heads, rows}, at::kInt),
                 at::full({s.batch, plan_heads, rows, columns}, 7, at::kInt),
                 {},
                 {},
                 rule};
  plan.full_count = plan.count.clone(), plan.full_index = plan.index.clone();
  for (int64_t list = 0; list < s.batch * plan_heads * rows; ++list)
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t k = kind[size_t(list * columns + c)];
      if (k == 0) continue;
      int32_t* count = (k == 1 ? plan.count : *plan.full_count).mutable_data_ptr<int32_t>() + list;
      (k == 1 ? plan.index : *plan.full_index).mutable_data_ptr<int32_t>()[list * columns + (*count)++] = int32_t(c);
    }
  const auto by_rule = visible_by(rule, s);
  return make_problem(s, plan, [=, of = row_of(s, rule)](int64_t b, int64_t h, int64_t i, int64_t j) -> int {
    if (of(b, h, i) < 0) return 0;
    const int64_t plan_head = h * plan_heads / s.heads;
    const int64_t k =
        kind[size_t(((b * plan_heads + plan_head) * rows + of(b, h, i) / query_block) * columns + j / key_block)];
    return k == 2 ? 1 : k == 1 ? by_rule(b, h, i, j) : 0;
  });
}

// Token lists with repeats and empty entries.
Problem token_problem(const Shape& s, int64_t plan_heads, int64_t query_block, const Rule& rule) {
  constexpr int64_t kCapacity = 11;
  const int64_t rows = (plan_rows(s, rule) + query_block - 1) / query_block;
  Random random(23);
  TokenPlan plan{query_block, at::zeros({s.batch, plan_heads, rows, kCapacity}, at::kInt), rule};
  int32_t* index = plan.index.mutable_data_ptr<int32_t>();
  for (int64_t i = 0; i < plan.index.numel(); ++i)
    index[i] = random.below(4) == 0 ? -1 : int32_t(random.below(uint64_t(s.keys)));
  const Tensor lists = plan.index;
  const auto by_rule = visible_by(rule, s);
  return make_problem(s, plan, [=, of = row_of(s, rule)](int64_t b, int64_t h, int64_t i, int64_t j) -> int {
    if (of(b, h, i) < 0) return 0;
    const int32_t* list = lists.const_data_ptr<int32_t>() +
                          ((b * plan_heads + h * plan_heads / s.heads) * rows + of(b, h, i) / query_block) * kCapacity;
    return by_rule(b, h, i, j) * int(std::count(list, list + kCapacity, int32_t(j)));
  });
}

Problem run_problem(const Shape& s, int64_t plan_heads, int64_t query_block, const Rule& rule) {
  constexpr int64_t kCapacity = 4;
  const int64_t rows = (plan_rows(s, rule) + query_block - 1) / query_block;
  Random random(29);
  const Tensor start = at::zeros({s.batch, plan_heads, rows, kCapacity}, at::kInt), end = start.clone();
  for (int64_t i = 0; i < start.numel(); ++i) {
    start.mutable_data_ptr<int32_t>()[i] = int32_t(random.below(uint64_t(s.keys + 4))) - 2;
    end.mutable_data_ptr<int32_t>()[i] =
        start.const_data_ptr<int32_t>()[i] + int32_t(random.below(uint64_t(s.keys))) - 3;
  }
  const auto by_rule = visible_by(rule, s);
  return make_problem(s, RunPlan{query_block, start, end, rule},
                      [=, of = row_of(s, rule)](int64_t b, int64_t h, int64_t i, int64_t j) -> int {
                        if (of(b, h, i) < 0) return 0;
                        const int64_t list =
                            ((b * plan_heads + h * plan_heads / s.heads) * rows + of(b, h, i) / query_block) *
                            kCapacity;
                        int times = 0;
                        for (int64_t c = list; c < list + kCapacity; ++c)
                          times += j >= start.const_data_ptr<int32_t>()[c] && j < end.const_data_ptr<int32_t>()[c];
                        return times * by_rule(b, h, i, j);
                      });
}

Rule ordered(const Shape& s, Rule rule, bool by_head, bool some) {
  std::vector<int64_t> all;
  const int64_t lists = by_head ? s.batch * s.heads : 1;
  for (int64_t list = 0; list < lists; ++list) {
    std::vector<int64_t> ids(static_cast<size_t>(s.queries));
    std::iota(ids.begin(), ids.end(), 0);
    Random(uint64_t(list) + 40).shuffle(std::span(ids));
    for (int64_t i = 0; i < s.queries - (some ? s.queries / 3 : 0); ++i) {
      all.push_back(ids[size_t(i)]);
      if (i % 7 == 6) all.push_back(-1);
    }
  }
  rule.query_order = longs(all, {by_head ? s.batch : 1, by_head ? s.heads : 1, std::ssize(all) / lists});
  return rule;
}

OracleScore oracle_score(const Problem& p) {
  OracleScore score{.scale = p.score.scale.value_or(1 / std::sqrt(double(p.q.size(3)))),
                    .soft_cap = p.score.soft_cap,
                    .bias = {},
                    .sink = {}};
  if (p.score.bias) score.bias = to_array(*p.score.bias);
  const auto numbers = [](const Tensor& t) { return to_array(t.reshape({1, 1, 1, -1})).data; };
  if (p.score.sink) score.sink = numbers(*p.score.sink);
  if (p.score.slopes) score.slopes = numbers(*p.score.slopes);
  score.query_start = rule_of(p.plan).query_start.value_or(p.k.size(2) - p.q.size(2));
  const auto head_list = [](const std::optional<Tensor>& t) {
    if (!t) return std::vector<int64_t>();
    return std::vector<int64_t>(t->const_data_ptr<int64_t>(), t->const_data_ptr<int64_t>() + t->numel());
  };
  score.key_heads = head_list(p.heads.keys);
  score.value_heads = head_list(p.heads.values ? p.heads.values : p.heads.keys);
  score.leaky = p.score.leaky.value_or(1);
  if (p.score.relative) score.relative = to_array(p.score.relative->logits);
  for (int64_t axis = 0; p.score.relative && axis < std::ssize(p.score.relative->sizes); ++axis) {
    const auto ids = [&](const Tensor& t) {
      const Tensor row = t[axis].contiguous();
      return std::vector<int64_t>(row.const_data_ptr<int64_t>(), row.const_data_ptr<int64_t>() + row.numel());
    };
    score.axes.push_back(
        {p.score.relative->sizes[size_t(axis)], ids(p.score.relative->queries), ids(p.score.relative->keys)});
  }
  if (p.score.dropout > 0)
    score.keep = [seed = p.score.dropout_seed ? uint64_t(p.score.dropout_seed->item<int64_t>()) : 0,
                  start = score.query_start, share = p.score.dropout](int64_t b, int64_t h, int64_t i, int64_t j) {
      const uint32_t bits = dropout_bits(dropout_row(seed, b, h, start + i), uint32_t(j));
      return bits / 2 < uint32_t(share * 2147483648.0) ? 0 : 1 / (1 - share);
    };
  return score;
}

// Relative logits of two axes: a map of five columns and a one-dimensional distance.
ops::Relative relative_term(const Shape& s, at::IntArrayRef batch_heads_rows) {
  std::vector<int64_t> queries, keys;
  for (int64_t i = 0; i < s.queries; ++i) queries.push_back((i + 3) / 5 - 4);
  for (int64_t i = 0; i < s.queries; ++i) queries.push_back(s.keys - s.queries + i - 6);
  for (int64_t j = 0; j < s.keys; ++j) keys.push_back(j / 5);
  for (int64_t j = 0; j < s.keys; ++j) keys.push_back(j);
  return {random_tensor({batch_heads_rows[0], batch_heads_rows[1], batch_heads_rows[2], 16}, 7),
          longs(queries, {2, s.queries}),
          longs(keys, {2, s.keys}),
          {9, 7}};
}

// Forward and all gradients, through out and lse, at `type`.
void expect_oracle(Problem p, at::ScalarType type, Bound bound) {
  const auto leaf = [&](const Tensor& t) { return t.detach().to(type).clone().requires_grad_(); };
  p.q = leaf(p.q), p.k = leaf(p.k), p.v = leaf(p.v);
  if (p.score.bias) p.score.bias = leaf(*p.score.bias);
  if (p.score.sink) p.score.sink = leaf(*p.score.sink);
  if (p.score.slopes) p.score.slopes = leaf(*p.score.slopes);
  if (p.score.relative) p.score.relative->logits = leaf(p.score.relative->logits);
  const ops::Attended got = ops::attend(p.q, p.k, p.v, p.plan, p.score, p.heads);
  const Tensor d_out = random_tensor(got.out.sizes(), 91, type),
               d_lse = random_tensor(got.lse.sizes(), 92, got.lse.scalar_type());
  const Array q = to_array(p.q), k = to_array(p.k), v = to_array(p.v);
  const OracleResult want = oracle_attention(q, k, v, p.visible, oracle_score(p));
  EXPECT_TRUE(same(got.out, to_tensor(want.out), bound));
  EXPECT_TRUE(same(got.lse, to_tensor(want.lse).squeeze(3), bound));
  const Tensor seen = got.lse.detach().isfinite();
  ((got.out * d_out).to(got.lse.scalar_type()).sum() + (got.lse.masked_fill(seen.logical_not(), 0) * d_lse).sum())
      .backward();
  const Tensor lse_gradient = d_lse.masked_fill(seen.logical_not(), 0);
  const auto wanted = oracle_backward(q, k, v, p.visible, oracle_score(p), to_array(d_out), to_array(lse_gradient));
  EXPECT_TRUE(same(p.q.grad(), to_tensor(wanted.q), bound)) << "dq";
  EXPECT_TRUE(same(p.k.grad(), to_tensor(wanted.k), bound)) << "dk";
  EXPECT_TRUE(same(p.v.grad(), to_tensor(wanted.v), bound)) << "dv";
  if (p.score.bias) {
    EXPECT_TRUE(same(p.score.bias->grad(), to_tensor(wanted.bias), bound)) << "dbias";
  }
  if (p.score.sink) {
    EXPECT_TRUE(same(p.score.sink->grad(), at::tensor(wanted.sink, at::kDouble), bound)) << "dsink";
  }
  if (p.score.slopes) {
    EXPECT_TRUE(same(p.score.slopes->grad(), at::tensor(wanted.slopes, at::kDouble), bound)) << "dslopes";
  }
  if (p.score.relative) {
    EXPECT_TRUE(same(p.score.relative->logits.grad(), to_tensor(wanted.relative), bound)) << "drelative";
  }
}

void expect_oracle_in_both(const Problem& p) {
  expect_oracle(p, at::kDouble, kDoubleBound);
  expect_oracle(p, at::kFloat, kSingleBound);
}

std::vector<Rule> rules(const Shape& s) {
  std::vector<Rule> all = {Rule{},
                           Rule::full(),
                           Rule{.window_left = 4},
                           Rule{.window_left = 3, .window_right = 2},
                           Rule{.query_start = 0},
                           Rule{.query_start = 5, .window_left = 6, .sinks = 2},
                           Rule{.query_start = -4}};
  std::vector<int64_t> windows, documents, key_documents, starts, ends;
  for (int64_t h = 0; h < s.heads; ++h) windows.push_back(h == 1 ? -1 : h * 3);
  all.push_back({.sinks = 1, .head_window = longs(windows, {s.heads})});
  all.push_back({.window_right = std::nullopt, .key_lengths = longs({s.keys - 9, 0}, {s.batch})});
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t j = 0; j < s.keys; ++j) key_documents.push_back((j + 3 * b) / 10);
    for (int64_t i = 0; i < s.queries; ++i) documents.push_back((s.keys - s.queries + i + 3 * b) / 10);
  }
  all.push_back({.query_documents = longs(documents, {s.batch, s.queries}),
                 .key_documents = longs(key_documents, {s.batch, s.keys})});
  for (int64_t n = 0; n < s.heads * s.queries; ++n) starts.push_back(n % 7), ends.push_back(5 + n % 23);
  all.push_back({.window_right = std::nullopt,
                 .row_start = longs(starts, {1, s.heads, s.queries}),
                 .row_end = longs(ends, {1, s.heads, s.queries})});
  return all;
}

}  // namespace foveate::test
