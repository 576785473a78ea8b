// attend as a torch operator: schema, CPU, Meta (shapes only) and autograd.  C++ and Python see the same operator.
#include "foveate/ops/attend/attend.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <array>
#include <tuple>

#include "foveate/base/error.h"
#include "foveate/ops/attend/cpu.h"
#include "foveate/ops/attend/explain.h"
#include "foveate/ops/once.h"

namespace foveate::ops {
namespace {

using at::Tensor;
using OptionalTensor = const std::optional<Tensor>&;
using OptionalInt = std::optional<int64_t>;
using OptionalDouble = std::optional<double>;

// The plan and the score as the schema's flat arguments, in its order.
constexpr const char* kSchema =
    "Tensor? bias=None, Tensor? sink=None, float? scale=None, float? soft_cap=None, "
    "Tensor? slopes=None, Tensor? relative=None, Tensor? relative_queries=None, Tensor? relative_keys=None, "
    "int[] relative_sizes=[], float? leaky=None, float dropout=0.0, int dropout_seed=0, "
    "Tensor? landmarks=None, Tensor? key_heads=None, Tensor? value_heads=None, "
    "int? query_start=None, int? window_left=None, int? window_right=None, int sinks=0, Tensor? head_window=None, "
    "Tensor? key_lengths=None, Tensor? query_documents=None, Tensor? key_documents=None, Tensor? row_start=None, "
    "Tensor? row_end=None, int query_block=0, int key_block=0, Tensor? count=None, Tensor? index=None, "
    "Tensor? full_count=None, Tensor? full_index=None, Tensor? run_end=None, Tensor? query_order=None";

Plan make_plan(Rule rule, int64_t query_block, int64_t key_block, OptionalTensor count, OptionalTensor index,
               OptionalTensor full_count, OptionalTensor full_index, OptionalTensor run_end) {
  require(index || (!count && !run_end), "attend: count and run_end need an index, got them alone");
  require(!count || !run_end, "attend: a plan has count or run_end, got both");
  if (!index) return rule;
  if (run_end) return RunPlan{.query_block = query_block, .start = *index, .end = *run_end, .rule = std::move(rule)};
  if (!count) return TokenPlan{.query_block = query_block, .index = *index, .rule = std::move(rule)};
  return BlockPlan{.query_block = query_block,
                   .key_block = key_block,
                   .count = *count,
                   .index = *index,
                   .full_count = full_count,
                   .full_index = full_index,
                   .rule = std::move(rule)};
}

Problem make_problem(const Tensor& q, const Tensor& k, const Tensor& v, OptionalTensor bias, OptionalTensor sink,
                     OptionalDouble scale, OptionalDouble soft_cap, OptionalTensor slopes, OptionalTensor relative,
                     OptionalTensor relative_queries, OptionalTensor relative_keys, at::IntArrayRef relative_sizes,
                     OptionalDouble leaky, double dropout, int64_t dropout_seed, OptionalTensor landmarks,
                     OptionalTensor key_heads, OptionalTensor value_heads, OptionalInt query_start,
                     OptionalInt window_left, OptionalInt window_right, int64_t sinks, OptionalTensor head_window,
                     OptionalTensor key_lengths, OptionalTensor query_documents, OptionalTensor key_documents,
                     OptionalTensor row_start, OptionalTensor row_end, int64_t query_block, int64_t key_block,
                     OptionalTensor count, OptionalTensor index, OptionalTensor full_count, OptionalTensor full_index,
                     OptionalTensor run_end, OptionalTensor query_order) {
  Rule rule{query_start,     window_left,   window_right, sinks,   head_window, key_lengths,
            query_documents, key_documents, row_start,    row_end, query_order};
  Score score{scale, soft_cap, bias, sink, slopes, {}, leaky, landmarks, dropout, dropout_seed};
  require(relative.has_value() == relative_queries.has_value() && relative.has_value() == relative_keys.has_value(),
          "attend: relative, relative_queries and relative_keys must come together, got {}",
          relative.has_value() + relative_queries.has_value() + relative_keys.has_value());
  if (relative) score.relative = Relative{*relative, *relative_queries, *relative_keys, relative_sizes.vec()};
  Plan plan = make_plan(std::move(rule), query_block, key_block, count, index, full_count, full_index, run_end);
  return {q, k, v, std::move(plan), std::move(score), {key_heads, value_heads}, {}};
}

const std::vector<int64_t> kNoSizes;

// The inverse of make_problem; refers to the problem.
auto flatten(const Problem& p) {
  const Rule& r = rule_of(p.plan);
  int64_t query_block = 0, key_block = 0;
  std::optional<Tensor> count, index, full_count, full_index, run_end;
  if (const auto* blocks = std::get_if<BlockPlan>(&p.plan)) {
    query_block = blocks->query_block, key_block = blocks->key_block;
    count = blocks->count, index = blocks->index;
    full_count = blocks->full_count, full_index = blocks->full_index;
  } else if (const auto* tokens = std::get_if<TokenPlan>(&p.plan)) {
    query_block = tokens->query_block, index = tokens->index;
  } else if (const auto* runs = std::get_if<RunPlan>(&p.plan)) {
    query_block = runs->query_block, index = runs->start, run_end = runs->end;
  }
  const Score& s = p.score;
  std::optional<Tensor> relative, relative_queries, relative_keys;
  if (s.relative)
    relative = s.relative->logits, relative_queries = s.relative->queries, relative_keys = s.relative->keys;
  return std::tuple(p.q, p.k, p.v, s.bias, s.sink, s.scale, s.soft_cap, s.slopes, relative, relative_queries,
                    relative_keys, at::IntArrayRef(s.relative ? s.relative->sizes : kNoSizes), s.leaky, s.dropout,
                    s.dropout_seed, s.landmarks, p.heads.keys, p.heads.values, r.query_start, r.window_left,
                    r.window_right, r.sinks, r.head_window, r.key_lengths, r.query_documents, r.key_documents,
                    r.row_start, r.row_end, query_block, key_block, count, index, full_count, full_index, run_end,
                    r.query_order);
}

using Arguments = decltype(flatten(std::declval<Problem>()));
using Forward = std::tuple<Tensor, Tensor>;
using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Mask = std::array<bool, 4>;  // which of bias, sink, slopes, relative

Wanted wanted(const Mask& mask) { return {mask[0], mask[1], mask[2], mask[3]}; }

at::ScalarType lse_type(const Tensor& q) { return q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// The operators' kernels; Flat are the schema's arguments behind q, k, v as C++ types.
template <class... Flat>
struct Kernels {
  static Forward forward(const Tensor& q, const Tensor& k, const Tensor& v, Flat... flat) {
    const Problem problem = make_problem(q, k, v, flat...);
    check_problem(problem);
    const Attended attended = choose(problem, Pass::forward) ? attend_cpu(problem) : attend_definition(problem);
    return {attended.out, attended.lse};
  }

  static Forward forward_meta(const Tensor& q, const Tensor&, const Tensor& v, Flat...) {
    return {q.new_empty_symint({q.sym_size(0), q.sym_size(1), q.sym_size(2), v.sym_size(3)}),
            q.new_empty_symint({q.sym_size(0), q.sym_size(1), q.sym_size(2)}, lse_type(q))};
  }

  static Backward backward(const Tensor& d_out, OptionalTensor d_lse, const Tensor& out, const Tensor& lse,
                           Mask output_mask, const Tensor& q, const Tensor& k, const Tensor& v, Flat... flat) {
    Problem problem = make_problem(q, k, v, flat...);
    problem.wanted = wanted(output_mask);
    check_problem(problem);
    check_gradients(problem, {out, lse}, d_out, d_lse.value_or(Tensor()));
    const auto run = choose(problem, Pass::backward) ? attend_backward_cpu : attend_backward_definition;
    const Gradients g = run(problem, {out, lse}, d_out, d_lse.value_or(Tensor()));
    return {g.q, g.k, g.v, g.bias, g.sink, g.slopes, g.relative};
  }

  static Backward backward_meta(const Tensor&, OptionalTensor, const Tensor&, const Tensor&, Mask output_mask,
                                const Tensor& q, const Tensor& k, const Tensor& v, Flat... flat) {
    const Score score = make_problem(q, k, v, flat...).score;
    const auto like = [&](bool wanted, OptionalTensor t) {
      return wanted && t ? t->new_empty_symint(t->sym_sizes()) : q.new_empty_symint({0}, lse_type(q));
    };
    return {q.new_empty_symint(q.sym_sizes()),
            k.new_empty_symint(k.sym_sizes()),
            v.new_empty_symint(v.sym_sizes()),
            like(output_mask[0], score.bias),
            like(output_mask[1], score.sink),
            like(output_mask[2], score.slopes),
            like(output_mask[3], score.relative ? std::optional(score.relative->logits) : std::nullopt)};
  }

  static Forward call_forward(const Arguments& arguments) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("foveate::attend", "")
                               .typed<Forward(const Tensor&, const Tensor&, const Tensor&, Flat...)>();
    return std::apply([](const auto&... a) { return op.call(a...); }, arguments);
  }

  static Backward call_backward(const Tensor& d_out, OptionalTensor d_lse, const Tensor& out, const Tensor& lse,
                                Mask output_mask, const Arguments& arguments) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("foveate::attend_backward", "")
                               .typed<Backward(const Tensor&, OptionalTensor, const Tensor&, const Tensor&, Mask,
                                               const Tensor&, const Tensor&, const Tensor&, Flat...)>();
    return std::apply([&](const auto&... a) { return op.call(d_out, d_lse, out, lse, output_mask, a...); }, arguments);
  }

