// Errors against fp64 are at most twice those of torch's own attention, at every level and dtype, on easy and hard
// inputs.
#include "tests/support/accuracy.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>

#include <cmath>

namespace foveate::ops {
namespace {

using namespace foveate::test;
using at::Tensor;

class AccuracyAtLevel : public AttendAtLevel {};
INSTANTIATE_TEST_SUITE_P(Levels, AccuracyAtLevel, testing::ValuesIn(all_levels()),
                         [](const auto& info) { return info.param; });

std::vector<AccuracyInputs> all_inputs() {
  const auto random = [](uint64_t seed, double scale) {
    return random_tensor({2, 2, 130, 32}, seed, at::kDouble) * scale;
  };
  std::vector<AccuracyInputs> all;
  const auto add = [&](const std::string& name, double q_scale, double v_scale) -> AccuracyInputs& {
    const auto seed = uint64_t(10 * all.size());
    all.push_back({name, random(seed, q_scale), random(seed + 1, 1), random(seed + 2, v_scale), random(seed + 3, 1)});
    return all.back();
  };
  add("random", 1, 1);
  add("peaky", 8, 1);
  add("one huge logit", 1, 1).k.select(2, 3).mul_(300);
  add("all equal", 0, 1);
  add("small values", 1, 1e-3);
  add("denormals", 1e-20, 1).k.mul_(1e-20);
  add("large mean", 1, 1).v.add_(100);
  return all;
}

TEST_P(AccuracyAtLevel, is_within_twice_the_error_of_torchs_attention) {
  for (const AccuracyInputs& x : all_inputs()) expect_accuracy_of_torch(x);
}

TEST_P(AccuracyAtLevel, invisible_nan_changes_no_bit) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const AccuracyInputs x = all_inputs()[0];
    Tensor k = x.k.to(type), v = x.v.to(type);
    const Rule rule{.key_lengths = longs({90, 130}, {2})};
    const Tensor want = attend(x.q.to(type), k, v, rule).out;
    k[0].narrow(1, 90, 40).fill_(NAN), v[0].narrow(1, 90, 40).fill_(NAN);
    EXPECT_TRUE(attend(x.q.to(type), k, v, rule).out.equal(want));
  }
}

}  // namespace
}  // namespace foveate::ops
