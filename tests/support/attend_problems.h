// Attention problems of every kind with what their rows see, pair by pair, and the check against plain loops in double.
#pragma once

#include <gtest/gtest.h>

#include "foveate/ops/attend/attend.h"
#include "tests/support/arrays.h"
#include "tests/support/compare.h"

namespace foveate::test {

// Every test runs at every level the machine has.
class AttendAtLevel : public testing::TestWithParam<std::string> {
  void SetUp() override { ::setenv("FOVEATE_BACKEND", GetParam().c_str(), 1); }
  void TearDown() override { ::unsetenv("FOVEATE_BACKEND"); }
};

std::vector<std::string> all_levels();

struct Shape {
  int64_t batch = 2, heads = 4, kv_heads = 2, queries = 13, keys = 29, dim = 8, value_dim = 5;
};

struct Problem {
  at::Tensor q, k, v;
  Plan plan;
  ops::Score score;
  Visible visible;
  ops::HeadMap heads = {};
};

at::Tensor longs(std::vector<int64_t> values, at::IntArrayRef shape);

// Visibility by the words of plan.h, one pair at a time.
Visible visible_by(const Rule& rule, const Shape& s);
// Rules of every kind for a shape.
std::vector<Rule> rules(const Shape& s);

Problem make_problem(const Shape& s, Plan plan, Visible visible, uint64_t seed = 1);
Problem rule_problem(const Shape& s, const Rule& rule);
// Block lists with another list for every head of `plan_heads`, some empty, some in the full set.
Problem block_problem(const Shape& s, int64_t plan_heads, int64_t query_block, int64_t key_block, const Rule& rule);
// Token lists with repeats and empty entries.
Problem token_problem(const Shape& s, int64_t plan_heads, int64_t query_block, const Rule& rule);
// Ranges of keys, some empty, some overlapping, some reaching over the ends.
Problem run_problem(const Shape& s, int64_t plan_heads, int64_t query_block, const Rule& rule);
// Sorts the rows of a plan by a random order for each batch and head (or one for all); a row without a query after
// every seventh, and, if `some`, without the last queries.
Rule ordered(const Shape& s, Rule rule, bool by_head, bool some);
// Relative logits of two axes: a map of five columns and a one-dimensional distance.
ops::Relative relative_term(const Shape& s, at::IntArrayRef batch_heads_rows);

OracleScore oracle_score(const Problem& p);

constexpr Bound kDoubleBound{1e-12, 1e-12}, kSingleBound{3e-5, 3e-5};

// Forward and all gradients, through out and lse, at `type`.
void expect_oracle(Problem p, at::ScalarType type, Bound bound);
void expect_oracle_in_both(const Problem& p);  // fp64 and fp32

}  // namespace foveate::test
