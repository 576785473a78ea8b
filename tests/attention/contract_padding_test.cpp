// What every mechanism owes texts between padding, texts of a batch and packed documents: nothing of the others.
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "tests/attention/calls.h"
#include "tests/attention/contract_cases.h"
#include "tests/support/compare.h"

namespace foveate::attention {
namespace {

using test::rows_of;
using test::same;

class PaddingContract : public Contract {};

bool takes_padding(const Mechanism& m) { return m.spec().name != "hyper"; }

// `before` tokens in front of the call and `behind` after it, NaN wherever attention must not look.
Inputs padded(const Inputs& in, int64_t before, int64_t behind) {
  Inputs out = in;
  for (auto [from, to] : {std::pair{&in.q, &out.q}, {&in.k, &out.k}, {&in.v, &out.v}})
    *to = at::constant_pad_nd(*from, {0, 0, before, behind}, from == &in.q ? 0.0 : NAN);
  out.hidden = at::constant_pad_nd(*in.hidden, {0, 0, before, behind});
  return out;
}

TEST_P(PaddingContract, a_text_between_padding_gives_the_same_rows) {
  const at::NoGradGuard no_grad;
  const Mechanism m = mechanism();
  constexpr int64_t kLength = 70, kPadding = 240, kRows = kLength + kPadding;  // whole blocks of all cases
  if (!takes_padding(m)) {
    Inputs in = make_inputs(m, kLength);
    in.rule.row_start = at::zeros({1, 1, kLength}, at::kLong);
    EXPECT_THROW(m.attend(in), Error);
    return;
  }
  for (const std::optional<int64_t> window_left : {std::optional<int64_t>(), std::optional<int64_t>(30)}) {
    const Inputs alone = make_inputs(m, kLength, {.window_left = window_left});
    const at::Tensor want = m.attend(alone).out;
    Inputs in = padded(alone, kPadding, 0);
    in.rule.row_start = at::full({1, 1, kRows}, kPadding, at::kLong);
    EXPECT_TRUE(same(m.attend(in).out.narrow(2, kPadding, kLength), want, {1e-4, 1e-4})) << "row_start";
    in.rule.row_start = std::nullopt;
    in.rule.query_documents = at::ones({1, kRows}, at::kLong);
    in.rule.key_documents = at::arange(kRows, at::kLong).ge(kPadding).to(at::kLong).unsqueeze(0);
    EXPECT_TRUE(same(m.attend(in).out.narrow(2, kPadding, kLength), want, {1e-4, 1e-4})) << "documents";
    if (m.kind() == Kind::prompt) continue;  // what follows would be the prompt's end
    in = padded(alone, 0, kPadding);
    in.rule.key_lengths = at::full({1}, kLength, at::kLong);
    const int64_t whole = kLength / m.chunk_multiple() * m.chunk_multiple();  // rows whose block has no padding
    EXPECT_TRUE(same(m.attend(in).out.narrow(2, 0, whole), want.narrow(2, 0, whole), {1e-4, 1e-4})) << "key_lengths";
  }
}

// Calls of one mechanism as the sequences of one.
Inputs batched(const Inputs& a, const Inputs& b) {
  Inputs out = a;
  for (const auto part : {&Inputs::q, &Inputs::k, &Inputs::v}) out.*part = at::cat({a.*part, b.*part});
  out.hidden = at::cat({*a.hidden, *b.hidden});
  return out;
}

TEST_P(PaddingContract, sequences_of_a_batch_do_not_know_each_other) {
  const at::NoGradGuard no_grad;
  const Mechanism m = mechanism();
  if (!takes_padding(m)) return;
  constexpr int64_t kLength = 70, kPadding = 240, kRows = kLength + kPadding;
  const Inputs small = make_inputs(m, kLength), large = make_inputs(m, kRows);
  Inputs in = batched(padded(small, kPadding, 0), large);
  in.rule.row_start = at::tensor({kPadding, int64_t{0}}).view({2, 1, 1}).expand({2, 1, kRows});
  const at::Tensor out = m.attend(in).out;
  EXPECT_TRUE(same(out.narrow(0, 0, 1).narrow(2, kPadding, kLength), m.attend(small).out, {1e-4, 1e-4}));
  EXPECT_TRUE(same(out.narrow(0, 1, 1), m.attend(large).out, {1e-4, 1e-4}));
}

TEST_P(PaddingContract, what_stands_in_padding_decides_nothing) {
  const at::NoGradGuard no_grad;
  const Mechanism m = mechanism();
  if (!takes_padding(m)) return;
  constexpr int64_t kLength = 90, kPadding = 13;  // no whole blocks
  const Inputs text = make_inputs(m, kLength);
  Inputs in = padded(text, kPadding, 0), other = in;
  in.rule.row_start = other.rule.row_start = at::full({1, 1, kLength + kPadding}, kPadding, at::kLong);
  for (const auto part : {&Inputs::q, &Inputs::k, &Inputs::v})
    (other.*part).narrow(2, 0, kPadding).fill_(part == &Inputs::q ? -3 : 50);
  const auto rows = [&](const Inputs& call) { return m.attend(call).out.narrow(2, kPadding, kLength); };
  EXPECT_TRUE(same(rows(other), rows(in), {1e-5, 1e-5}));
}

TEST_P(PaddingContract, every_row_of_packed_documents_sees_its_own) {
  const at::NoGradGuard no_grad;
  const Mechanism m = mechanism();
  if (!takes_padding(m)) return;
  constexpr int64_t kFirst = 240, kRows = 310;
  const Inputs both = make_inputs(m, kRows);
  Inputs in = both;
  in.rule.query_documents = in.rule.key_documents = at::arange(kRows, at::kLong).ge(kFirst).to(at::kLong).unsqueeze(0);
  if (m.spec().name == "cca") {  // a call holds one text a sequence
    EXPECT_THROW(m.attend(in), Error);
    return;
  }
  const Attended attended = m.attend(in);
  EXPECT_FALSE(attended.out.eq(0).all(3).any().item<bool>()) << "a row without keys";
  if (m.kind() == Kind::prompt) return;  // the last document's rows choose for all
  for (const auto& [first, count] : {std::pair{int64_t{0}, kFirst}, {kFirst, kRows - kFirst}})
    EXPECT_TRUE(same(attended.out.narrow(2, first, count), m.attend(rows_of(both, first, count)).out, {1e-4, 1e-4}))
        << "document from " << first;
}

INSTANTIATE_TEST_SUITE_P(All, PaddingContract, testing::ValuesIn(cases()), case_name);

}  // namespace
}  // namespace foveate::attention
