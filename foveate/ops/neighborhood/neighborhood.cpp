// attend_neighborhood as a torch operator: schema, checks, CPU, Meta (shapes only), autocast and autograd.
#include "foveate/ops/neighborhood/neighborhood.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <cmath>
#include <tuple>

#include "foveate/base/error.h"
#include "foveate/ops/attend/explain.h"
#include "foveate/ops/attend/gradient.h"
#include "foveate/ops/merge/merge.h"
#include "foveate/ops/neighborhood/problem.h"
#include "foveate/ops/once.h"

namespace foveate::ops {

using at::Tensor;

Neighborhood make_neighborhood(at::IntArrayRef grid, at::IntArrayRef kernel, at::IntArrayRef stride,
                               at::IntArrayRef dilation, const c10::List<bool>& is_causal, bool clamps_last_group) {
  const size_t axes = grid.size();
  require(kernel.size() == axes && stride.size() == axes && dilation.size() == axes && is_causal.size() == axes,
          "neighborhood: grid, kernel, stride, dilation and is_causal must have as many axes, got {}, {}, {}, {}, {}",
          axes, kernel.size(), stride.size(), dilation.size(), is_causal.size());
  Neighborhood n;
  for (size_t i = 0; i < axes; ++i)
    n.axes.push_back({grid[i], kernel[i], stride[i], dilation[i], is_causal.get(i), clamps_last_group});
  return n;
}

double NeighborhoodProblem::scale() const { return score.scale.value_or(1 / std::sqrt(double(q.size(3)))); }

Problem NeighborhoodProblem::extra() const {
  Problem problem{q, *score.extra_keys, *score.extra_values, Rule::full()};
  problem.score.scale = scale();
  problem.has_wide_out = true;
  return problem;
}

std::string text(const Tensor& t) {
  return fmt::format("{} [{}]", c10::toString(t.scalar_type()), fmt::join(t.sizes().begin(), t.sizes().end(), ", "));
}

namespace {

void check_extra(const NeighborhoodProblem& p) {
  const auto &keys = p.score.extra_keys, &values = p.score.extra_values;
  require(keys.has_value() == values.has_value(),
          "neighborhood: extra_keys and extra_values must come together, got {}",
          keys ? "extra_keys alone" : "extra_values alone");
  if (!keys) return;
  const auto fits = [&](const Tensor& t, const Tensor& like) {
    return t.dim() == 4 && t.scalar_type() == p.q.scalar_type() && t.size(0) == p.q.size(0) &&
           t.size(1) == p.k.size(1) && t.size(3) == like.size(3);
  };
  require(fits(*keys, p.k) && fits(*values, p.v) && keys->size(2) == values->size(2),
          "neighborhood: extra_keys and extra_values must be {} [{}, {}, M, {} and {}], got {} and {}",
          c10::toString(p.q.scalar_type()), p.q.size(0), p.k.size(1), p.k.size(3), p.v.size(3), text(*keys),
          text(*values));
}

void check_bias(const NeighborhoodProblem& p) {
  if (!p.score.bias) return;
  std::vector<int64_t> sizes = {p.q.size(1)};
  for (const NeighborhoodAxis& axis : p.neighborhood.axes) {
    require(!axis.is_causal, "neighborhood: a bias needs axes that are not causal, got a causal one");
    sizes.push_back(2 * axis.kernel - 1);
  }
  require(p.score.bias->is_floating_point() && p.score.bias->sizes() == at::IntArrayRef(sizes),
          "neighborhood: bias must be floating point [{}] (heads, 2 kernel - 1 of each axis), got {}",
          fmt::join(sizes, ", "), text(*p.score.bias));
}

}  // namespace

void check_neighborhood_problem(const NeighborhoodProblem& p) {
  check_neighborhood(p.neighborhood);
  const auto& [q, k, v, neighborhood, score] = p;
  require(q.dim() == 4 && k.dim() == 4 && v.dim() == 4,
          "neighborhood: q, k, v must be [B, heads, places of the grid, dim], got {}, {}, {}", text(q), text(k),
          text(v));
  const auto type = q.scalar_type();
  require(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf || type == at::kDouble,
          "neighborhood: dtype must be fp32, bf16, fp16 or fp64, got {}", c10::toString(type));
  require(k.scalar_type() == type && v.scalar_type() == type,
          "neighborhood: q, k, v must share a dtype, got {}, {}, {}", text(q), text(k), text(v));
  require(q.size(2) == neighborhood.positions() && k.size(2) == q.size(2) && v.size(2) == q.size(2),
          "neighborhood: q, k, v must have the {} places of the grid, got {}, {}, {}", neighborhood.positions(),
          q.size(2), k.size(2), v.size(2));
  require(k.size(0) == q.size(0) && v.size(0) == q.size(0) && k.size(3) == q.size(3) && v.size(1) == k.size(1),
          "neighborhood: batches, dims of q and k, heads of k and v must agree, got {}, {}, {}", text(q), text(k),
          text(v));
  require(k.size(1) >= 1 && q.size(1) % k.size(1) == 0,
          "neighborhood: heads of q must be a multiple of those of k, got {} and {}", q.size(1), k.size(1));
  require(q.device() == k.device() && q.device() == v.device(),
          "neighborhood: q, k, v must be on one device, got {}, {}, {}", q.device().str(), k.device().str(),
          v.device().str());
  check_bias(p);
  check_extra(p);
}

namespace {

// A call's arguments behind q, k, v, in the schema's order.
constexpr const char* kArguments =
    "Tensor q, Tensor k, Tensor v, int[] grid, int[] kernel, int[] stride, int[] dilation, bool[] is_causal, "
    "float? scale=None, Tensor? bias=None, Tensor? extra_keys=None, Tensor? extra_values=None, "
    "bool clamps_last_group=True";

using Ints = at::IntArrayRef;

NeighborhoodProblem make_problem(const Tensor& q, const Tensor& k, const Tensor& v, Ints grid, Ints kernel, Ints stride,
                                 Ints dilation, const c10::List<bool>& is_causal, OptionalDouble scale,
                                 OptionalTensor bias, OptionalTensor extra_keys, OptionalTensor extra_values,
                                 bool clamps_last_group) {
  return {q,
          k,
          v,
          make_neighborhood(grid, kernel, stride, dilation, is_causal, clamps_last_group),
          {scale, bias, extra_keys, extra_values}};
}

using Forward = std::tuple<Tensor, Tensor>;
using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Why the kernels gave a call up halfway.
constexpr const char* kNotFinite = "a number or a sum of them is not finite";

Attended windows(const NeighborhoodProblem& p) {
  if (choose_kernel("neighborhood", neighborhood_decline_reason(p), Pass::forward)) {
    if (const auto attended = neighborhood_cpu(p)) return *attended;
    count_rerun("neighborhood", kNotFinite, Pass::forward);
  }
  return neighborhood_definition(p);
}

Forward run_forward(const NeighborhoodProblem& p) {
  check_neighborhood_problem(p);
  if (p.q.numel() == 0)
    return {empty_rows(p.q, p.v.size(3)).zero_(),
            p.q.new_empty({p.q.size(0), p.q.size(1), p.q.size(2)}, lse_type(p.q))};
  if (!p.has_extra()) {
    const auto [out, lse] = windows(p);
    return {out, lse};
  }
  const Problem extra = p.extra();
  Attended parts[] = {windows(p), choose(extra, Pass::forward) ? attend_cpu(extra) : attend_definition(extra)};
  for (Attended& part : parts) part.out = part.out.to(lse_type(p.q));  // the definition rounds
  const auto [out, lse] = merge_by_lse(parts);
  return {empty_rows(p.q, p.v.size(3)).copy_(out), lse};
}

NeighborhoodResults windows_backward(const NeighborhoodProblem& p, const Attended& attended, const Tensor& d_out,
                                     const Tensor& d_lse) {
  if (choose_kernel("neighborhood", neighborhood_decline_reason(p), Pass::backward)) {
    if (const auto results = neighborhood_backward_cpu(p, attended, d_out, d_lse)) return *results;
    count_rerun("neighborhood", kNotFinite, Pass::backward);
  }
  return neighborhood_backward_definition(p, attended, d_out, d_lse);
}

// Whoever calls the operator gives these back.
void check_results(const NeighborhoodProblem& p, const Attended& attended, const Tensor& d_out) {
  const auto fits = [&](const Tensor& t) {
    return t.scalar_type() == p.q.scalar_type() &&
           t.sizes() == at::IntArrayRef({p.q.size(0), p.q.size(1), p.q.size(2), p.v.size(3)});
  };
  require(fits(attended.out) && fits(d_out),
          "neighborhood_backward: out and d_out must be {} [{}, {}, {}, {}], as the forward pass gave, got {} and {}",
          c10::toString(p.q.scalar_type()), p.q.size(0), p.q.size(1), p.q.size(2), p.v.size(3), text(attended.out),
          text(d_out));
  require(attended.lse.scalar_type() == lse_type(p.q) && attended.lse.sizes() == p.q.sizes().slice(0, 3),
          "neighborhood_backward: lse must be {} [{}, {}, {}], as the forward pass gave, got {}",
          c10::toString(lse_type(p.q)), p.q.size(0), p.q.size(1), p.q.size(2), text(attended.lse));
}

// A branch of a merged softmax has its ordinary gradient with the merged out and lse.
Backward run_backward(const NeighborhoodProblem& p, const Attended& attended, const Tensor& d_out,
                      const Tensor& d_lse) {
  check_neighborhood_problem(p);
  check_results(p, attended, d_out);
  NeighborhoodResults r = windows_backward(p, attended, d_out, d_lse);
  if (p.has_extra()) {
    const Problem extra = p.extra();
    const auto run = choose(extra, Pass::backward) ? attend_backward_cpu : attend_backward_definition;
    const Gradients g = run(extra, attended, d_out, d_lse);
    r.q += g.q;
    r.extra_keys = g.k, r.extra_values = g.v;
  }
  const auto given = [&](const Tensor& t) { return t.defined() ? t : p.q.new_empty({0}); };
  return {r.q, r.k, r.v, given(r.bias), given(r.extra_keys), given(r.extra_values)};
}

using Saved = detail::SavedCall<NeighborhoodProblem>;

template <class... Flat>
struct Kernels {
  static Forward forward(const Tensor& q, const Tensor& k, const Tensor& v, Flat... flat) {
    return run_forward(make_problem(q, k, v, flat...));
  }
  static Forward forward_meta(const Tensor& q, const Tensor&, const Tensor& v, Flat...) {
    return {empty_rows(q, v.sym_size(3)),
            q.new_empty_symint({q.sym_size(0), q.sym_size(1), q.sym_size(2)}, lse_type(q))};
  }
  static Backward backward(const Tensor& d_out, OptionalTensor d_lse, const Tensor& out, const Tensor& lse,
                           const Tensor& q, const Tensor& k, const Tensor& v, Flat... flat) {
    return run_backward(make_problem(q, k, v, flat...), {out, lse}, d_out, d_lse.value_or(Tensor()));
  }
  static Backward backward_meta(const Tensor&, OptionalTensor, const Tensor&, const Tensor&, const Tensor& q,
                                const Tensor& k, const Tensor& v, Flat... flat) {
    const NeighborhoodScore score = make_problem(q, k, v, flat...).score;
    const auto like = [&](OptionalTensor t) {
      return t ? t->new_empty_symint(t->sym_sizes()) : q.new_empty_symint({0});
    };
    const auto rows = [](const Tensor& t) { return empty_rows(t, t.sym_size(3)); };
    return {rows(q), rows(k), rows(v), like(score.bias), like(score.extra_keys), like(score.extra_values)};
  }
  static Forward autocast(const Tensor& q, const Tensor& k, const Tensor& v, Flat... flat);
  static Forward autograd(const Tensor& q, const Tensor& k, const Tensor& v, Flat... flat);
};

template <class... Flat>
Kernels<Flat...> kernels_of(NeighborhoodProblem (*)(const Tensor&, const Tensor&, const Tensor&, Flat...));
using Operator = decltype(kernels_of(make_problem));

// The arguments of a problem behind q, k, v, as the schema has them.
template <class Use>
auto with_arguments(const NeighborhoodProblem& p, const Use& use) {
  std::vector<int64_t> grid, kernel, stride, dilation;
  c10::List<bool> is_causal;
  bool clamps = true;
  for (const NeighborhoodAxis& axis : p.neighborhood.axes) {
    grid.push_back(axis.length), kernel.push_back(axis.kernel), stride.push_back(axis.stride);
    dilation.push_back(axis.dilation), is_causal.push_back(axis.is_causal);
    clamps = axis.clamps_last_group;
  }
  return use(p.q, p.k, p.v, Ints(grid), Ints(kernel), Ints(stride), Ints(dilation), is_causal, p.score.scale,
             p.score.bias, p.score.extra_keys, p.score.extra_values, clamps);
}

Forward call_forward(const NeighborhoodProblem& p) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("foveate::neighborhood", "").typed<decltype(Operator::forward)>();
  return with_arguments(p, [](const auto&... a) { return op.call(a...); });
}

Backward call_backward(const Tensor& d_out, OptionalTensor d_lse, const Tensor& out, const Tensor& lse,
                       const NeighborhoodProblem& p) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("foveate::neighborhood_backward", "")
                             .typed<decltype(Operator::backward)>();
  return with_arguments(p, [&](const auto&... a) { return op.call(d_out, d_lse, out, lse, a...); });
}

