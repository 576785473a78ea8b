// The grouped softmax of landmark attention against its two-level definition in double, gradients against finite
// differences of that definition.   Source: Mohtashami and Jaggi, 2305.16300, section 3.1.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "tests/support/attend_problems.h"

namespace foveate::ops {
namespace {

using namespace foveate::test;
using at::Tensor;
using test::Problem;

class LandmarksAtLevel : public AttendAtLevel {};
INSTANTIATE_TEST_SUITE_P(Levels, LandmarksAtLevel, testing::ValuesIn(all_levels()),
                         [](const auto& info) { return info.param; });

using Marks = std::vector<std::vector<bool>>;  // [B][Lk]

Marks marks_of(const Tensor& landmarks, int64_t batch) {
  Marks marks(static_cast<size_t>(batch));
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t j = 0; j < landmarks.size(1); ++j)
      marks[size_t(b)].push_back(landmarks[landmarks.size(0) == 1 ? 0 : b][j].item<bool>());
  return marks;
}

// Landmarks strictly before a position.
int64_t block_of(const std::vector<bool>& marks, int64_t position) {
  return std::count(marks.begin(), marks.begin() + std::clamp<int64_t>(position, 0, std::ssize(marks)), true);
}

// One row: the top group is the row's own section and the landmarks of other blocks; a block shares what its landmark
// gets by a softmax of its own.
struct Row {
  std::vector<double> weights;
  double lse = -INFINITY;
};

Row grouped_row(const std::vector<double>& s, const std::vector<bool>& sees, const std::vector<bool>& marks,
                int64_t position) {
  const int64_t own = block_of(marks, position), keys = std::ssize(s);
  std::vector<double> block_sum(size_t(keys) + 1, 0.0);  // of normal tokens
  for (int64_t j = 0; j < keys; ++j)
    if (sees[size_t(j)] && !marks[size_t(j)]) block_sum[size_t(block_of(marks, j))] += std::exp(s[size_t(j)]);
  std::vector<double> share(size_t(keys) + 1, 0.0);
  Row row{std::vector<double>(size_t(keys), 0.0)};
  double total = 0;
  for (int64_t j = 0; j < keys; ++j) {
    if (!sees[size_t(j)]) continue;
    const int64_t block = block_of(marks, j);
    const bool in_top = marks[size_t(j)] ? block != own && block_sum[size_t(block)] > 0 : block == own;
    if (!in_top) continue;
    total += std::exp(s[size_t(j)]);
    if (marks[size_t(j)]) share[size_t(block)] = std::exp(s[size_t(j)]);
  }
  if (total == 0) return row;
  row.lse = std::log(total);
  for (int64_t j = 0; j < keys; ++j) {
    if (!sees[size_t(j)] || marks[size_t(j)]) continue;
    const int64_t block = block_of(marks, j);
    const double e = std::exp(s[size_t(j)]);
    row.weights[size_t(j)] = block == own ? e / total : share[size_t(block)] / total * e / block_sum[size_t(block)];
  }
  return row;
}

OracleResult oracle(const Array& q, const Array& k, const Array& v, const Problem& p, const Marks& marks) {
  const int64_t keys = k.shape[2], start = rule_of(p.plan).query_start.value_or(keys - q.shape[2]);
  OracleResult result{Array(q.shape[0], q.shape[1], q.shape[2], v.shape[3]),
                      Array(q.shape[0], q.shape[1], q.shape[2], 1)};
  for (int64_t b = 0; b < q.shape[0]; ++b)
    for (int64_t h = 0; h < q.shape[1]; ++h)
      for (int64_t i = 0; i < q.shape[2]; ++i) {
        const int64_t head = h * k.shape[1] / q.shape[1];
        std::vector<double> s;
        std::vector<bool> sees;
        for (int64_t j = 0; j < keys; ++j) {
          double dot = 0;
          for (int64_t d = 0; d < q.shape[3]; ++d) dot += q.at(b, h, i, d) * k.at(b, head, j, d);
          s.push_back(dot * p.score.scale.value_or(1 / std::sqrt(double(q.shape[3]))));
          sees.push_back(p.visible(b, h, i, j) > 0);
        }
        const Row row = grouped_row(s, sees, marks[size_t(b)], start + i);
        result.lse.at(b, h, i, 0) = row.lse;
        for (int64_t j = 0; j < keys; ++j)
          for (int64_t d = 0; d < v.shape[3]; ++d)
            result.out.at(b, h, i, d) += row.weights[size_t(j)] * v.at(b, head, j, d);
      }
  return result;
}

double loss(const OracleResult& r, const Array& d_out, const Array& d_lse) {
  double sum = 0;
  for (size_t i = 0; i < r.out.data.size(); ++i) sum += r.out.data[i] * d_out.data[i];
  for (size_t i = 0; i < r.lse.data.size(); ++i)
    if (std::isfinite(r.lse.data[i])) sum += r.lse.data[i] * d_lse.data[i];
  return sum;
}

// Every `stride`-th element of the gradient of x.
void expect_differences(Array& x, const Tensor& gradient, int64_t stride, double bound,
                        const std::function<double()>& f) {
  const Array got = to_array(gradient);
  constexpr double kStep = 1e-5;
  for (size_t i = 0; i < x.data.size(); i += size_t(stride)) {
    const double before = x.data[i];
    x.data[i] = before + kStep;
    const double up = f();
    x.data[i] = before - kStep;
    const double down = f();
    x.data[i] = before;
    EXPECT_NEAR(got.data[i], (up - down) / (2 * kStep), bound) << i;
  }
}

void expect_two_levels(Problem p, const Tensor& landmarks, int64_t stride) {
  const Marks marks = marks_of(landmarks, p.q.size(0));
  for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
    for (Tensor* t : {&p.q, &p.k, &p.v}) *t = t->detach().to(type).requires_grad_();
    p.score.landmarks = landmarks;
    const Attended got = attend(p.q, p.k, p.v, p.plan, p.score);
    Array q = to_array(p.q), k = to_array(p.k), v = to_array(p.v);
    const OracleResult want = oracle(q, k, v, p, marks);
    const Bound bound = type == at::kDouble ? Bound{1e-11, 1e-11} : Bound{3e-5, 3e-5};
    EXPECT_TRUE(same(got.out, to_tensor(want.out), bound));
    EXPECT_TRUE(same(got.lse, to_tensor(want.lse).squeeze(3), bound));
    const Tensor d_out = random_tensor(got.out.sizes(), 91, type), d_lse = random_tensor(got.lse.sizes(), 92, type);
    const Tensor seen = got.lse.detach().isfinite();
    ((got.out * d_out).sum() + (got.lse.masked_fill(seen.logical_not(), 0) * d_lse).sum()).backward();
    const Array along_out = to_array(d_out), along_lse = to_array(d_lse.unsqueeze(3));
    const auto f = [&] { return loss(oracle(q, k, v, p, marks), along_out, along_lse); };
    const double near = type == at::kDouble ? 1e-7 : 2e-4;
    expect_differences(q, p.q.grad(), stride, near, f);
    expect_differences(k, p.k.grad(), stride, near, f);
    expect_differences(v, p.v.grad(), stride, near, f);
  }
}

