#include "foveate/attention/local/halo.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/index.h>
#include <ATen/ops/where.h>
#include <torch/library.h>

#include <algorithm>

#include "foveate/base/error.h"

namespace foveate::attention {
namespace {

using at::Tensor;

// One axis of a map cut into blocks.
struct Axis {
  int64_t pixels, blocks, queries;  // queries: on every stride-th pixel

  Axis(int64_t size, const Halo& o)
      : pixels(size), blocks((size + o.block - 1) / o.block), queries((size + o.stride - 1) / o.stride) {}
};

Tensor longs(int64_t end) { return at::arange(end, at::kLong); }

// Where the windows of these blocks begin.
Tensor first_pixels(const Tensor& blocks, const Axis& axis, const Halo& o) {
  const Tensor first = blocks * o.block - o.halo;
  return o.padding == HaloPadding::shift ? first.clamp(0, std::max<int64_t>(axis.pixels - o.window(), 0)) : first;
}

// [blocks, window] which pixel of the axis each key is; behind its ends where there is none.
Tensor window_pixels(const Axis& axis, const Halo& o) {
  const int64_t keys = o.padding == HaloPadding::shift ? std::min(o.window(), axis.pixels) : o.window();
  return first_pixels(longs(axis.blocks), axis, o).unsqueeze(1) + longs(keys);
}

// Numbers rows * width + columns of [blocks down, blocks across, rows, columns]; -1 where either is off the map.
Tensor pixel_numbers(const Tensor& rows, const Tensor& columns, int64_t height, int64_t width) {
  const Tensor r = rows.unsqueeze(1).unsqueeze(3), c = columns.unsqueeze(1).unsqueeze(0);
  const Tensor on_map = r.ge(0).logical_and(r.lt(height)).logical_and(c.ge(0)).logical_and(c.lt(width));
  return at::where(on_map, r * width + c, -1);
}

// How far a map of keys is padded in front and behind.
struct Padding {
  int64_t before = 0, behind = 0;