class Gradient : public torch::autograd::Function<Gradient> {
 public:
  using List = torch::autograd::variable_list;

  // The tensors stand apart because they have gradients; `problem` holds them too.
  static List forward(torch::autograd::AutogradContext* context, const Tensor& q, const Tensor& k, const Tensor& v,
                      OptionalTensor bias, OptionalTensor extra_keys, OptionalTensor extra_values,
                      const NeighborhoodProblem& problem) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [out, lse] = call_forward(problem);
    const auto given = [](OptionalTensor t) { return t.value_or(Tensor()); };
    context->save_for_backward({q, k, v, given(bias), given(extra_keys), given(extra_values), out, lse});
    NeighborhoodProblem rest = problem;
    set_tensors(rest, List(6));
    context->saved_data["call"] = c10::IValue::make_capsule(c10::make_intrusive<Saved>(std::move(rest)));
    return {out, lse};
  }

  static List backward(torch::autograd::AutogradContext* context, List gradients) {
    const List saved = context->get_saved_variables();
    List inputs = saved;
    inputs.insert(inputs.end(), gradients.begin(), gradients.end());
    return once_differentiable("neighborhood", first_gradients(context, saved, gradients), inputs);
  }

 private:
  static void set_tensors(NeighborhoodProblem& p, const List& t) {
    p.q = t[0], p.k = t[1], p.v = t[2];
    if (p.score.bias) p.score.bias = t[3];
    if (p.score.extra_keys) p.score.extra_keys = t[4], p.score.extra_values = t[5];
  }
  static List first_gradients(torch::autograd::AutogradContext* context, const List& saved, const List& gradients) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto capsule = context->saved_data["call"].toCapsule();
    NeighborhoodProblem p = static_cast<const Saved&>(*capsule).call;
    set_tensors(p, saved);
    const Tensor d_out = gradients[0].defined() ? gradients[0] : at::zeros_like(saved[6]);
    const auto d_lse = gradients[1].defined() ? std::optional(gradients[1]) : std::nullopt;
    const auto [d_q, d_k, d_v, d_bias, d_keys, d_values] = call_backward(d_out, d_lse, saved[6], saved[7], p);
    const auto where = [](bool has, const Tensor& t) { return has ? t : Tensor(); };
    return {d_q,
            d_k,
            d_v,
            where(p.score.bias.has_value(), d_bias),
            where(p.has_extra(), d_keys),
            where(p.has_extra(), d_values),
            Tensor()};
  }
};