Tensor every(int64_t keys, int64_t block) {
  return at::arange(1, keys + 1, at::kLong).remainder(block).eq(0).unsqueeze(0);
}

TEST_P(LandmarksAtLevel, regular_blocks_equal_the_two_levels) {
  const Shape shape{.batch = 1, .heads = 2, .kv_heads = 1, .queries = 75, .keys = 75, .dim = 4, .value_dim = 3};
  for (const int64_t block : {16, 32, 64}) expect_two_levels(rule_problem(shape, {}), every(75, block), 37);
  const Shape chunk{.batch = 1, .heads = 2, .kv_heads = 1, .queries = 9, .keys = 140, .dim = 4, .value_dim = 3};
  for (const Rule& rule : {Rule{}, Rule{.window_left = 50}, Rule::full(), Rule{.query_start = 150}})
    expect_two_levels(rule_problem(chunk, rule), every(140, 32), 41);
}

TEST_P(LandmarksAtLevel, any_placement_equals_the_two_levels) {  // adjacent ones, none, another for each batch
  const Shape shape{.queries = 12, .keys = 29, .dim = 4, .value_dim = 3};
  Tensor marks = at::zeros({2, 29}, at::kBool);
  for (const int64_t j : {3, 4, 9, 20, 28}) marks[0][j] = true;
  expect_two_levels(rule_problem(shape, {}), marks, 17);
  expect_two_levels(rule_problem(shape, {.window_left = 9}), marks, 29);
  Problem listed = token_problem(shape, 1, 4, {});  // every other key
  auto& plan = std::get<TokenPlan>(listed.plan);
  plan.index = at::arange(0, 29, 2, at::kInt).expand({2, 1, 3, 15}).contiguous();
  listed.visible = [](int64_t, int64_t, int64_t i, int64_t j) { return j % 2 == 0 && j <= 17 + i; };
  expect_two_levels(listed, marks, 29);
}