  Padding(const Axis& axis, const Halo& o) {
    if (o.padding == HaloPadding::zero) before = o.halo, behind = axis.blocks * o.block - axis.pixels + o.halo;
  }
  int64_t padded(const Axis& axis) const { return before + axis.pixels + behind; }
};

Plan make_plan(const Axis& rows, const Axis& columns, const Halo& o) {
  if (rows.blocks * columns.blocks == 1) return Rule::full();  // in the order of the map, all keys
  const Padding down(rows, o), across(columns, o);
  const Tensor keys = pixel_numbers(window_pixels(rows, o) + down.before, window_pixels(columns, o) + across.before,
                                    down.padded(rows), across.padded(columns));
  const int64_t queries = o.block / o.stride;
  const auto numbers = [&](const Axis& axis) { return longs(axis.blocks * queries).view({-1, queries}); };
  const Tensor order = pixel_numbers(numbers(rows), numbers(columns), rows.queries, columns.queries);
  TokenPlan plan{.query_block = queries * queries, .index = {}, .rule = Rule::full()};
  plan.index = keys.view({1, 1, rows.blocks * columns.blocks, -1}).to(at::kInt);
  plan.rule.query_order = order.view({1, 1, -1});
  return plan;
}

// Position logits are products too: a key says by ones which row and which column it stands in, both modulo the window,
// in which no two of a window's are alike; a query has there what it gives to each.  (As ops::Relative they took twice
// as long as all the rest: a gather for every pair and axis.)

// [queries, window] which embedding a query has for the key of each remainder.
Tensor embedding_rows(const Axis& axis, const Halo& o) {
  const Tensor pixels = longs(axis.queries) * o.stride;
  const Tensor first = first_pixels(pixels.div(o.block, "floor"), axis, o).unsqueeze(1);
  const Tensor places = (longs(o.window()) - first).remainder(o.window());  // in the window
  if (o.padding == HaloPadding::shift)                                      // a small map has no key for some
    return (first + places - pixels.unsqueeze(1) + o.window() - 1).clamp(0, 2 * o.window() - 2);
  const Tensor rows = pixels.remainder(o.block);
  return places - (o.strided_index ? rows.div(o.stride, "floor") : rows).unsqueeze(1) + o.window() - 1;
}

// q with its position logits behind it, [B, heads, H, W, d + 2 window], such that `scale` gives them back.
Tensor with_position_logits(const Tensor& q, const RelativeEmbeddings& e, const Axis& rows, const Axis& columns,
                            const Halo& o, double scale) {
  const auto type = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto table = [&](const Tensor& embeddings, const Axis& axis) {
    const Tensor chosen = embeddings.to(type).index({embedding_rows(axis, o)});  // [queries, window, d]
    return o.scale_positions ? chosen : chosen / scale;
  };
  const Tensor wide = q.to(type);
  const Tensor down = at::einsum("bhyxd,ywd->bhyxw", {wide, table(e.height, rows)});
  const Tensor across = at::einsum("bhyxd,xwd->bhyxw", {wide, table(e.width, columns)});
  return at::cat({q, down.to(q.scalar_type()), across.to(q.scalar_type())}, -1);
}

// k [B, heads, H, W, d] of the padded map, with its ones behind it.
Tensor with_positions(const Tensor& k, const Padding& down, const Padding& across, int64_t window) {
  const auto ones = [&](int64_t pixels, const Padding& padding) {
    const Tensor remainders = (longs(pixels) - padding.before).remainder(window);
    return remainders.unsqueeze(1).eq(longs(window)).to(k.scalar_type());  // [pixels, window]
  };
  const int64_t height = k.size(2), width = k.size(3);
  const auto on_map = [&](const Tensor& t) { return t.expand({k.size(0), k.size(1), height, width, window}); };
  return at::cat({k, on_map(ones(height, down).unsqueeze(1)), on_map(ones(width, across))}, -1);
}

std::string text(const Tensor& t) { return fmt::format("[{}]", fmt::join(t.sizes().begin(), t.sizes().end(), ", ")); }

void check(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<RelativeEmbeddings>& embeddings,
           const Halo& o) {
  require(o.block >= 1, "halo: block must be >= 1, got {}", o.block);
  require(o.halo >= 0, "halo: halo must be >= 0, got {}", o.halo);
  require(o.stride == 1 || o.stride == 2, "halo: stride must be 1 or 2, got {}", o.stride);
  require(o.block % o.stride == 0, "halo: block must be a multiple of stride, got {} and {}", o.block, o.stride);
  require(q.dim() == 5 && k.dim() == 5 && v.dim() == 5,
          "halo: q, k and v must be [B, heads, H, W, d], got {}, {} and {}", text(q), text(k), text(v));
  const int64_t height = k.size(2), width = k.size(3);
  require(height >= 1 && width >= 1, "halo: the map must not be empty, got {} x {}", height, width);
  require(o.auto_pad || (height % o.block == 0 && width % o.block == 0),
          "halo: H and W must be multiples of block ({}), got {} x {}; a rest needs auto_pad", o.block, height, width);
  const int64_t rows = (height + o.stride - 1) / o.stride, columns = (width + o.stride - 1) / o.stride;
  require(q.size(2) == rows && q.size(3) == columns, "halo: q must have {} x {} pixels (stride {}), got {}", rows,
          columns, o.stride, text(q));
  require(v.size(2) == height && v.size(3) == width, "halo: v must have the pixels of k, {} x {}, got {}", height,
          width, text(v));
  if (!embeddings) return;
  for (const Tensor& table : {embeddings->height, embeddings->width})
    require(table.dim() == 2 && table.size(0) == 2 * o.window() - 1 && table.size(1) == q.size(4),
            "halo: embeddings must be [{}, {}], got {}", 2 * o.window() - 1, q.size(4), text(table));
}

}  // namespace

ops::Attended halo_attend(const Tensor& q, const Tensor& k, const Tensor& v,
                          const std::optional<RelativeEmbeddings>& embeddings, const Halo& o) {
  check(q, k, v, embeddings, o);
  const Axis rows(k.size(2), o), columns(k.size(3), o);
  const Padding down(rows, o), across(columns, o);
  const auto padded = [&](const Tensor& t) {
    if (down.before + down.behind + across.before + across.behind == 0) return t;
    return at::constant_pad_nd(t, {0, 0, across.before, across.behind, down.before, down.behind});
  };
  ops::Score score;
  score.scale = ops::Score{.scale = o.scale}.scale_of(q.size(4));
  Tensor queries = q, keys = padded(k);
  if (embeddings) {
    queries = with_position_logits(q, *embeddings, rows, columns, o, *score.scale);
    keys = with_positions(keys, down, across, o.window());
  }
  const auto flat = [](const Tensor& t) { return t.flatten(2, 3); };
  const ops::Attended flat_out =
      ops::attend(flat(queries), flat(keys), flat(padded(v)), make_plan(rows, columns, o), score);
  return {flat_out.out.unflatten(2, {rows.queries, columns.queries}),
          flat_out.lse.unflatten(2, {rows.queries, columns.queries})};
}

namespace {

HaloPadding padding_named(std::string_view name) {
  if (name == "zero") return HaloPadding::zero;
  if (name == "mask") return HaloPadding::mask;
  require(name == "shift", "halo: padding must be zero, mask or shift, got '{}'", name);
  return HaloPadding::shift;
}

std::tuple<Tensor, Tensor> flat_halo(const Tensor& q, const Tensor& k, const Tensor& v,
                                     const std::optional<Tensor>& height, const std::optional<Tensor>& width,
                                     int64_t block, int64_t halo, int64_t stride, c10::string_view padding,
                                     std::optional<double> scale, bool scale_positions, bool strided_index,
                                     bool auto_pad) {
  require(height.has_value() == width.has_value(), "halo: height and width must be given together");
  const auto embeddings = height ? std::optional(RelativeEmbeddings{*height, *width}) : std::nullopt;
  const auto [out, lse] = halo_attend(q, k, v, embeddings,
                                      {.block = block,
                                       .halo = halo,
                                       .stride = stride,
                                       .padding = padding_named({padding.data(), padding.size()}),
                                       .scale = scale,
                                       .scale_positions = scale_positions,
                                       .strided_index = strided_index,
                                       .auto_pad = auto_pad});
  return {out, lse};
}

}  // namespace

// Made of other operators: tracing and autograd see those.
TORCH_LIBRARY_FRAGMENT(foveate, library) {
  library.def(
      "halo_attend(Tensor q, Tensor k, Tensor v, Tensor? height=None, Tensor? width=None, int block=8, int halo=3, "
      "int stride=1, str padding='zero', float? scale=None, bool scale_positions=False, bool strided_index=False, "
      "bool auto_pad=False) -> (Tensor out, Tensor lse)",
      TORCH_FN(flat_halo));
}

}  // namespace foveate::attention