  static Forward autograd(const Tensor& q, const Tensor& k, const Tensor& v, Flat... flat);
};

template <class... Flat>
Kernels<Flat...> kernels_of(Problem (*)(const Tensor&, const Tensor&, const Tensor&, Flat...));
using Attend = decltype(kernels_of(make_problem));

// What backward needs of a problem beside the tensors that have gradients.
struct SavedProblem final : torch::CustomClassHolder {
  explicit SavedProblem(Problem p) : problem(std::move(p)) {}
  Problem problem;
};

class AttendGradient : public torch::autograd::Function<AttendGradient> {
 public:
  // The tensors stand apart because they have gradients; `problem` holds them too.
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const Tensor& q,
                                                const Tensor& k, const Tensor& v, OptionalTensor bias,
                                                OptionalTensor sink, OptionalTensor slopes, OptionalTensor relative,
                                                const Problem& problem) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [out, lse] = Attend::call_forward(flatten(problem));
    torch::autograd::variable_list saved = {q, k, v, out, lse};
    for (const auto& term : {bias, sink, slopes, relative}) saved.push_back(term.value_or(Tensor()));
    context->save_for_backward(saved);
    const auto wants = [](OptionalTensor t) { return t && t->requires_grad(); };
    Problem rest = problem;
    rest.wanted = {wants(bias), wants(sink), wants(slopes), wants(relative)};
    set_tensors(rest, torch::autograd::variable_list(saved.size()));
    context->saved_data["problem"] = c10::IValue::make_capsule(c10::make_intrusive<SavedProblem>(std::move(rest)));
    return {out, lse};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    torch::autograd::variable_list inputs = saved;
    inputs.insert(inputs.end(), gradients.begin(), gradients.end());
    return once_differentiable("attend", first_gradients(context, saved, gradients), inputs);
  }

 private:
  static torch::autograd::variable_list first_gradients(torch::autograd::AutogradContext* context,
                                                        const torch::autograd::variable_list& saved,
                                                        const torch::autograd::variable_list& gradients) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto capsule = context->saved_data["problem"].toCapsule();
    Problem problem = static_cast<const SavedProblem&>(*capsule).problem;
    set_tensors(problem, saved);
    const Tensor &out = saved[3], &lse = saved[4];
    const Tensor d_out = gradients[0].defined() ? gradients[0] : at::zeros_like(out);
    const auto d_lse = gradients[1].defined() ? std::optional(gradients[1]) : std::nullopt;
    const Mask mask = {problem.wants_bias(), problem.wants_sink(), problem.wants_slopes(), problem.wants_relative()};
    const auto [d_q, d_k, d_v, d_bias, d_sink, d_slopes, d_relative] =
        Attend::call_backward(d_out, d_lse, out, lse, mask, flatten(problem));
    return {d_q,
            d_k,
            d_v,
            mask[0] ? d_bias : Tensor(),
            mask[1] ? d_sink : Tensor(),
            mask[2] ? d_slopes : Tensor(),
            mask[3] ? d_relative : Tensor(),
            Tensor()};
  }

  // t: q, k, v, out, lse, bias, sink, slopes, relative.
  static void set_tensors(Problem& p, const torch::autograd::variable_list& t) {
    p.q = t[0], p.k = t[1], p.v = t[2];
    if (p.score.bias) p.score.bias = t[5];
    if (p.score.sink) p.score.sink = t[6];
    if (p.score.slopes) p.score.slopes = t[7];
    if (p.score.relative) p.score.relative->logits = t[8];
  }
};

