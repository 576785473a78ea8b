// Sorted-group attention: tokens sorted by their nearest centre, cut into equal groups that attend to themselves and to
// the next group, while all tokens attend to the centres.   Source: CATANet, 2503.06896, section 3.2.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "foveate/ops/attend/attend.h"

namespace foveate::attention {

// ---- centres: spherical k-means over the tokens of a whole batch ----

// x [B, N, C] -> [count, C]: the sequence with its last count - N % count tokens appended in reverse, cut into equal
// parts; means over each part and the batch.  Differentiable.  Throws Error: count < 1, fewer tokens than count.
at::Tensor first_centres(const at::Tensor& x, int64_t count);

// One step: every token goes to the centre of largest cosine (ties to the lower index), and a centre becomes the
// direction of the sum of its tokens over batch and sequence; without tokens it stays.
// x [B, N, C], centres [M, C] -> [M, C] with rows of length 1, fp32 (fp64 for fp64).  Gradients: of x through sums and
// lengths, of centres that stay.
at::Tensor refine_centres(const at::Tensor& x, const at::Tensor& centres);

// `iterations` steps, >= 1, the last alone with gradients.
at::Tensor refine_centres(const at::Tensor& x, const at::Tensor& centres, int64_t iterations);

// [B, N] int64: the centre of largest cosine for each token, ties to the lower index.  No gradients.
at::Tensor nearest_centres(const at::Tensor& x, const at::Tensor& centres);

// [B, N] int64: the tokens of each sequence by their centre, those of one in the order of the sequence.
at::Tensor sort_by_centre(const at::Tensor& nearest);

// ---- attention ----

enum class GroupWindow {
  own,   // a group sees itself
  next,  // and the following group (published)
  both,  // and both its neighbours
};
enum class CentreMerge {
  sum,    // a softmax over the window plus a softmax over the centres (published)
  joint,  // one softmax over both
};

struct SortedGroups {
  int64_t group = 128;  // tokens of a group, >= 1; a shorter sequence is one group
  GroupWindow window = GroupWindow::next;
  CentreMerge merge = CentreMerge::sum;
  std::optional<double> scale;  // unset: 1 / sqrt(d)
};

struct CentreRows {
  at::Tensor k, v;  // [heads, M, d], [heads, M, dv], of the whole batch
};

// q, k [B, heads, N, d], v [B, heads, N, dv], order [B, N] (sort_by_centre) -> out [B, heads, N, dv] in the order of q.
// Behind its end the sorted sequence goes on with its tail in reverse, before its beginning with its head: border
// groups see some tokens twice, and these count twice.  The last group may be shorter; the first token of the tail that
// is needed must exist.  Gradients as ops::attend.
// Throws Error: options, shapes; sequences of more than `group` and fewer than 1.5 groups' tokens.
at::Tensor sorted_group_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                  const at::Tensor& order, const std::optional<CentreRows>& centres = {},
                                  const SortedGroups& options = {});

}  // namespace foveate::attention
