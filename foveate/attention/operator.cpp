// Every mechanism as a torch operator: a spec string and attend's flat arguments, whose plan must be a rule.
// In eager mode a mechanism is its parts, gradients included.  Under tracing (torch.compile) it is one opaque operator,
// whose backward makes the forward once more with a graph: the selection is data-dependent and can not be traced.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/library.h>

#include <algorithm>

#include "foveate/attention/registry.h"
#include "foveate/base/error.h"
#include "foveate/ops/attend/flat.h"
#include "foveate/ops/attend/gradient.h"
#include "foveate/ops/quantise/quantise.h"

namespace foveate::attention {
namespace {

using at::Tensor;
using ops::Backward;
using ops::Forward;
using ops::Mask;
using ops::OptionalInt;
using ops::OptionalTensor;

// rotary: [dim, base, factor, divisors ..] of what rotated q and k (ops/rotary.h), empty: nothing did.
// hidden [B, Lq, width] and learned parts, which names[i] calls parts[i], for mechanisms that have such.
const std::string kSchema =
    std::string("str spec, int layer, int? first_position, bool ends_prompt, float[] rotary, ") +
    "Tensor? hidden, str[] names, Tensor[] parts, Tensor q, Tensor k, Tensor v, " + ops::kSchema;

using Names = c10::List<std::string>;
using MechanismBackward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                                     std::vector<Tensor>>;  // the list: of hidden, parts

struct Call {
  std::string spec;
  int64_t layer;
  OptionalInt first_position;
  bool ends_prompt;
  std::vector<double> rotary;
  std::optional<Tensor> hidden;
  Names names;
  std::vector<Tensor> parts;
  ops::Problem problem;
};

std::vector<Tensor*> more_of(Call& c) {
  std::vector<Tensor*> more;
  if (c.hidden) more.push_back(&*c.hidden);
  for (Tensor& part : c.parts) more.push_back(&part);
  return more;
}

auto flatten(const Call& c) {
  return std::tuple_cat(std::tuple(std::string_view(c.spec), c.layer, c.first_position, c.ends_prompt,
                                   at::ArrayRef<double>(c.rotary), c.hidden, c.names, at::TensorList(c.parts)),
                        ops::flatten(c.problem));
}

std::optional<ops::Rotary> rotary_of(const std::vector<double>& numbers) {
  if (numbers.empty()) return std::nullopt;
  require(numbers.size() >= 3, "mechanism: rotary must be dim, base, factor and divisors, got {} numbers",
          numbers.size());
  return ops::Rotary(int64_t(numbers[0]), numbers[1], numbers[2], {numbers.begin() + 3, numbers.end()});
}

// The call's learned parts.  Throws Error unless they are those that the mechanism has: parts that read hidden states
// are checked where there are such; where there are none, the mechanism says so.
Learned learned_of(const Call& c, const Mechanism& mechanism) {
  const ops::Problem& p = c.problem;
  require(c.names.size() == c.parts.size(), "mechanism: names and parts must be equally many, got {} and {}",
          c.names.size(), c.parts.size());
  if (c.hidden)
    require(c.hidden->dim() == 3 && c.hidden->size(0) == p.q.size(0) && c.hidden->size(1) == p.q.size(2),
            "mechanism: hidden must be [{}, {}, width], got [{}]", p.q.size(0), p.q.size(2),
            fmt::join(c.hidden->sizes().begin(), c.hidden->sizes().end(), ", "));
  Learned learned;
  for (size_t i = 0; i < c.parts.size(); ++i)
    require(learned.emplace(c.names[i], c.parts[i]).second, "mechanism: a part may be given once, got {} twice",
            std::string(c.names[i]));
  const auto parts_at = [&](int64_t width) {
    return mechanism.learned_parts({width, p.q.size(1), p.k.size(1), p.q.size(3), ops::row_dim(p.v)});
  };
  const auto same_sizes = [](const LearnedPart& a, const LearnedPart& b) { return a.sizes == b.sizes; };
  if (!learned.empty() && (c.hidden || std::ranges::equal(parts_at(1), parts_at(2), same_sizes)))
    check_learned(learned, parts_at(c.hidden ? c.hidden->size(2) : 1), mechanism.spec().name);
  return learned;
}

Attended run(const Call& c) {
  const ops::Problem& p = c.problem;
  const auto* rule = std::get_if<Rule>(&p.plan);
  require(rule, "mechanism: the plan must be a rule, got lists: a mechanism makes its own");
  require(!p.heads.keys && !p.heads.values, "mechanism: key_heads and value_heads must not be given, got a head map");
  require(!p.pages, "mechanism: keys must be whole, got pages");
  ops::check_problem(p);
  const std::optional<ops::Rotary> rotary = rotary_of(c.rotary);
  const Mechanism mechanism = make_mechanism(parse_spec(c.spec));
  const Learned learned = learned_of(c, mechanism);
  return mechanism.attend({.q = p.q,
                           .k = p.k,
                           .v = p.v,
                           .rule = *rule,
                           .score = p.score,
                           .layer = c.layer,
                           .rotary = rotary ? &*rotary : nullptr,
                           .first_position = c.first_position,
                           .ends_prompt = c.ends_prompt,
                           .hidden = c.hidden,
                           .learned = learned.empty() ? nullptr : &learned});
}

// lse is NaN where the mechanism has none (it changed logits): an operator's results do not come and go.
Forward results(const Call& c) {
  const Attended attended = run(c);
  const Tensor& q = c.problem.q;
  if (attended.lse) return {attended.out, *attended.lse};
  return {attended.out, at::full({q.size(0), q.size(1), q.size(2)}, std::numeric_limits<double>::quiet_NaN(),
                                 q.options().dtype(ops::lse_type(q)))};
}

// The tensors of a problem that have gradients, as leaves of a new graph; undefined where there is none or none wanted.
std::vector<Tensor> make_leaves(Call& c) {
  ops::Problem& p = c.problem;
  std::vector<Tensor> leaves;
  const auto leaf = [&](bool wanted, Tensor* t) {
    if (wanted) *t = t->detach().requires_grad_();
    leaves.push_back(wanted ? *t : Tensor());
  };
  for (Tensor* t : {&p.q, &p.k, &p.v}) leaf(true, t);
  leaf(p.wants_bias(), p.score.bias ? &*p.score.bias : nullptr);
  leaf(p.wants_sink(), p.score.sink ? &*p.score.sink : nullptr);
  leaf(p.wants_slopes(), p.score.slopes ? &*p.score.slopes : nullptr);
  leaf(p.wants_relative(), p.score.relative ? &p.score.relative->logits : nullptr);
  for (Tensor* t : more_of(c)) leaf(true, t);
  return leaves;
}

MechanismBackward gradients(const Tensor& d_out, OptionalTensor d_lse, const Mask& output_mask, Call c) {
  // operators are called with autograd shut out
  auto keys = c10::impl::tls_local_dispatch_key_set();
  keys.excluded_ = keys.excluded_ - c10::autograd_dispatch_keyset_with_ADInplaceOrView;
  const c10::impl::ForceDispatchKeyGuard with_autograd(keys);
  const at::AutoGradMode grad_mode(true);
  c.problem.wanted = ops::wanted(output_mask);
  const std::vector<Tensor> leaves = make_leaves(c);
  const auto [out, lse] = results(c);
  std::vector<Tensor> inputs, roots, root_gradients;
  for (const Tensor& t : leaves)
    if (t.defined()) inputs.push_back(t);
  if (out.requires_grad()) roots.push_back(out), root_gradients.push_back(d_out);
  if (d_lse && lse.requires_grad()) roots.push_back(lse), root_gradients.push_back(*d_lse);
  std::vector<Tensor> found(inputs.size());
  if (!roots.empty())
    found = torch::autograd::grad(roots, inputs, root_gradients, std::nullopt, false, /*allow_unused=*/true);
  std::vector<Tensor> all;
  auto next = found.begin();
  for (const Tensor& leaf : leaves) {
    if (!leaf.defined()) {
      all.push_back(c.problem.q.new_empty({0}, ops::lse_type(c.problem.q)));
      continue;
    }
    const Tensor& gradient = *next++;
    all.push_back(gradient.defined() ? gradient.contiguous() : at::zeros_like(leaf, at::MemoryFormat::Contiguous));
  }
  return {all[0], all[1], all[2], all[3], all[4], all[5], all[6], {all.begin() + 7, all.end()}};
}

// Someone looks at the operators themselves (fake tensors, functionalisation, a mode): the operator stays whole.
bool is_traced(Call& c) {
  const ops::Problem& p = c.problem;
  if (c10::impl::TorchDispatchModeTLS::any_modes_set()) return true;
  const auto traced = [](const Tensor& t) { return t.key_set().has(c10::DispatchKey::Python); };
  for (const Tensor* t : more_of(c))
    if (traced(*t)) return true;
  return traced(p.q) || traced(p.k) || traced(p.v);
}

template <class... Flat>
struct MakeCall {
  static Call make(std::string_view spec, int64_t layer, OptionalInt first_position, bool ends_prompt,
                   at::ArrayRef<double> rotary, OptionalTensor hidden, Names names, at::TensorList parts,
                   const Tensor& q, const Tensor& k, const Tensor& v, Flat... flat) {
    return {std::string(spec),
            layer,
            first_position,
            ends_prompt,
            rotary.vec(),
            hidden,
            names,
            parts.vec(),
            ops::make_problem(q, k, v, flat...)};
  }
};
template <class... Flat>
MakeCall<Flat...> make_call_of(ops::Problem (*)(const Tensor&, const Tensor&, const Tensor&, Flat...));

// The operators' kernels; All are the schema's arguments as C++ types.
template <class... All>
struct Kernels {
  static Call call_of(All... all) { return decltype(make_call_of(ops::make_problem))::make(all...); }

