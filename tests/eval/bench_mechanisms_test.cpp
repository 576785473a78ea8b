#include "foveate/eval/bench_mechanisms.h"

#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <cmath>

#include "foveate/base/error.h"
#include "foveate/eval/relative_error.h"

namespace foveate::eval {
namespace {

TEST(BenchMechanisms, n_is_the_length_and_its_parts) {
  EXPECT_EQ(spec_at("dhsa:budget=n/16,chunk=8", 8192), "dhsa:budget=512,chunk=8");
  EXPECT_EQ(spec_at("flux:cheap=(window:size=n),x=n/2", 100), "flux:cheap=(window:size=100),x=50");
  EXPECT_EQ(spec_at("a:b=none,c=nm,d=16", 100), "a:b=none,c=nm,d=16");
  EXPECT_THROW(spec_at("a:b=n/101", 100), Error);
  EXPECT_THROW(spec_at("a:b=n/0", 100), Error);
}

TEST(BenchMechanisms, full_budget_keeps_the_other_options) {
  EXPECT_EQ(full_spec("dense"), "dense");
  EXPECT_EQ(full_spec("window:size=64,sinks=2"), "window:sinks=2,size=n");
  EXPECT_EQ(full_spec("dhsa_blocks"), "dhsa_blocks:density=1");
}

TEST(BenchMechanisms, every_mechanism_has_a_default_that_can_be_made) {
  for (const attention::MechanismInfo& info : attention::list_mechanisms()) {
    EXPECT_NO_THROW(attention::make_mechanism(parse_spec(spec_at(sparse_spec(info.name), 32768)))) << info.name;
    if (const auto full = full_spec(sparse_spec(info.name))) {
      EXPECT_NO_THROW(attention::make_mechanism(parse_spec(spec_at(*full, 32768)))) << *full;
    }
  }
}

TEST(BenchMechanisms, checks_times_and_counts) {
  std::vector<MechanismTiming> timings;
  const MechanismBenchOptions options{.attention = {"dense", "window:size=n/16,sinks=0", "dhsa:budget=n/16"},
                                      .lengths = {512, 6128},
                                      .type = at::kFloat,
                                      .repeats = 1,
                                      .decoded = 2};
  bench_mechanisms(options, [&](const MechanismTiming& t) { timings.push_back(t); });
  ASSERT_EQ(timings.size(), 6u);
  EXPECT_EQ(timings[0].density, 1);
  EXPECT_NEAR(timings[0].kept_mass.value(), 1, 1e-5);
  EXPECT_EQ(timings[0].decode_read, 1);
  const double keys = 32 * 33 / 2 + (512 - 32) * 32;  // of a window of 32
  EXPECT_DOUBLE_EQ(timings[1].density, keys / (512 * 513 / 2));
  EXPECT_EQ(timings[1].attention, "window:size=32,sinks=0");
  EXPECT_LT(timings[1].kept_mass.value(), 0.9);
  EXPECT_LT(timings[1].full_error, 1e-4);
  EXPECT_GT(timings[1].prefill_seconds, 0);
  EXPECT_GT(timings[1].sdpa_decode_seconds, 0);
  EXPECT_NE(timings[2].error.find("budget"), std::string::npos);  // its forced tokens do not fit: said, not timed
  EXPECT_EQ(timings[2].density, 0);
  EXPECT_EQ(timings[5].error, "");  // 383 keys do
  EXPECT_LT(timings[5].density, 0.13);
}

TEST(BenchMechanisms, says_where_a_full_budget_is_not_dense) {
  std::vector<MechanismTiming> timings;
  bench_mechanisms({.attention = {"flux:full=(window:size=8)"},
                    .lengths = {256},
                    .type = at::kFloat,
                    .repeats = 1,
                    .decoded = 1,
                    .peers = false},
                   [&](const MechanismTiming& t) { timings.push_back(t); });
  ASSERT_EQ(timings.size(), 1u);
  EXPECT_NE(timings[0].error.find("must equal dense at 256 tokens"), std::string::npos) << timings[0].error;
  EXPECT_EQ(timings[0].density, 0);
}

TEST(RelativeError, is_a_ratio_of_norms_and_never_lost_in_a_maximum) {
  const at::Tensor want = at::tensor({3.0, 0.0, 4.0});
  EXPECT_NEAR(relative_error(at::tensor({3.0, 1.0, 4.0}), want), 0.2, 1e-7);
  EXPECT_EQ(relative_error(want, want), 0);
  for (const double bad : {double(NAN), double(INFINITY)}) {
    EXPECT_EQ(std::max(0.0, relative_error(at::tensor({3.0, bad, 4.0}), want)), INFINITY);
    EXPECT_EQ(std::max(0.0, relative_error(want, at::tensor({3.0, bad, 4.0}))), INFINITY);
  }
}

TEST(BenchMechanisms, refuses_before_anything_runs) {
  const auto none = [](const MechanismTiming&) { FAIL(); };
  EXPECT_THROW(bench_mechanisms({.attention = {"dens"}}, none), Error);
  EXPECT_THROW(bench_mechanisms({.attention = {"dhsa:bugdet=4"}}, none), Error);
  EXPECT_THROW(bench_mechanisms({.lengths = {1}}, none), Error);
  EXPECT_THROW(bench_mechanisms({.repeats = 0}, none), Error);
}

}  // namespace
}  // namespace foveate::eval
