// A checked call of attend_neighborhood, and the ways to run it.
#pragma once

#include <ATen/core/List.h>

#include "foveate/ops/attend/prepared.h"
#include "foveate/ops/neighborhood/neighborhood.h"

namespace foveate::ops {

// Of an operator's flat arguments, one number for each axis.  Throws Error: lists of other lengths.
Neighborhood make_neighborhood(at::IntArrayRef grid, at::IntArrayRef kernel, at::IntArrayRef stride,
                               at::IntArrayRef dilation, const c10::List<bool>& is_causal, bool clamps_last_group);

struct NeighborhoodProblem {
  at::Tensor q, k, v;
  Neighborhood neighborhood;
  NeighborhoodScore score;

  double scale() const;
  bool has_extra() const { return score.extra_keys.has_value(); }
  Problem extra() const;  // attention to the extra keys alone
};

struct NeighborhoodResults {  // of backward
  at::Tensor q, k, v;
  at::Tensor bias, extra_keys, extra_values;  // undefined where the score has none
};

std::string text(const at::Tensor& t);  // "Float [1, 2, 9, 4]", for messages

// Throws Error unless the shapes, dtypes and the neighborhood fit each other.
void check_neighborhood_problem(const NeighborhoodProblem& problem);

// Windows alone, without the extra keys.  Definition: plain ATen over lists of keys.
Attended neighborhood_definition(const NeighborhoodProblem& problem);
NeighborhoodResults neighborhood_backward_definition(const NeighborhoodProblem& problem, const Attended& attended,
                                                     const at::Tensor& d_out, const at::Tensor& d_lse);

// Why the kernels decline a checked problem; empty where they run it.
std::string neighborhood_decline_reason(const NeighborhoodProblem& problem);
// On the kernels.  Nothing where a number is not finite: what such numbers do is left to the definition.
// out is fp32 where extra keys are to join it.
std::optional<Attended> neighborhood_cpu(const NeighborhoodProblem& problem);
std::optional<NeighborhoodResults> neighborhood_backward_cpu(const NeighborhoodProblem& problem,
                                                             const Attended& attended, const at::Tensor& d_out,
                                                             const at::Tensor& d_lse);

}  // namespace foveate::ops
