#include "foveate/ops/neighborhood/unfused.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "foveate/base/error.h"
#include "foveate/ops/attend/gradient.h"
#include "foveate/ops/neighborhood/problem.h"
#include "foveate/ops/pairs/pair_scores.h"

namespace foveate::ops {
namespace {

using at::Tensor;
using List = torch::autograd::variable_list;
using torch::autograd::AutogradContext;

using Windows = detail::SavedCall<Neighborhood>;  // what autograd keeps

void keep(AutogradContext* context, const Neighborhood& n) {
  context->saved_data["windows"] = c10::IValue::make_capsule(c10::make_intrusive<Windows>(n));
}
const Neighborhood& kept(AutogradContext* context) {
  const auto capsule = context->saved_data["windows"].toCapsule();
  return static_cast<const Windows&>(*capsule).call;
}

Tensor lists(const Neighborhood& n) { return token_plan(n, 0, n.positions()).index; }

struct Scores : torch::autograd::Function<Scores> {
  static Tensor forward(AutogradContext* context, const Tensor& q, const Tensor& k, const Neighborhood& n) {
    at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({q, k}), keep(context, n);
    return pair_scores(q, k, lists(n), 1).to(q.scalar_type());
  }
  static List backward(AutogradContext* context, const List& gradients) {
    const List saved = context->get_saved_variables();
    const Neighborhood n = kept(context);
    return {
        neighborhood_av(gradients[0], saved[1], n), neighborhood_in(gradients[0], saved[0], saved[1].size(1), n), {}};
  }
};

struct Values : torch::autograd::Function<Values> {
  static Tensor forward(AutogradContext* context, const Tensor& weights, const Tensor& v, const Neighborhood& n) {
    at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({weights, v}), keep(context, n);
    return weighted_keys(weights, v, lists(n));
  }
  static List backward(AutogradContext* context, const List& gradients) {
    const List saved = context->get_saved_variables();
    const Neighborhood n = kept(context);
    const Tensor d_weights = neighborhood_qk(gradients[0], saved[1], n);
    const Tensor hidden = d_weights.isinf().logical_and(lists(n).lt(0));
    return {d_weights.masked_fill(hidden, 0), neighborhood_in(saved[0], gradients[0], saved[1].size(1), n), {}};
  }
};

struct Inverse : torch::autograd::Function<Inverse> {
  static Tensor forward(AutogradContext* context, const Tensor& weights, const Tensor& q, int64_t kv_heads,
                        const Neighborhood& n) {
    at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({weights, q}), keep(context, n);
    return weighted_queries(weights, q, lists(n), kv_heads, n.positions());
  }
  static List backward(AutogradContext* context, const List& gradients) {
    const List saved = context->get_saved_variables();
    const Neighborhood n = kept(context);
    const Tensor d_weights = neighborhood_qk(saved[1], gradients[0], n);
    const Tensor hidden = d_weights.isinf().logical_and(lists(n).lt(0));
    return {d_weights.masked_fill(hidden, 0), neighborhood_av(saved[0], gradients[0], n), {}, {}};
  }
};

// heads: of weights or queries.
void check(std::string_view name, const Neighborhood& n, const Tensor& a, const Tensor& b, int64_t a_last,
           int64_t heads, int64_t kv_heads) {
  check_neighborhood(n);
  require(a.dim() == 4 && b.dim() == 4 && a.is_floating_point() && a.scalar_type() == b.scalar_type() &&
              a.size(0) == b.size(0) && a.size(2) == n.positions() && b.size(2) == n.positions() &&
              a.size(3) == a_last && kv_heads >= 1 && heads % kv_heads == 0,
          "{}: tensors must share a dtype, the batch and the {} places of the grid, heads be multiples, got {} and {}",
          name, n.positions(), text(a), text(b));
}

}  // namespace

Tensor neighborhood_qk(const Tensor& q, const Tensor& k, const Neighborhood& n) {
  check("neighborhood_qk", n, q, k, k.dim() == 4 ? k.size(3) : 0, q.dim() == 4 ? q.size(1) : 0,
        k.dim() == 4 ? k.size(1) : 1);
  return Scores::apply(q, k, n);
}

Tensor neighborhood_av(const Tensor& weights, const Tensor& v, const Neighborhood& n) {
  check("neighborhood_av", n, weights, v, n.window_keys(), weights.dim() == 4 ? weights.size(1) : 0,
        v.dim() == 4 ? v.size(1) : 1);
  return Values::apply(weights, v, n);
}

Tensor neighborhood_in(const Tensor& weights, const Tensor& q, int64_t kv_heads, const Neighborhood& n) {
  check("neighborhood_in", n, weights, q, n.window_keys(), q.dim() == 4 ? q.size(1) : 0, kv_heads);
  require(weights.size(1) == q.size(1), "neighborhood_in: weights and q must have as many heads, got {} and {}",
          weights.size(1), q.size(1));
  return Inverse::apply(weights, q, kv_heads, n);
}

namespace {

using Ints = at::IntArrayRef;
using Bools = const c10::List<bool>&;

Tensor qk(const Tensor& q, const Tensor& k, Ints grid, Ints kernel, Ints stride, Ints dilation, Bools is_causal) {
  return neighborhood_qk(q, k, make_neighborhood(grid, kernel, stride, dilation, is_causal, true));
}
Tensor av(const Tensor& weights, const Tensor& v, Ints grid, Ints kernel, Ints stride, Ints dilation, Bools is_causal) {
  return neighborhood_av(weights, v, make_neighborhood(grid, kernel, stride, dilation, is_causal, true));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(foveate, library) {
  const std::string windows = "int[] grid, int[] kernel, int[] stride, int[] dilation, bool[] is_causal) -> Tensor";
  library.def(("neighborhood_qk(Tensor q, Tensor k, " + windows).c_str());
  library.def(("neighborhood_av(Tensor weights, Tensor v, " + windows).c_str());
}

// In parts that have gradients of their own.
TORCH_LIBRARY_IMPL(foveate, CompositeImplicitAutograd, library) {
  library.impl("neighborhood_qk", TORCH_FN(qk));
  library.impl("neighborhood_av", TORCH_FN(av));
}

}  // namespace foveate::ops