template <class... Flat>
Forward Kernels<Flat...>::autograd(const Tensor& q, const Tensor& k, const Tensor& v, Flat... flat) {
  const NeighborhoodProblem p = make_problem(q, k, v, flat...);
  const auto results = Gradient::apply(q, k, v, p.score.bias, p.score.extra_keys, p.score.extra_values, p);
  return {results[0], results[1]};
}

template <class... Flat>
Forward Kernels<Flat...>::autocast(const Tensor& q, const Tensor& k, const Tensor& v, Flat... flat) {
  NeighborhoodProblem p = make_problem(q, k, v, flat...);
  const c10::impl::ExcludeDispatchKeyGuard without(
      c10::DispatchKeySet(c10::DispatchKey::AutocastCPU).add(c10::DispatchKey::AutocastCUDA));
  const auto device = q.device().type();
  const at::ScalarType type = at::autocast::get_autocast_dtype(device);
  const auto cast = [&](Tensor& t) { t = at::autocast::cached_cast(type, t, device); };
  cast(p.q), cast(p.k), cast(p.v);
  if (p.score.extra_keys) cast(*p.score.extra_keys);
  if (p.score.extra_values) cast(*p.score.extra_values);
  return call_forward(p);
}

std::string explain_operator(const Tensor& q, const Tensor& k, const Tensor& v, Ints grid, Ints kernel, Ints stride,
                             Ints dilation, const c10::List<bool>& is_causal, OptionalDouble scale, OptionalTensor bias,
                             OptionalTensor extra_keys, OptionalTensor extra_values, bool clamps, bool backward) {
  const NeighborhoodProblem p =
      make_problem(q, k, v, grid, kernel, stride, dilation, is_causal, scale, bias, extra_keys, extra_values, clamps);
  return explain_neighborhood(q, k, v, p.neighborhood, p.score, backward ? Pass::backward : Pass::forward);
}

}  // namespace

