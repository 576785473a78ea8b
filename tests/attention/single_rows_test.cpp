// Rows that come together give what each of them gives alone: many decoded at once, calls so long that they are made in
// passes.
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <gtest/gtest.h>

#include "foveate/attention/dense.h"
#include "foveate/attention/registry.h"
#include "tests/attention/calls.h"
#include "tests/support/compare.h"

namespace foveate::attention {
namespace {

using test::random_call;
using test::random_tensor;
using test::rows_of;
using test::same;

constexpr int64_t kHeads = 4;
constexpr test::CallShape kShape{.batch = 1, .heads = kHeads, .dim = 16, .value_dim = 20, .type = at::kFloat};

// What goes by row or by key is that of each row, however many are decoded at once.
TEST(DecodedRows, take_their_own_part_of_rule_and_score) {
  const at::NoGradGuard no_grad;
  for (const char* spec : {"quest:page=4,budget=400", "dhsa:budget=400,query_block=8,chunk=4,decode=sparse",
                           "block_topk:block=4,blocks=100", "quest:page=4,budget=12,least_pages=1"}) {
    SCOPED_TRACE(spec);
    const Mechanism m = make_mechanism(parse_spec(spec));
    const Inputs in = random_call(70, 70, kShape);
    Inputs late = rows_of(in, 40, 30);
    const at::Tensor row = at::arange(40, 70, at::kLong);
    late.rule.row_start = row.div(3, "floor").view({1, 1, 30}).contiguous();
    late.rule.row_end = (row + 1 - row.remainder(2)).view({1, 1, 30}).contiguous();
    late.rule.query_documents = row.div(35, "floor").unsqueeze(0);
    late.rule.key_documents = at::arange(70, at::kLong).div(35, "floor").unsqueeze(0);
    late.score.bias = 2 * random_tensor({1, kHeads, 30, 70}, 8);
    const auto at_once = m.make_state({}), single = m.make_state({}), dense = Mechanism(Dense{}).make_state({});
    for (const auto& state : {&at_once, &single, &dense}) (*state)->prefill(rows_of(in, 0, 40));
    const at::Tensor got = at_once->decode(late).out;
    if (spec != std::string_view("quest:page=4,budget=12,least_pages=1")) {
      EXPECT_TRUE(same(got, dense->decode(late).out, {1e-5, 1e-5}));
      continue;
    }
    for (int64_t i = 0; i < 30; ++i) {  // a few pages each: row by row
      Inputs one = rows_of(in, 40 + i, 1);
      for (const auto& [to, from] :
           {std::pair(&one.rule.row_start, &late.rule.row_start), {&one.rule.row_end, &late.rule.row_end}})
        *to = (*from)->narrow(2, i, 1);
      one.rule.query_documents = late.rule.query_documents->narrow(1, i, 1);
      one.rule.key_documents = late.rule.key_documents->narrow(1, 0, 41 + i);
      one.score.bias = late.score.bias->narrow(2, i, 1).narrow(3, 0, 41 + i);
      EXPECT_TRUE(single->decode(one).out.equal(got.narrow(2, i, 1))) << i;
    }
  }
}

// So long that scores are made in several passes: every row is what it is alone.
TEST(LongCalls, rows_of_every_pass_equal_single_rows) {
  const at::NoGradGuard no_grad;
  for (const char* spec :
       {"quest:page=1,budget=3,least_pages=1,rows=each", "block_topk:query_block=1,block=1,blocks=3"}) {
    const Mechanism m = make_mechanism(parse_spec(spec));
    const Inputs in = random_call(1500, 1500, kShape);  // 1500 rows of 1500 scores in 4 heads, 2^21 at a time
    const Attended all = m.attend(in);
    for (int64_t row = 40; row < 1500; row += 17)
      ASSERT_TRUE(same(m.attend(narrow_rows(in, row, 1)).out, all.out.narrow(2, row, 1), {1e-6, 1e-6}))
          << spec << " row " << row;
  }
}

}  // namespace
}  // namespace foveate::attention
