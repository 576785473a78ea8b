// attend as a torch operator: schema, CPU, Meta (shapes only) and autograd.  C++ and Python see the same operator.
#include "foveate/ops/attend/attend.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <tuple>

#include "foveate/ops/attend/cpu.h"
#include "foveate/ops/attend/explain.h"

namespace foveate::ops {
namespace {

using at::Tensor;
using OptionalTensor = const std::optional<Tensor>&;
using OptionalInt = std::optional<int64_t>;

// The plan and the score as the schema's flat arguments, in its order.
constexpr const char* kSchema =
    "Tensor? bias=None, Tensor? sink=None, float? scale=None, float? soft_cap=None, "
    "int? query_start=None, int? window_left=None, int? window_right=None, int sinks=0, Tensor? head_window=None, "
    "Tensor? key_lengths=None, Tensor? query_documents=None, Tensor? key_documents=None, Tensor? row_start=None, "
    "Tensor? row_end=None, int query_block=0, int key_block=0, Tensor? count=None, Tensor? index=None, "
    "Tensor? full_count=None, Tensor? full_index=None";

Plan make_plan(Rule rule, int64_t query_block, int64_t key_block, OptionalTensor count, OptionalTensor index,
               OptionalTensor full_count, OptionalTensor full_index) {
  if (!index) return rule;
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
                     std::optional<double> scale, std::optional<double> soft_cap, OptionalInt query_start,
                     OptionalInt window_left, OptionalInt window_right, int64_t sinks, OptionalTensor head_window,
                     OptionalTensor key_lengths, OptionalTensor query_documents, OptionalTensor key_documents,
                     OptionalTensor row_start, OptionalTensor row_end, int64_t query_block, int64_t key_block,
                     OptionalTensor count, OptionalTensor index, OptionalTensor full_count, OptionalTensor full_index) {
  Rule rule{query_start, window_left,     window_right,  sinks,     head_window,
            key_lengths, query_documents, key_documents, row_start, row_end};
  return {q, k, v, make_plan(std::move(rule), query_block, key_block, count, index, full_count, full_index),
          Score{scale, soft_cap, bias, sink}};
}

// The inverse of make_problem.
auto flatten(const Problem& p) {
  const Rule& r = rule_of(p.plan);
  int64_t query_block = 0, key_block = 0;
  std::optional<Tensor> count, index, full_count, full_index;
  if (const auto* blocks = std::get_if<BlockPlan>(&p.plan)) {
    query_block = blocks->query_block, key_block = blocks->key_block;
    count = blocks->count, index = blocks->index;
    full_count = blocks->full_count, full_index = blocks->full_index;
  } else if (const auto* tokens = std::get_if<TokenPlan>(&p.plan)) {
    query_block = tokens->query_block, index = tokens->index;
  }
  return std::tuple(p.q, p.k, p.v, p.score.bias, p.score.sink, p.score.scale, p.score.soft_cap, r.query_start,
                    r.window_left, r.window_right, r.sinks, r.head_window, r.key_lengths, r.query_documents,
                    r.key_documents, r.row_start, r.row_end, query_block, key_block, count, index, full_count,
                    full_index);
}

using Arguments = decltype(flatten(std::declval<Problem>()));
using Forward = std::tuple<Tensor, Tensor>;
using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

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
                           bool bias_gradient, const Tensor& q, const Tensor& k, const Tensor& v, Flat... flat) {
    Problem problem = make_problem(q, k, v, flat...);
    problem.bias_gradient = bias_gradient;
    check_problem(problem);
    check_gradients(problem, {out, lse}, d_out, d_lse.value_or(Tensor()));
    const auto run = choose(problem, Pass::backward) ? attend_backward_cpu : attend_backward_definition;
    const Gradients g = run(problem, {out, lse}, d_out, d_lse.value_or(Tensor()));
    return {g.q, g.k, g.v, g.bias, g.sink};
  }

  static Backward backward_meta(const Tensor&, OptionalTensor, const Tensor&, const Tensor&, bool bias_gradient,
                                const Tensor& q, const Tensor& k, const Tensor& v, Flat... flat) {
    const Score score = make_problem(q, k, v, flat...).score;
    const auto like = [&](OptionalTensor t) {
      return t ? t->new_empty_symint(t->sym_sizes()) : q.new_empty_symint({0}, lse_type(q));
    };
    return {q.new_empty_symint(q.sym_sizes()), k.new_empty_symint(k.sym_sizes()), v.new_empty_symint(v.sym_sizes()),
            like(bias_gradient ? score.bias : std::nullopt), like(score.sink)};
  }

