// attend as a torch operator: schema, CPU, Meta (shapes only), autocast and autograd.  C++ and Python see the same
// operator.
#include "foveate/ops/attend/attend.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <tuple>

#include "foveate/base/error.h"
#include "foveate/ops/attend/cpu.h"
#include "foveate/ops/attend/explain.h"
#include "foveate/ops/attend/flat.h"
#include "foveate/ops/attend/gradient.h"

namespace foveate::ops {
namespace {

using at::Tensor;
// The operators' kernels; Flat are the schema's arguments behind q, k, v as C++ types.
template <class... Flat>
struct Kernels {
  static Forward forward(const Tensor& q, const Tensor& k, const Tensor& v, Flat... flat) {
    const Problem problem = make_problem(q, k, v, flat...);
    check_problem(problem);
    const Attended attended = choose(problem, Pass::forward) ? attend_cpu(problem) : attend_definition(problem);
    return {attended.out, attended.lse};
  }

  static Forward forward_meta(const Tensor& q, const Tensor&, const Tensor& v, Flat...) { return attended_like(q, v); }

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
    return gradients_like(make_problem(q, k, v, flat...), output_mask);
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
  static Forward autocast(const Tensor& q, const Tensor& k, const Tensor& v, Flat... flat);
};

template <class... Flat>
Kernels<Flat...> kernels_of(Problem (*)(const Tensor&, const Tensor&, const Tensor&, Flat...));
using Attend = decltype(kernels_of(make_problem));

struct Operator {
  using Call = Problem;
  static constexpr std::string_view name = "attend";
  static Problem& problem_of(Problem& p) { return p; }
  static Forward forward(const Problem& p) { return Attend::call_forward(flatten(p)); }
  static CallGradients backward(const Tensor& d_out, OptionalTensor d_lse, const Tensor& out, const Tensor& lse,
                                const Mask& mask, const Problem& p) {
    return {Attend::call_backward(d_out, d_lse, out, lse, mask, flatten(p)), {}};
  }
};

template <class... Flat>
Forward Kernels<Flat...>::autograd(const Tensor& q, const Tensor& k, const Tensor& v, Flat... flat) {
  return with_gradient<Operator>(make_problem(q, k, v, flat...));
}

template <class... Flat>
Forward Kernels<Flat...>::autocast(const Tensor& q, const Tensor& k, const Tensor& v, Flat... flat) {
  Problem problem = make_problem(q, k, v, flat...);
  const AutocastInputs cast(problem);
  return call_forward(flatten(problem));
}

}  // namespace

Attended attend(const Tensor& q, const Tensor& k, const Tensor& v, const Plan& plan, const Score& score,
                const HeadMap& heads, const std::optional<Tensor>& pages) {
  const auto [out, lse] = Attend::call_forward(flatten({q, k, v, plan, score, heads, {}, pages}));
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

TORCH_LIBRARY_IMPL(foveate, AutocastCPU, library) { library.impl("attend", TORCH_FN(Attend::autocast)); }
TORCH_LIBRARY_IMPL(foveate, AutocastCUDA, library) { library.impl("attend", TORCH_FN(Attend::autocast)); }
TORCH_LIBRARY_IMPL(foveate, Autograd, library) { library.impl("attend", TORCH_FN(Attend::autograd)); }

}  // namespace foveate::ops
