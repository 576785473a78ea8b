// attend's definition in plain ATen: any dtype, any plan, forward and explicit blockwise backward from lse.
#pragma once

#include "foveate/ops/attend/attend.h"

namespace foveate::ops {

struct Problem {
  at::Tensor q, k, v;
  Plan plan;
  Score score;
  bool bias_gradient = true;  // whether backward shall give it: a mask needs none
};

struct Gradients {
  at::Tensor q, k, v;
  at::Tensor bias, sink;  // empty where the score has none or the problem asks for none
};

// Throws Error unless the shapes, dtypes and plan fit each other.
void check_problem(const Problem& problem);

// Throws Error unless what backward is given has the shapes and dtypes that forward gives.
void check_gradients(const Problem& problem, const Attended& attended, const at::Tensor& d_out,
                     const at::Tensor& d_lse);

Attended attend_definition(const Problem& problem);

// d_lse may be undefined (zero).
Gradients attend_backward_definition(const Problem& problem, const Attended& attended, const at::Tensor& d_out,
                                     const at::Tensor& d_lse);

}  // namespace foveate::ops
