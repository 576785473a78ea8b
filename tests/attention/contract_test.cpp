// What every mechanism of the list owes its users: dense at full budget, the agreement of its class between prefill,
// chunks and decode, the leak rule, gradients, truncation.
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full_like.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <set>

#include "foveate/attention/dense.h"
#include "foveate/attention/registry.h"
#include "tests/attention/calls.h"
#include "tests/attention/contract_cases.h"
#include "tests/support/compare.h"

namespace foveate::attention {
namespace {

using test::random_tensor;
using test::rows_of;
using test::same;

TEST_P(Contract, equals_dense_when_the_budget_covers_everything) {
  const at::NoGradGuard no_grad;
  const Mechanism full = make_mechanism(parse_spec(GetParam().full));
  for (const Rule& rule : {Rule{}, Rule{.window_left = 11}})
    for (const int64_t length : {1, 7, 40, 301}) {
      Inputs in = make_inputs(full, length, rule);
      Learned parts = in.learned ? *in.learned : Learned{};
      for (const auto& [name, value] : GetParam().full_parts) parts.at(name) = at::full_like(parts.at(name), value);
      if (in.learned) in.learned = &parts;
      const Attended want = Dense{}.attend(in);
      EXPECT_TRUE(same(full.attend(in).out, want.out, {1e-5, 1e-5})) << GetParam().full << " length " << length;
      const auto state = full.make_state({rule});
      EXPECT_TRUE(same(state->decode(in).out, want.out, {1e-5, 1e-5})) << "decode, length " << length;
    }
}

TEST_P(Contract, chunked_prefill_equals_one_prefill_at_multiples) {
  const at::NoGradGuard no_grad;
  const Mechanism m = mechanism();
  const int64_t step = std::max<int64_t>(m.chunk_multiple(), 5), length = 3 * step + 4;
  const Inputs in = make_inputs(m, length);
  const auto whole = m.make_state({}), parts = m.make_state({});
  const at::Tensor want = whole->prefill(in).out;
  std::vector<at::Tensor> outs;
  for (int64_t first = 0; first < length; first += step) {
    Inputs part = rows_of(in, first, std::min(step, length - first));
    part.ends_prompt = first + step >= length;
    outs.push_back(parts->prefill(part).out);
  }
  if (m.kind() != Kind::prompt) {  // plans of chunks end with the chunk
    EXPECT_TRUE(same(at::cat(outs, 2), want, {1e-5, 1e-5}));
  }
  EXPECT_TRUE(same(m.attend(in).out, want, {1e-6, 1e-6})) << "state and stateless prefill differ";
  EXPECT_EQ(parts->length(), length);
}

TEST_P(Contract, decoding_one_by_one_equals_several_at_once) {
  const at::NoGradGuard no_grad;
  const Mechanism m = mechanism();
  const Inputs in = make_inputs(m, 70);
  const auto at_once = m.make_state({}), single = m.make_state({});
  at_once->prefill(rows_of(in, 0, 40));
  single->prefill(rows_of(in, 0, 40));
  const at::Tensor want = at_once->decode(rows_of(in, 40, 30)).out;
  std::vector<at::Tensor> outs;
  for (int64_t row = 40; row < 70; ++row) outs.push_back(single->decode(rows_of(in, row, 1)).out);
  EXPECT_TRUE(same(at::cat(outs, 2), want, {1e-5, 1e-5}));
}

TEST(RowMechanisms, decode_equals_prefill) {
  const at::NoGradGuard no_grad;
  for (const Case& c : cases()) {
    const Mechanism m = make_mechanism(parse_spec(c.spec));
    if (m.kind() != Kind::row) continue;  // decode has a rule of its own
    SCOPED_TRACE(c.spec);
    const Inputs in = make_inputs(m, 90);
    const auto state = m.make_state({});
    std::vector<at::Tensor> outs = {state->prefill(rows_of(in, 0, 20)).out};
    for (int64_t row = 20; row < 90; ++row) outs.push_back(state->decode(rows_of(in, row, 1)).out);
    EXPECT_TRUE(same(at::cat(outs, 2), m.attend(in).out, {1e-5, 1e-5}));
  }
}

// Whether generated rows see all that the model itself shows, as the docs of mechanisms have it.
bool decodes_densely(const Spec& spec) {
  const bool has_option = std::ranges::any_of(spec.options, [](const auto& o) { return o.first == "decode"; });
  if (spec.name == "dhsa" || spec.name == "block_topk") return has_option == (spec.name == "block_topk");
  const std::set<std::string> names = {"dense",          "triangle",    "dhsa_blocks", "xattention",
                                       "vertical_slash", "flexprefill", "hyper"};
  return names.contains(spec.name);
}

TEST_P(Contract, one_row_behind_other_keys_is_a_generated_row_with_and_without_a_state) {
  const at::NoGradGuard no_grad;
  const Mechanism m = mechanism();
  // flux's prompt decides, dhsa's may have cut the keys, hisa reads the hidden states of all keys, cca their queries: a
  // single row knows none of them
  if (std::set<std::string>{"flux", "hisa", "cca"}.contains(m.spec().name)) return;
  if (m.spec().name == "dhsa" && m.kind() == Kind::prompt) return;
  for (const Rule& rule : {Rule{}, Rule{.window_left = 31}}) {
    const Inputs in = make_inputs(m, 90, rule);
    const Inputs last = narrow_rows(in, 89, 1);
    const at::Tensor dense = Dense{}.attend(last).out, got = m.attend(last).out;
    EXPECT_EQ(same(got, dense, {1e-6, 1e-6}), decodes_densely(m.spec())) << "dense at the last row of 90";
    const auto state = m.make_state({.rule = rule});
    state->prefill(rows_of(in, 0, 89));
    EXPECT_TRUE(same(state->decode(rows_of(in, 89, 1)).out, got, {1e-5, 1e-5}));
  }
}

TEST_P(Contract, a_cache_in_8_bits_agrees_with_itself_and_nearly_with_the_models_own) {
  const at::NoGradGuard no_grad;
  const Mechanism m = mechanism();
  const Inputs in = make_inputs(m, 70);
  const StateOptions in_8_bits{.cache = CacheType::q8};
  const auto single = m.make_state(in_8_bits), at_once = m.make_state(in_8_bits), own = m.make_state({});
  const at::Tensor prompt = own->prefill(rows_of(in, 0, 40)).out;
  for (const auto& state : {&single, &at_once}) {
    const at::Tensor out = (*state)->prefill(rows_of(in, 0, 40)).out;
    if (m.kind() == Kind::row) {  // others may keep other keys
      EXPECT_LE((out - prompt).norm().item<double>(), 1.5e-2 * prompt.norm().item<double>());
    }
  }
  const at::Tensor want = at_once->decode(rows_of(in, 40, 30)).out;
  std::vector<at::Tensor> outs;
  for (int64_t row = 40; row < 70; ++row) outs.push_back(single->decode(rows_of(in, row, 1)).out);
  EXPECT_TRUE(same(at::cat(outs, 2), want, {1e-5, 1e-5}));
  own->decode(rows_of(in, 40, 30));
  EXPECT_LT(single->bytes(), own->bytes());
  if (m.kind() != Kind::row) return;
  const auto prefilled = m.make_state(in_8_bits);
  EXPECT_TRUE(same(prefilled->prefill(in).out.narrow(2, 40, 30), want, {1e-5, 1e-5}));
}

TEST_P(Contract, a_saved_state_goes_on_with_the_same_bits) {
  const at::NoGradGuard no_grad;
  const Mechanism m = mechanism();
  const Inputs in = make_inputs(m, 90);
  for (const CacheType cache : {CacheType::model, CacheType::q8}) {
    const auto state = m.make_state({.cache = cache}), other = m.make_state({.cache = cache});
    state->prefill(rows_of(in, 0, 40));
    for (int64_t row = 40; row < 60; ++row) state->decode(rows_of(in, row, 1));
    other->load(state->save());
    EXPECT_EQ(other->length(), 60);
    for (int64_t row = 60; row < 90; ++row) {
      const at::Tensor want = state->decode(rows_of(in, row, 1)).out;
      ASSERT_TRUE(other->decode(rows_of(in, row, 1)).out.equal(want)) << row;
    }
    const auto wrong = m.make_state({.cache = cache == CacheType::model ? CacheType::q8 : CacheType::model});
    EXPECT_THROW(wrong->load(state->save()), Error);
    State::Snapshot short_of = state->save();  // tokens that later ones see are missing
    for (auto& [part, tensor] : short_of) {
      if (part == "k" || part == "v" || part.ends_with(".k") || part.ends_with(".v")) tensor = tensor.narrow(2, 0, 1);
      if (!part.ends_with("counts")) continue;
      tensor = tensor.clone();
      tensor[1] = tensor[2] = 1;
    }
    EXPECT_THROW(other->load(short_of), Error);
    EXPECT_EQ(other->length(), 0);
  }
}

TEST_P(Contract, a_saved_state_with_a_part_missing_or_cut_is_refused_as_a_whole) {
  const at::NoGradGuard no_grad;
  const Mechanism m = mechanism();
  const Inputs in = make_inputs(m, 62);
  const auto state = m.make_state({}), other = m.make_state({});
  state->prefill(rows_of(in, 0, 60));
  const State::Snapshot whole = state->save();
  const auto expect_refused = [&](const State::Snapshot& snapshot, const std::string& what) {
    EXPECT_THROW(other->load(snapshot), Error) << what;
    EXPECT_EQ(other->length(), 0) << what;
    EXPECT_EQ(other->bytes(), 0) << what;
  };
  for (const auto& [part, tensor] : whole) {
    State::Snapshot damaged = whole;
    damaged.erase(part);
    expect_refused(damaged, part + " missing");
    const bool is_cache = part.ends_with(".k") || part.ends_with(".v") || part == "k" || part == "v";
    for (int64_t axis = 0; axis < tensor.dim() - is_cache; ++axis) {  // their dim is the model's: a session knows it
      damaged[part] = tensor.narrow(axis, 0, tensor.size(axis) - 1);
      expect_refused(damaged, fmt::format("{} cut along {}", part, axis));
    }
  }
  other->load(whole);
  EXPECT_TRUE(other->decode(rows_of(in, 60, 2)).out.equal(state->decode(rows_of(in, 60, 2)).out));
}

TEST_P(Contract, later_tokens_change_no_earlier_row) {
  const at::NoGradGuard no_grad;
  const Mechanism m = mechanism();
  const bool is_prompt = m.kind() == Kind::prompt;  // its plan may see all queries and keys: values alone change
  const int64_t length = 60, unit = m.kind() == Kind::block ? m.chunk_multiple() : 1;
  const Inputs in = make_inputs(m, length);
  const at::Tensor before = m.attend(in).out;
  const int64_t changed = 33;
  Inputs other = in;
  for (at::Tensor* part : {&other.q, &other.k, &other.v}) {
    if (is_prompt && part != &other.v) continue;
    *part = part->clone();
    part->narrow(2, changed, length - changed).add_(3);
  }
  const int64_t safe = changed / unit * unit;  // the selection of a block may see the block's later rows
  const at::Tensor after = m.attend(other).out;
  EXPECT_TRUE(after.narrow(2, 0, safe).equal(before.narrow(2, 0, safe)));
  EXPECT_FALSE(after.narrow(2, changed, 1).equal(before.narrow(2, changed, 1)));
}

TEST_P(Contract, gradients_are_those_of_the_kept_keys) {
  const Mechanism m = mechanism();
  Inputs in = make_inputs(m, 29);
  for (at::Tensor* part : {&in.q, &in.k, &in.v}) *part = part->to(at::kDouble);
  in.hidden = in.hidden->to(at::kDouble);
  Learned parts = in.learned ? *in.learned : Learned{};
  for (auto& [name, part] : parts) part = part.to(at::kDouble);
  if (in.learned) in.learned = &parts;
  const at::Tensor weight = random_tensor({1, kHeads, 29, kDim + 4}, 9).to(at::kDouble);
  test::expect_gradients([&] { return (m.attend(in).out * weight).sum(); }, {in.q, in.k, in.v}, 1e-5, 6);
}

TEST_P(Contract, truncation_forgets_and_rollback_is_kept) {
  const at::NoGradGuard no_grad;
  const Mechanism m = mechanism();
  const Inputs in = make_inputs(m, 120);
  const auto state = m.make_state({.rule = {}, .rollback = 10});
  state->prefill(rows_of(in, 0, 100));
  const at::Tensor want = state->decode(rows_of(in, 100, 10)).out;
  state->truncate(100);
  EXPECT_EQ(state->length(), 100);
  EXPECT_TRUE(same(state->decode(rows_of(in, 100, 10)).out, want, {1e-6, 1e-6}));
  EXPECT_THROW(state->truncate(111), Error);
  EXPECT_THROW(state->truncate(-1), Error);
}

TEST_P(Contract, after_truncation_other_tokens_are_as_the_first_ones_there) {
  const at::NoGradGuard no_grad;
  const Mechanism m = mechanism();
  const Inputs in = make_inputs(m, 60);
  Inputs other = in;  // the same up to token 43
  for (at::Tensor* part : {&other.q, &other.k, &other.v}) {
    *part = part->clone();
    part->narrow(2, 43, 17).neg_();
  }
  const auto state = m.make_state({.rule = {}, .rollback = 20}), fresh = m.make_state({});
  for (const auto& s : {&state, &fresh}) (*s)->prefill(rows_of(in, 0, 40)), (*s)->decode(rows_of(in, 40, 3));
  state->decode(rows_of(in, 43, 17));
  state->truncate(43);
  for (int64_t row = 43; row < 60; ++row) {
    const at::Tensor got = state->decode(rows_of(other, row, 1)).out;
    EXPECT_TRUE(same(got, fresh->decode(rows_of(other, row, 1)).out, {1e-6, 1e-6})) << row;
  }
}

TEST_P(Contract, counts_its_bytes) {
  const at::NoGradGuard no_grad;
  const Mechanism m = mechanism();
  const auto state = m.make_state({});
  EXPECT_EQ(state->bytes(), 0);
  const Inputs in = make_inputs(m, 400);
  state->prefill(rows_of(in, 0, 300));
  for (int64_t row = 300; row < 400; ++row) state->decode(rows_of(in, row, 1));
  const int64_t token = kKvHeads * (kDim + kDim + 4) * 4;
  EXPECT_GE(state->bytes(), state->read_bytes());
  EXPECT_LE(state->read_bytes(), 400 * token);
  EXPECT_GT(state->read_bytes(), 0);
  EXPECT_LE(state->bytes(), 2 * 400 * token);
}

TEST_P(Contract, reads_no_more_than_a_models_own_window_shows) {
  const at::NoGradGuard no_grad;
  const Mechanism m = mechanism();
  const std::set<std::string> others = {"nsa", "hisa", "superlinear", "cca"};  // count what they chose from
  if (others.contains(m.spec().name)) return;
  const Rule rule{.window_left = 2};  // fewer than any of these keeps
  const auto state = m.make_state({.rule = rule}), wide = m.make_state({});
  const Inputs in = make_inputs(m, 200, rule);
  state->prefill(rows_of(in, 0, 200));
  wide->prefill(rows_of(make_inputs(m, 200), 0, 200));
  EXPECT_LT(state->read_bytes(), wide->read_bytes());
}

TEST(PromptMechanisms, keep_no_more_than_a_models_own_window_shows_when_the_prompt_has_ended) {
  const at::NoGradGuard no_grad;
  const StateOptions options{.rule = {.window_left = 31}};
  for (const Case& c : cases()) {
    const Mechanism m = make_mechanism(parse_spec(c.spec));
    if (m.kind() != Kind::prompt || !decodes_densely(m.spec())) continue;
    Inputs in = make_inputs(m, 600, options.rule);
    const auto state = m.make_state(options), dense = Dense{}.make_state(options);
    in.ends_prompt = false;
    state->prefill(rows_of(in, 0, 320));
    EXPECT_EQ(state->save().at("k").size(2), 320) << "the next part's plan counts from the first token";
    in.ends_prompt = true;
    state->prefill(rows_of(in, 320, 280)), dense->prefill(in);
    EXPECT_LE(state->bytes(), dense->bytes()) << c.spec;
  }
}

TEST_P(Contract, plans_cover_every_row) {
  const at::NoGradGuard no_grad;
  const Mechanism m = mechanism();
  const Inputs in = make_inputs(m, 45);
  const Attended attended = m.attend(in);
  int64_t next = 0;
  for (const PlannedRows& part : attended.plans) {
    EXPECT_TRUE(part.first_row == next || part.first_row == 0) << part.first_row;  // more of the same rows, or the next
    next = std::max(next, part.first_row + part.rows);
  }
  EXPECT_EQ(next, 45);
}

TEST_P(Contract, a_batch_of_none_gives_none) {
  const at::NoGradGuard no_grad;
  const Mechanism m = mechanism();
  Inputs in = make_inputs(m, 45);
  for (at::Tensor* part : {&in.q, &in.k, &in.v}) *part = part->narrow(0, 0, 0);
  in.hidden = in.hidden->narrow(0, 0, 0);
  EXPECT_EQ(m.attend(in).out.sizes(), (std::vector<int64_t>{0, kHeads, 45, kDim + 4}));
}

TEST_P(Contract, spec_gives_the_same_mechanism_back) {
  const Mechanism m = mechanism();
  EXPECT_EQ(make_mechanism(m.spec()).spec(), m.spec());
}

TEST_P(Contract, runs_in_every_dtype) {
  const at::NoGradGuard no_grad;
  const Mechanism m = mechanism();
  const Inputs in = make_inputs(m, 33);
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
    Inputs low = in;
    low.q = in.q.to(type), low.k = in.k.to(type), low.v = in.v.to(type);
    const at::Tensor out = m.attend(low).out;
    EXPECT_EQ(out.scalar_type(), type);
    // Selection may differ by a near tie: compare against the same mechanism on the rounded values in fp32.
    Inputs rounded = low;
    rounded.q = low.q.to(at::kFloat), rounded.k = low.k.to(at::kFloat), rounded.v = low.v.to(at::kFloat);
    EXPECT_TRUE(same(out.to(at::kFloat), m.attend(rounded).out, {0.02, 0.02}));
  }
}

INSTANTIATE_TEST_SUITE_P(All, Contract, testing::ValuesIn(cases()), case_name);

TEST(Registry, every_mechanism_is_under_the_contract) {
  for (const MechanismInfo& info : list_mechanisms()) {
    bool is_covered = false;
    for (const Case& c : cases()) is_covered |= parse_spec(c.spec).name == info.name;
    EXPECT_TRUE(is_covered) << info.name << " needs a case";
    EXPECT_FALSE(info.summary.empty());
    for (const OptionInfo& option : info.options) EXPECT_FALSE(option.doc.empty()) << info.name << " " << option.name;
  }
}

TEST(Registry, names_the_known_mechanisms) {
  try {
    make_mechanism({.name = "dnse", .options = {}});
    FAIL();
  } catch (const Error& error) {
    std::string want = "attention: unknown mechanism 'dnse', known:";
    for (const MechanismInfo& info : list_mechanisms()) want += " " + info.name;
    EXPECT_EQ(error.what(), want);
    EXPECT_NE(want.find("known: dense window neighborhood triangle dhsa"), std::string::npos);
  }
}

}  // namespace
}  // namespace foveate::attention
