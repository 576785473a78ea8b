#include "foveate/attention/sparse/xattention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/roll.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <charconv>
#include <limits>

#include "foveate/attention/dense.h"
#include "foveate/attention/sparse/block_lists.h"
#include "foveate/base/random.h"
#include "foveate/ops/quantise/quantise.h"
#include "foveate/ops/select/select.h"

namespace foveate::attention {
namespace {

using at::Tensor;
using Select = XAttention::Select;

std::vector<double> head_taus(const std::string& text) {
  std::vector<double> taus;
  for (size_t first = 0; !text.empty() && first <= text.size();) {
    const size_t end = std::min(text.find('/', first), text.size());
    double tau = 0;
    const auto [stop, status] = std::from_chars(text.data() + first, text.data() + end, tau);
    require(status == std::errc() && stop == text.data() + end && tau > 0 && tau <= 1,
            "xattention: head_tau must be numbers > 0 .. 1 as 0.9/0.8, got '{}'", text);
    taus.push_back(tau);
    first = end + 1;
  }
  return taus;
}

// x [B, H, L, D] in groups of `stride`, zeros behind the end: [B, H, groups, stride, D].
Tensor grouped(const Tensor& x, int64_t stride) {
  const int64_t groups = (x.size(2) + stride - 1) / stride, missing = groups * stride - x.size(2);
  return (missing ? at::constant_pad_nd(x, {0, 0, 0, missing}) : x).unflatten(2, {groups, stride});
}

// [stride]: which query of a group meets key s.
Tensor query_order(const XAttention& o) {
  std::vector<int64_t> order(static_cast<size_t>(o.stride));
  for (int64_t s = 0; s < o.stride; ++s) order[size_t(s)] = o.select == Select::slash ? s : o.stride - 1 - s;
  if (o.select == Select::random) {
    Random random(uint64_t(o.seed));
    for (size_t s = order.size() - 1; s > 0; --s) std::swap(order[s], order[random.below(s + 1)]);
  }
  return at::tensor(order, at::kLong);
}

Tensor key_groups(const XAttention& o, const Tensor& k) {
  Tensor groups = grouped(k, o.stride);
  if (o.select == Select::two_lines || o.select == Select::three_lines) groups = groups + at::roll(groups, -1, 3);
  if (o.select == Select::three_lines) groups = groups + at::roll(groups, 1, 3);
  return groups.flatten(3, 4).flatten(0, 1);  // [B * Hkv, groups, stride * D], k's own memory where it is whole
}

// Sums of tiles of size x size: x [B, H, n, m] -> [B, H, ceil(n / size), ceil(m / size)].
Tensor tile_sums(const Tensor& x, int64_t size) {
  const int64_t rows = (x.size(2) + size - 1) / size, columns = (x.size(3) + size - 1) / size;
  const int64_t below = rows * size - x.size(2), behind = columns * size - x.size(3);
  const Tensor whole = below + behind > 0 ? at::constant_pad_nd(x, {0, behind, 0, below}) : x;
  return whole.unflatten(3, {columns, size}).sum(-1).unflatten(2, {rows, size}).sum(3);
}

}  // namespace

void XAttention::validate() const {
  check_options(*this);
  require(block % stride == 0, "xattention: block must be a multiple of stride, got {} and {}", block, stride);
  require(tau > 0, "xattention: tau must be > 0 .. 1, got {}", tau);
  head_taus(head_tau);
}

Tensor XAttention::estimate(const Inputs& in) const {
  validate();
  const at::ScalarType given = in.q.scalar_type(), type = given == at::kHalf ? at::kFloat : given;
  const at::ScalarType wide = given == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor keys = key_groups(*this, ops::widened(keys_in_sight(in).detach(), type).to(type)),
               order = query_order(*this);
  const BlockGrid grid(in, block, block, name), groups_seen(in, stride, stride, name);
  const int64_t batch = in.q.size(0), heads = in.q.size(1), queries = in.q.size(2), each = block / stride;
  const int64_t groups = keys.size(1);
  const double scale = in.score.scale_of(in.q.size(3)) / double(stride);
  const Tensor z = at::zeros({batch, heads, grid.rows(), grid.key_blocks()}, in.q.options().dtype(wide));
  constexpr int64_t kStripGroups = 64;  // rows of products at a time, for each head: little above the diagonal is made
  const int64_t strip = std::max<int64_t>(kStripGroups / each, 1);
  for (int64_t first = 0; first < grid.rows(); first += strip) {
    const int64_t from = first * block, rows = std::min(strip * block, queries - from);
    const Tensor part = grouped(in.q.detach().narrow(2, from, rows).to(type), stride).index_select(3, order);
    const int64_t count = part.size(2);
    const BlockGrid::Span span = groups_seen.span(from / stride, count);
    const int64_t last = span.begin[count - 1].item<int64_t>();
    const int64_t columns = std::clamp<int64_t>(last / stride + 1, 1, groups);
    const Tensor flat = part.reshape({keys.size(0), -1, keys.size(2)});
    Tensor logits = at::empty({keys.size(0), flat.size(1), columns}, flat.options());
    for (int64_t i = 0; i < keys.size(0); ++i)  // bmm copies transposed bf16 matrices: three times as slow
      logits[i].copy_(at::linear(flat[i], keys[i].narrow(0, 0, columns)));
    logits = logits.to(wide).mul_(scale).view({batch, heads, count, columns});
    // a group of queries sees groups of keys that begin at or before its first query
    Tensor hidden = at::arange(columns, at::kLong).gt(span.begin.div(stride, "floor"));
    int64_t sure = std::min(columns - 1, std::max<int64_t>(span.begin[0].item<int64_t>() / stride, 0));
    if (!shows_all_before(in.rule)) {
      sure = 0;
      hidden = groups_seen.seen(span).narrow(3, 0, columns).logical_not_().logical_or_(hidden);
    }
    logits.narrow(3, sure, columns - sure)
        .masked_fill_(hidden.narrow(-1, sure, columns - sure), -std::numeric_limits<double>::infinity());
    Tensor shares = logits.softmax(-1);
    if (sure == 0) shares.masked_fill_(hidden.all(-1, true), 0);  // rows that see nothing
    const Tensor sums = tile_sums(shares, each);
    z.narrow(2, first, sums.size(2)).narrow(3, 0, sums.size(3)).copy_(sums);
  }
  return z;
}

Attended XAttention::attend(const Inputs& in) const {
  return is_generated_row(in) ? Dense{}.attend(in) : attend_prompt(in);
}

Attended XAttention::attend_prompt(const Inputs& in) const {
  validate();
  const BlockGrid grid(in, block, block, name);
  if (grid.rows() == 0 || in.k.size(2) == 0 || grid.key_blocks() == 1) return Dense{}.attend(in);
  std::vector<double> taus = head_taus(head_tau);
  require(taus.empty() || std::ssize(taus) == in.q.size(1),
          "xattention: head_tau must be one for each of {} query heads, got {}", in.q.size(1), taus.size());
  if (taus.empty()) taus.push_back(tau);
  const BlockGrid::Span span = grid.span(0, grid.rows());
  const Tensor seen = grid.seen(span);
  const Tensor index = ops::select_mass(
      estimate(in), at::tensor(taus, at::kDouble).view({-1, 1, 1}),
      {.forced = grid.first_block(span).logical_or(grid.own_blocks(span)), .banned = seen.logical_not()});
  return attend_blocks(grid, index, in);
}

std::unique_ptr<State> XAttention::make_state(const StateOptions& options) const {
  validate();
  return std::make_unique<PromptState<XAttention>>(*this, options);
}

}  // namespace foveate::attention