TEST_P(LandmarksAtLevel, a_landmark_as_large_as_its_block_gives_dense_attention) {
  const Shape shape{.batch = 1, .heads = 1, .kv_heads = 1, .queries = 1, .keys = 33, .dim = 4, .value_dim = 3};
  Problem p = rule_problem(shape, {});
  p.score.scale = 1;
  const Tensor s = (p.q * p.k).sum(-1).squeeze();              // [33]
  const Tensor block = s.narrow(0, 0, 15), q = p.q.squeeze();  // the landmark is key 15
  const Tensor wanted = block.logsumexp(at::IntArrayRef{0}, false) * q / q.square().sum();
  p.k[0][0][15].copy_(wanted);
  const Tensor hidden = at::zeros({1, 1, 1, 33});
  hidden.select(3, 15).fill_(-INFINITY), hidden.select(3, 31).fill_(-INFINITY);
  Tensor marks = at::zeros({1, 33}, at::kBool);
  marks[0][15] = true, marks[0][31] = true;
  Score grouped{.scale = 1.0, .landmarks = marks}, dense{.scale = 1.0, .bias = hidden};
  // the second block has no gate of its own size: leave it out of both
  Rule both = {.row_start = {}, .row_end = {}};
  const Tensor second = at::zeros({1, 1, 1, 33});
  second.narrow(3, 16, 16).fill_(-INFINITY);
  grouped.bias = second, dense.bias = hidden + second;
  const Attended a = attend(p.q, p.k, p.v, both, grouped), b = attend(p.q, p.k, p.v, both, dense);
  EXPECT_TRUE(same(a.out, b.out.to(at::kDouble), {1e-5, 1e-5}));
  EXPECT_TRUE(same(a.lse, b.lse.to(at::kDouble), {1e-5, 1e-5}));
}

TEST_P(LandmarksAtLevel, the_value_of_a_landmark_never_counts) {
  const Shape shape{.batch = 1, .heads = 2, .kv_heads = 1, .queries = 70, .keys = 70, .dim = 4, .value_dim = 3};
  Problem p = rule_problem(shape, {});
  p.score.landmarks = every(70, 16);
  const Tensor want = attend(p.q, p.k, p.v, p.plan, p.score).out;
  p.v.select(2, 15).fill_(NAN), p.v.select(2, 63).fill_(INFINITY);
  for (Tensor* t : {&p.q, &p.k, &p.v}) t->requires_grad_();
  const Tensor got = attend(p.q, p.k, p.v, p.plan, p.score).out;
  EXPECT_TRUE(got.equal(want));
  got.sum().backward();
  EXPECT_TRUE(p.q.grad().isfinite().all().item<bool>());
  EXPECT_TRUE(p.k.grad().isfinite().all().item<bool>());
}

TEST_P(LandmarksAtLevel, go_with_other_terms) {  // the kernels against the definition in fp64
  const Shape shape{.batch = 2, .heads = 4, .kv_heads = 2, .queries = 200, .keys = 230, .dim = 8, .value_dim = 5};
  for (const Problem& plain : {rule_problem(shape, {}), block_problem(shape, 2, 16, 64, {})}) {
    std::vector<std::vector<Tensor>> results;
    for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
      Problem p = plain;
      for (Tensor* t : {&p.q, &p.k, &p.v}) *t = t->detach().to(type).requires_grad_();
      p.score = {
          .soft_cap = 3.0, .bias = random_tensor({1, 4, 1, 230}, 5).requires_grad_(), .leaky = 0.5, .dropout = 0.2};
      p.score.landmarks = every(230, 64);
      const Tensor out = attend(p.q, p.k, p.v, p.plan, p.score).out;
      (out * random_tensor(out.sizes(), 7, type)).sum().backward();
      results.push_back({out, p.q.grad(), p.k.grad(), p.v.grad(), p.score.bias->grad()});
    }
    for (size_t i = 0; i < results[0].size(); ++i)
      EXPECT_TRUE(same(results[1][i], results[0][i].to(at::kDouble), {2e-4, 2e-4})) << i;
  }
}

}  // namespace
}  // namespace foveate::ops
