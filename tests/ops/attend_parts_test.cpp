// One softmax over several plans against the merged parts it stands for.
#include "foveate/ops/merge/attend_parts.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include "foveate/base/error.h"
#include "foveate/ops/merge/merge.h"
#include "tests/support/compare.h"

namespace foveate::ops {
namespace {

using at::Tensor;
using test::random_tensor;
using test::same;

struct Problem {
  Tensor q, k, v;
  Score score;
  std::vector<Part> parts;

  explicit Problem(at::ScalarType type) {
    q = random_tensor({2, 4, 7, 8}, 1, type), k = random_tensor({2, 2, 20, 8}, 2, type),
    v = random_tensor({2, 2, 20, 5}, 3, type);
    const auto weights = type == at::kDouble ? at::kDouble : at::kFloat;
    score.bias = random_tensor({1, 4, 1, 20}, 4, type), score.sink = random_tensor({4}, 5, type);
    score.slopes = random_tensor({4}, 6, type).abs(), score.soft_cap = 3;
    Rule some = Rule::full();
    some.query_order = at::tensor({5, 1, -1, 3}, at::kLong).view({1, 1, 4});
    parts.push_back({Rule{}, {}, {}});
    parts.push_back({TokenPlan{2, at::tensor({1, 1, 7, 19, -1, 4}, at::kInt).view({1, 1, 2, 3}), some},
                     random_tensor({1, 1, 7}, 7, weights),
                     {}});
    parts.push_back(
        {Rule{.window_left = 3}, random_tensor({2, 4, 1}, 8, weights), random_tensor({1, 4, 1, 20}, 9, weights)});
  }
  std::vector<Tensor*> leaves() { return {&q, &k, &v, &*score.bias, &*score.sink, &*score.slopes}; }
};

// The same by merge_by_lse, whose gradients autograd puts together.
Attended merged(const Problem& p) {
  std::vector<Attended> done;
  for (const Part& part : p.parts) {
    Score score = p.score;
    if (!done.empty()) score.sink.reset();
    if (part.key_weight) score.bias = *score.bias + *part.key_weight;
    done.push_back(attend(p.q, p.k, p.v, part.plan, score));
    if (part.row_weight) done.back().lse = done.back().lse + *part.row_weight;
  }
  return merge_by_lse(done);
}

std::vector<Tensor> results(Problem& p, const std::function<Attended()>& run) {
  for (Tensor* t : p.leaves()) *t = t->detach().requires_grad_();
  const Attended a = run();
  const Tensor d_out = random_tensor({2, 4, 7, 5}, 10), d_lse = random_tensor({2, 4, 7}, 11);
  ((a.out * d_out).sum() + (a.lse * d_lse).sum()).backward();
  std::vector<Tensor> all = {a.out, a.lse};
  for (Tensor* t : p.leaves()) all.push_back(t->grad());
  return all;
}

TEST(AttendParts, equals_merged_parts_with_all_gradients) {
  for (const auto& [type, unit] : {std::pair(at::kDouble, 1e-12), {at::kFloat, 2e-5}, {at::kBFloat16, 3e-2}}) {
    Problem p(type);
    const auto want = results(p, [&] { return merged(p); });
    const auto got = results(p, [&] { return attend_parts(p.q, p.k, p.v, p.parts, p.score); });
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_TRUE(same(got[i], want[i], {unit, unit})) << c10::toString(type) << " " << i;
      EXPECT_EQ(got[i].scalar_type(), want[i].scalar_type());
    }
  }
}

TEST(AttendParts, one_part_is_attend_and_no_key_is_nothing) {
  Problem p(at::kFloat);
  const Attended one = attend_parts(p.q, p.k, p.v, std::span(p.parts).first(1), p.score),
                 want = attend(p.q, p.k, p.v, Rule{}, p.score);
  EXPECT_TRUE(one.out.equal(want.out) && one.lse.equal(want.lse));
  const Part nothing{Rule{.key_lengths = at::tensor({0, 0}, at::kLong)}, {}, {}};
  const Attended none = attend_parts(p.q, p.k, p.v, std::vector{nothing, nothing}, {});
  EXPECT_TRUE(none.out.eq(0).all().item<bool>());
  EXPECT_TRUE(none.lse.isinf().all().item<bool>());
  EXPECT_THROW(attend_parts(p.q, p.k, p.v, {}, {}), Error);
}

}  // namespace
}  // namespace foveate::ops