  static Forward call_forward(const Arguments& arguments) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("foveate::attend", "")
                               .typed<Forward(const Tensor&, const Tensor&, const Tensor&, Flat...)>();
    return std::apply([](const auto&... a) { return op.call(a...); }, arguments);
  }

  static Backward call_backward(const Tensor& d_out, OptionalTensor d_lse, const Tensor& out, const Tensor& lse,
                                bool bias_gradient, const Arguments& arguments) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("foveate::attend_backward", "")
                               .typed<Backward(const Tensor&, OptionalTensor, const Tensor&, const Tensor&, bool,
                                               const Tensor&, const Tensor&, const Tensor&, Flat...)>();
    return std::apply([&](const auto&... a) { return op.call(d_out, d_lse, out, lse, bias_gradient, a...); },
                      arguments);
  }

  static Forward autograd(const Tensor& q, const Tensor& k, const Tensor& v, Flat... flat);
};

using Attend =
    Kernels<OptionalTensor, OptionalTensor, std::optional<double>, std::optional<double>, OptionalInt, OptionalInt,
            OptionalInt, int64_t, OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor,
            OptionalTensor, int64_t, int64_t, OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor>;

// What backward needs of a problem beside the tensors that have gradients.
struct SavedProblem final : torch::CustomClassHolder {
  explicit SavedProblem(Problem p) : problem(std::move(p)) {}
  Problem problem;
};

class AttendGradient : public torch::autograd::Function<AttendGradient> {
 public:
  // q, k, v, bias, sink stand apart because they have gradients; `problem` holds them too.
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const Tensor& q,
                                                const Tensor& k, const Tensor& v, OptionalTensor bias,
                                                OptionalTensor sink, const Problem& problem) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [out, lse] = Attend::call_forward(flatten(problem));
    context->save_for_backward({q, k, v, bias.value_or(Tensor()), sink.value_or(Tensor()), out, lse});
    Problem rest = problem;
    rest.q = rest.k = rest.v = Tensor();
    rest.bias_gradient = bias && bias->requires_grad();
    if (bias) rest.score.bias = Tensor();
    if (sink) rest.score.sink = Tensor();
    context->saved_data["problem"] = c10::IValue::make_capsule(c10::make_intrusive<SavedProblem>(std::move(rest)));
    return {out, lse};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto saved = context->get_saved_variables();
    const auto capsule = context->saved_data["problem"].toCapsule();
    Problem problem = static_cast<const SavedProblem&>(*capsule).problem;
    problem.q = saved[0], problem.k = saved[1], problem.v = saved[2];
    if (saved[3].defined()) problem.score.bias = saved[3];
    if (saved[4].defined()) problem.score.sink = saved[4];
    const Tensor d_out = gradients[0].defined() ? gradients[0] : at::zeros_like(saved[5]);
    const auto d_lse = gradients[1].defined() ? std::optional(gradients[1]) : std::nullopt;
    const auto [d_q, d_k, d_v, d_bias, d_sink] =
        Attend::call_backward(d_out, d_lse, saved[5], saved[6], problem.bias_gradient, flatten(problem));
    return {d_q,
            d_k,
            d_v,
            problem.score.bias && problem.bias_gradient ? d_bias : Tensor(),
            saved[4].defined() ? d_sink : Tensor(),
            Tensor()};
  }
};

template <class... Flat>
Forward Kernels<Flat...>::autograd(const Tensor& q, const Tensor& k, const Tensor& v, Flat... flat) {
  const Problem problem = make_problem(q, k, v, flat...);
  const auto results = AttendGradient::apply(q, k, v, problem.score.bias, problem.score.sink, problem);
  return {results[0], results[1]};
}

}  // namespace

Attended attend(const Tensor& q, const Tensor& k, const Tensor& v, const Plan& plan, const Score& score) {
  const auto [out, lse] = Attend::call_forward(flatten({q, k, v, plan, score}));
  return {out, lse};
}

TORCH_LIBRARY(foveate, library) {
  const std::string arguments = std::string("Tensor q, Tensor k, Tensor v, ") + kSchema;
  const std::string forward = "attend(" + arguments + ") -> (Tensor out, Tensor lse)";
  const std::string backward =
      "attend_backward(Tensor d_out, Tensor? d_lse, Tensor out, Tensor lse, bool bias_gradient, " + arguments +
      ") -> (Tensor d_q, Tensor d_k, Tensor d_v, Tensor d_bias, Tensor d_sink)";
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