  static Forward forward(All... all) { return results(call_of(all...)); }
  static Forward forward_meta(All... all) {
    const Call c = call_of(all...);
    return ops::attended_like(c.problem.q, c.problem.v);
  }
  static MechanismBackward backward(const Tensor& d_out, OptionalTensor d_lse, Mask output_mask, All... all) {
    return gradients(d_out, d_lse, output_mask, call_of(all...));
  }
  static MechanismBackward backward_meta(const Tensor&, OptionalTensor, Mask output_mask, All... all) {
    Call c = call_of(all...);
    std::vector<Tensor> more;
    for (const Tensor* t : more_of(c)) more.push_back(t->new_empty_symint(t->sym_sizes()));
    return std::tuple_cat(ops::gradients_like(c.problem, output_mask), std::tuple(more));
  }

  struct Operator {
    using Call = attention::Call;
    static constexpr std::string_view name = "mechanism";
    static ops::Problem& problem_of(Call& c) { return c.problem; }
    static std::vector<Tensor*> more_of(Call& c) { return attention::more_of(c); }
    static Forward forward(const Call& c) {
      static const auto op =
          c10::Dispatcher::singleton().findSchemaOrThrow("foveate::mechanism", "").typed<Forward(All...)>();
      return std::apply([](const auto&... a) { return op.call(a...); }, flatten(c));
    }
    static ops::CallGradients backward(const Tensor& d_out, OptionalTensor d_lse, const Tensor&, const Tensor&,
                                       const Mask& mask, const Call& c) {
      static const auto op = c10::Dispatcher::singleton()
                                 .findSchemaOrThrow("foveate::mechanism_backward", "")
                                 .typed<MechanismBackward(const Tensor&, OptionalTensor, Mask, All...)>();
      const auto [q, k, v, bias, sink, slopes, relative, more] =
          std::apply([&](const auto&... a) { return op.call(d_out, d_lse, mask, a...); }, flatten(c));
      return {{q, k, v, bias, sink, slopes, relative}, more};
    }
  };