Attended attend_neighborhood(const Tensor& q, const Tensor& k, const Tensor& v, const Neighborhood& neighborhood,
                             const NeighborhoodScore& score) {
  const auto [out, lse] = call_forward({q, k, v, neighborhood, score});
  return {out, lse};
}

TORCH_LIBRARY_FRAGMENT(foveate, library) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  const std::string arguments = kArguments;
  library.def(("explain_neighborhood(" + arguments + ", bool backward=False) -> str").c_str(), explain_operator);
  library.def(("neighborhood(" + arguments + ") -> (Tensor out, Tensor lse)").c_str(), tags);
  library.def(("neighborhood_backward(Tensor d_out, Tensor? d_lse, Tensor out, Tensor lse, " + arguments +
               ") -> (Tensor d_q, Tensor d_k, Tensor d_v, Tensor d_bias, Tensor d_extra_keys, Tensor d_extra_values)")
                  .c_str(),
              tags);
}

TORCH_LIBRARY_IMPL(foveate, CPU, library) {
  library.impl("neighborhood", TORCH_FN(Operator::forward));
  library.impl("neighborhood_backward", TORCH_FN(Operator::backward));
}

TORCH_LIBRARY_IMPL(foveate, Meta, library) {
  library.impl("neighborhood", TORCH_FN(Operator::forward_meta));
  library.impl("neighborhood_backward", TORCH_FN(Operator::backward_meta));
}

TORCH_LIBRARY_IMPL(foveate, AutocastCPU, library) { library.impl("neighborhood", TORCH_FN(Operator::autocast)); }
TORCH_LIBRARY_IMPL(foveate, AutocastCUDA, library) { library.impl("neighborhood", TORCH_FN(Operator::autocast)); }
TORCH_LIBRARY_IMPL(foveate, Autograd, library) { library.impl("neighborhood", TORCH_FN(Operator::autograd)); }

}  // namespace foveate::ops
