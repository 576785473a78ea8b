#include "foveate/ops/once.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "foveate/base/error.h"

namespace foveate::ops {
namespace {

using at::Tensor;
using torch::autograd::variable_list;

class Once : public torch::autograd::Function<Once> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& gradient, const Tensor&,
                        const std::string& name) {
    context->saved_data["name"] = name;
    return gradient.detach();
  }
  static variable_list backward(torch::autograd::AutogradContext* context, variable_list) {
    fail("{}: has no second derivative; differentiate its gradients no further",
         context->saved_data["name"].toStringRef());
  }
};

}  // namespace

variable_list once_differentiable(std::string_view name, variable_list gradients, const variable_list& inputs) {
  const auto learns = [](const Tensor& t) { return t.defined() && t.requires_grad(); };
  const auto input = std::ranges::find_if(inputs, learns);
  if (!at::GradMode::is_enabled() || input == inputs.end()) return gradients;
  for (Tensor& gradient : gradients)
    if (gradient.defined() && gradient.numel() > 0) gradient = Once::apply(gradient, *input, std::string(name));
  return gradients;
}

}  // namespace foveate::ops
