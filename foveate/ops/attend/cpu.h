// attend on the CPU kernels (kernels/attend.h), where they take a problem.
#pragma once

#include <string>

#include "foveate/ops/attend/definition.h"

namespace foveate::ops {

enum class Pass { forward, backward };

// Why the kernels decline a checked problem; empty where they run it.
std::string decline_reason(const Problem& problem);

// What the kernels would do: level, tiles, panels, extra memory.  For problems they do not decline.
std::string describe(const Problem& problem, Pass pass);

Attended attend_cpu(const Problem& problem);
Gradients attend_backward_cpu(const Problem& problem, const Attended& attended, const at::Tensor& d_out,
                              const at::Tensor& d_lse);

}  // namespace foveate::ops