  static Forward autograd(All... all) {
    Call c = call_of(all...);
    return is_traced(c) ? ops::with_gradient<Operator>(std::move(c)) : results(c);
  }
  static Forward autocast(All... all) {
    Call c = call_of(all...);
    const ops::AutocastInputs cast(c.problem);
    return Operator::forward(c);
  }
};

template <class... All>
Kernels<All...> kernels_of(Call (*)(All...));
using Op = decltype(kernels_of(decltype(make_call_of(ops::make_problem))::make));

// The name, then key and value of every option that is not at its default.
std::vector<std::string> mechanism_options(std::string_view text) {
  const Spec spec = make_mechanism(parse_spec(text)).spec();
  std::vector<std::string> parts = {spec.name};
  for (const auto& [key, value] : spec.options) parts.insert(parts.end(), {key, value});
  return parts;
}

std::tuple<std::vector<std::string>, std::vector<Tensor>> learned_parts(std::string_view spec, at::IntArrayRef sizes,
                                                                        int64_t seed) {
  require(sizes.size() == 5, "mechanism: sizes must be width, heads, kv_heads, head_dim, value_dim, got {} numbers",
          sizes.size());
  const LayerShape shape{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
  std::tuple<std::vector<std::string>, std::vector<Tensor>> all;
  for (const auto& [name, part] : make_learned(make_mechanism(parse_spec(spec)).learned_parts(shape), uint64_t(seed))) {
    std::get<0>(all).push_back(name);
    std::get<1>(all).push_back(part);
  }
  return all;
}

std::vector<std::string> layer_specs(std::string_view layered_spec, int64_t layers) {
  std::vector<std::string> specs;
  for (const Mechanism& mechanism : make_mechanisms(layered_spec, layers)) specs.push_back(mechanism.spec().text());
  return specs;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(foveate, library) {
  const std::string forward = "mechanism(" + kSchema + ") -> (Tensor out, Tensor lse)";
  const std::string backward =
      "mechanism_backward(Tensor d_out, Tensor? d_lse, bool[4] output_mask, " + kSchema +
      ") -> (Tensor d_q, Tensor d_k, Tensor d_v, Tensor d_bias, Tensor d_sink, Tensor d_slopes, Tensor d_relative, "
      "Tensor[] d_more)";
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  library.def(forward.c_str(), tags);
  library.def(backward.c_str(), tags);
  library.def("version() -> str", [] { return std::string(FOVEATE_VERSION); });
  library.def("list_mechanisms() -> str", [] { return mechanisms_as_json(list_mechanisms()); });
  library.def("mechanism_options(str spec) -> str[]", mechanism_options);
  library.def("learned_parts(str spec, int[] sizes, int seed) -> (str[], Tensor[])", learned_parts);
  library.def("layer_specs(str layered_spec, int layers) -> str[]", layer_specs);
}

TORCH_LIBRARY_IMPL(foveate, CompositeExplicitAutograd, library) {
  library.impl("mechanism", TORCH_FN(Op::forward));
  library.impl("mechanism_backward", TORCH_FN(Op::backward));
}

TORCH_LIBRARY_IMPL(foveate, Meta, library) {
  library.impl("mechanism", TORCH_FN(Op::forward_meta));
  library.impl("mechanism_backward", TORCH_FN(Op::backward_meta));
}

TORCH_LIBRARY_IMPL(foveate, AutocastCPU, library) { library.impl("mechanism", TORCH_FN(Op::autocast)); }
TORCH_LIBRARY_IMPL(foveate, AutocastCUDA, library) { library.impl("mechanism", TORCH_FN(Op::autocast)); }
TORCH_LIBRARY_IMPL(foveate, Autograd, library) { library.impl("mechanism", TORCH_FN(Op::autograd)); }

}  // namespace foveate::attention