template <class... Flat>
Forward Kernels<Flat...>::autograd(const Tensor& q, const Tensor& k, const Tensor& v, Flat... flat) {
  const Problem problem = make_problem(q, k, v, flat...);
  const Score& s = problem.score;
  const auto relative = s.relative ? std::optional(s.relative->logits) : std::nullopt;
  const auto results = AttendGradient::apply(q, k, v, s.bias, s.sink, s.slopes, relative, problem);
  return {results[0], results[1]};
}

}  // namespace

Attended attend(const Tensor& q, const Tensor& k, const Tensor& v, const Plan& plan, const Score& score,
                const HeadMap& heads) {
  const auto [out, lse] = Attend::call_forward(flatten({q, k, v, plan, score, heads, {}}));
  return {out, lse};
}

TORCH_LIBRARY(foveate, library) {
  const std::string arguments = std::string("Tensor q, Tensor k, Tensor v, ") + kSchema;
  const std::string forward = "attend(" + arguments + ") -> (Tensor out, Tensor lse)";
  const std::string backward =
      "attend_backward(Tensor d_out, Tensor? d_lse, Tensor out, Tensor lse, bool[4] output_mask, " + arguments +
      ") -> (Tensor d_q, Tensor d_k, Tensor d_v, Tensor d_bias, Tensor d_sink, Tensor d_slopes, Tensor d_relative)";
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  library.def(forward.c_str(), tags);
  library.def(backward.c_str(), tags);
}

TORCH_LIBRARY_IMPL(foveate, CPU, library) {
  library.impl("attend", TORCH_FN(Attend::forward));
  library.impl("attend_backward", TORCH_FN(Attend::backward));
}

TORCH_LIBRARY_IMPL(foveate, Meta, library) {
  library.impl("attend", TORCH_FN(Attend::forward_meta));
  library.impl("attend_backward", TORCH_FN(Attend::backward_meta));
}

TORCH_LIBRARY_IMPL(foveate, Autograd, library) { library.impl("attend", TORCH_FN(Attend::autograd)); }

}  // namespace foveate::ops
