// attend's definition in plain ATen: any dtype, any plan, forward and explicit blockwise backward from lse.
#pragma once

#include "foveate/ops/attend/attend.h"

namespace foveate::ops {

// Which gradients of score terms backward shall give: a mask needs none.
struct Wanted {
  bool bias = true, sink = true, slopes = true, relative = true;
};

struct Problem {
  at::Tensor q, k, v;
  Plan plan;
  Score score;
  HeadMap heads;
  Wanted wanted;
  std::optional<at::Tensor> pages;  // see attend
  bool keeps_layout = false;        // on the kernels: results lie as q, k, v do (no head map), see empty_rows
  bool has_wide_out = false;        // on the kernels: out is fp32, for those who join it with others

  bool wants_bias() const { return score.bias && wanted.bias; }
  bool wants_sink() const { return score.sink && wanted.sink; }
  bool wants_slopes() const { return score.slopes && wanted.slopes; }
  bool wants_relative() const { return score.relative && wanted.relative; }
};

struct Gradients {
  at::Tensor q, k, v;
  at::Tensor bias, sink, slopes, relative;  // empty where the score has none or the problem wants none
};

// Throws Error unless the shapes, dtypes and plan fit each other.
void check_problem(const Problem& problem);

// Throws Error unless what backward is given has the shapes and dtypes that forward gives.
void check_gradients(const Problem& problem, const Attended& attended, const at::Tensor& d_out,
                     const at::Tensor& d_lse);

// Gives the gradients of score terms the dtypes of what they belong to.
void cast_score_gradients(const Problem& problem, Gradients& gradients);

Attended attend_definition(const Problem& problem);

// d_lse may be undefined (zero).
Gradients attend_backward_definition(const Problem& problem, const Attended& attended, const at::Tensor& d_out,
                                     const at::Tensor& d_lse);

}  // namespace foveate::ops
