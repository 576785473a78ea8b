#include "foveate/ops/attend/gradient.h"

namespace foveate::ops {

using at::Tensor;

Forward attended_like(const Tensor& q, const Tensor& v) {
  return {q.new_empty_symint({q.sym_size(0), q.sym_size(1), q.sym_size(2), v.sym_size(3)}),
          q.new_empty_symint({q.sym_size(0), q.sym_size(1), q.sym_size(2)}, lse_type(q))};
}

Backward gradients_like(const Problem& p, const Mask& output_mask) {
  const auto like = [&](bool wanted, OptionalTensor t) {
    return wanted && t ? t->new_empty_symint(t->sym_sizes()) : p.q.new_empty_symint({0}, lse_type(p.q));
  };
  const auto relative = p.score.relative ? std::optional(p.score.relative->logits) : std::nullopt;
  return {p.q.new_empty_symint(p.q.sym_sizes()), p.k.new_empty_symint(p.k.sym_sizes()),
          p.v.new_empty_symint(p.v.sym_sizes()), like(output_mask[0], p.score.bias),
          like(output_mask[1], p.score.sink),    like(output_mask[2], p.score.slopes),
          like(output_mask[3], relative)};
}

AutocastInputs::AutocastInputs(Problem& p)
    : without_(c10::DispatchKeySet(c10::DispatchKey::AutocastCPU).add(c10::DispatchKey::AutocastCUDA)) {
  const auto device = p.q.device().type();
  const at::ScalarType type = at::autocast::get_autocast_dtype(device);
  for (Tensor* t : {&p.q, &p.k, &p.v}) *t = at::autocast::cached_cast(type, *t, device);
}

namespace detail {

void set_tensors(Problem& p, const torch::autograd::variable_list& t) {
  p.q = t[0], p.k = t[1], p.v = t[2];
  if (p.score.bias) p.score.bias = t[5];
  if (p.score.sink) p.score.sink = t[6];
  if (p.score.slopes) p.score.slopes = t[7];
  if (p.score.relative) p.score.relative->logits = t[8];
}

}  // namespace detail

}  // namespace foveate::ops
