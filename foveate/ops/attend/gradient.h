// What attend and the operators with its arguments share with torch: results of Meta kernels, autocast, autograd.
#pragma once

#include <ATen/autocast_mode.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <tuple>

#include "foveate/ops/attend/flat.h"
#include "foveate/ops/once.h"

namespace foveate::ops {

using Forward = std::tuple<at::Tensor, at::Tensor>;  // out, lse
using Backward = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                            at::Tensor>;  // of q, k, v, bias, sink, slopes, relative; empty where not wanted
struct CallGradients {
  CallGradients(Backward of_attend, std::vector<at::Tensor> more = {})
      : of_attend(std::move(of_attend)), more(std::move(more)) {}
  Backward of_attend;
  std::vector<at::Tensor> more;  // of what else an operator has
};
using Mask = std::array<bool, 4>;  // which of bias, sink, slopes, relative

inline Wanted wanted(const Mask& mask) { return {mask[0], mask[1], mask[2], mask[3]}; }

inline at::ScalarType lse_type(const at::Tensor& q) {
  return q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// Unfilled tensors of the shapes and dtypes that forward and backward give.
Forward attended_like(const at::Tensor& q, const at::Tensor& v);
Backward gradients_like(const Problem& problem, const Mask& output_mask);

// Casts q, k and v of a problem to the dtype of their device's autocast, as torch's attention does (fp64 stays; score
// terms stay too: they are read in fp32 anyway), and keeps autocast out while it lives.
class AutocastInputs {
 public:
  explicit AutocastInputs(Problem& problem);

 private:
  c10::impl::ExcludeDispatchKeyGuard without_;
};

namespace detail {

// What backward needs of a call beside the tensors that have gradients.
template <class Call>
struct SavedCall final : torch::CustomClassHolder {
  explicit SavedCall(Call c) : call(std::move(c)) {}
  Call call;
};

// t: q, k, v, out, lse, bias, sink, slopes, relative.
void set_tensors(Problem& p, const torch::autograd::variable_list& t);

// Tensors with gradients beside those of attend, where an operator has such.
template <class Operator>
concept HasMore = requires(typename Operator::Call& call) {
  Operator::more_of(call);
};

template <class Operator>
torch::autograd::variable_list more_of(typename Operator::Call& call) {
  torch::autograd::variable_list more;
  if constexpr (HasMore<Operator>)
    for (const at::Tensor* t : Operator::more_of(call)) more.push_back(*t);
  return more;
}

template <class Operator>
void set_more(typename Operator::Call& call, at::TensorList more) {
  if constexpr (HasMore<Operator>)
    for (at::Tensor* t : Operator::more_of(call)) *t = more.front(), more = more.slice(1);
}

template <class Operator>
class Gradient : public torch::autograd::Function<Gradient<Operator>> {
 public:
  using Tensor = at::Tensor;
  using Call = typename Operator::Call;
  using List = torch::autograd::variable_list;

  // The tensors stand apart because they have gradients; `call` holds them too.
  static List forward(torch::autograd::AutogradContext* context, const Tensor& q, const Tensor& k, const Tensor& v,
                      OptionalTensor bias, OptionalTensor sink, OptionalTensor slopes, OptionalTensor relative,
                      at::TensorList more, const Call& call) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [out, lse] = Operator::forward(call);
    List saved = {q, k, v, out, lse};
    for (const auto& term : {bias, sink, slopes, relative}) saved.push_back(term.value_or(Tensor()));
    const size_t fixed = saved.size();
    saved.insert(saved.end(), more.begin(), more.end());
    context->save_for_backward(saved);
    const auto wants = [](OptionalTensor t) { return t && t->requires_grad(); };
    Call rest = call;
    Problem& problem = Operator::problem_of(rest);
    problem.wanted = {wants(bias), wants(sink), wants(slopes), wants(relative)};
    set_tensors(problem, List(fixed));
    set_more<Operator>(rest, List(more.size()));
    context->saved_data["call"] = c10::IValue::make_capsule(c10::make_intrusive<SavedCall<Call>>(std::move(rest)));
    return {out, lse};
  }

  static List backward(torch::autograd::AutogradContext* context, List gradients) {
    const auto saved = context->get_saved_variables();
    List inputs = saved;
    inputs.insert(inputs.end(), gradients.begin(), gradients.end());
    return once_differentiable(Operator::name, first_gradients(context, saved, gradients), inputs);
  }

 private:
  static List first_gradients(torch::autograd::AutogradContext* context, const List& saved, const List& gradients) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto capsule = context->saved_data["call"].toCapsule();
    Call call = static_cast<const SavedCall<Call>&>(*capsule).call;
    Problem& problem = Operator::problem_of(call);
    set_tensors(problem, saved);
    set_more<Operator>(call, at::TensorList(saved).slice(9));
    const Tensor &out = saved[3], &lse = saved[4];
    const Tensor d_out = gradients[0].defined() ? gradients[0] : at::zeros_like(out);
    const auto d_lse = gradients[1].defined() ? std::optional(gradients[1]) : std::nullopt;
    const Mask mask = {problem.wants_bias(), problem.wants_sink(), problem.wants_slopes(), problem.wants_relative()};
    const CallGradients found = Operator::backward(d_out, d_lse, out, lse, mask, call);
    const auto& [d_q, d_k, d_v, d_bias, d_sink, d_slopes, d_relative] = found.of_attend;
    List all = {d_q,
                d_k,
                d_v,
                mask[0] ? d_bias : Tensor(),
                mask[1] ? d_sink : Tensor(),
                mask[2] ? d_slopes : Tensor(),
                mask[3] ? d_relative : Tensor()};
    all.insert(all.end(), found.more.begin(), found.more.end());
    all.emplace_back();  // of the call
    return all;
  }
};

}  // namespace detail

// Operator::forward with gradients by Operator::backward.  Operator has: Call, name, problem_of(Call&),
//   forward(call) -> Forward,   backward(d_out, d_lse, out, lse, mask, call) -> CallGradients
//   and perhaps more_of(Call&): pointers to further tensors with gradients.
template <class Operator>
Forward with_gradient(typename Operator::Call call) {
  const Problem p = Operator::problem_of(call);
  const auto more = detail::more_of<Operator>(call);
  const auto relative = p.score.relative ? std::optional(p.score.relative->logits) : std::nullopt;
  const auto results = detail::Gradient<Operator>::apply(p.q, p.k, p.v, p.score.bias, p.score.sink, p.score.slopes,
                                                         relative, at::TensorList(more), call);
  return {results[0], results[1]};
}

}  // namespace foveate::ops
