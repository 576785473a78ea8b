// As a torch operator: schema, CPU, Meta (shapes only) and autograd.
#include "foveate/ops/offsets/weigh_offsets.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/_softmax_backward_data.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <vector>

#include "foveate/base/error.h"
#include "foveate/ops/attend/explain.h"
#include "foveate/ops/attend/prepared.h"
#include "foveate/ops/level.h"
#include "foveate/ops/once.h"
#include "foveate/ops/parallel.h"

namespace foveate::ops {
namespace {

using at::IntArrayRef;
using at::Tensor;
using Wanted = std::array<bool, 2>;  // gradients of value, of logits
using Gradients = std::tuple<Tensor, Tensor>;

std::string text(const Tensor& t) { return fmt::format("[{}]", fmt::join(t.sizes().begin(), t.sizes().end(), ", ")); }

void check(const Tensor& value, const Tensor& logits, IntArrayRef rows, IntArrayRef columns) {
  require(value.dim() == 4 && logits.dim() == 4 && value.is_floating_point() && logits.is_floating_point() &&
              value.size(0) == logits.size(0) && value.size(1) >= 1 && value.size(2) >= 1 && value.size(3) >= 1,
          "weigh_offsets: value [B, C, H, W] and logits [B, n, I H, I W] must be floating point, got {} {} and {} {}",
          c10::toString(value.scalar_type()), text(value), c10::toString(logits.scalar_type()), text(logits));
  require(!rows.empty() && rows.size() == columns.size() && logits.size(1) == std::ssize(rows),
          "weigh_offsets: rows, columns and logits must have as many offsets, >= 1, got {}, {} and {}", rows.size(),
          columns.size(), logits.size(1));
  const int64_t factor = logits.size(2) / value.size(2);
  require(factor >= 1 && logits.size(2) == factor * value.size(2) && logits.size(3) == factor * value.size(3),
          "weigh_offsets: logits must have I x I pixels for each cell of {} x {}, I whole, got {} x {}", value.size(2),
          value.size(3), logits.size(2), logits.size(3));
}

at::ScalarType wide(const Tensor& value) { return value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// From contiguous logits: the bits shall not depend on their strides.
Tensor softmax_of(const Tensor& logits, at::ScalarType type) { return at::softmax(logits.contiguous(), 1, type); }

Tensor channels_last(const Tensor& t) { return t.permute({0, 2, 3, 1}).contiguous(); }  // [B, H, W, C]

// ---- in plain ATen: the definition, and what fp64 runs in ----

// A grid's cells seen from offset k: index of rows and of columns.
struct Seen {
  Tensor rows, columns;

  Seen(const Tensor& value, int64_t row, int64_t column)
      : rows((at::arange(value.size(2), at::kLong) + row).clamp_(0, value.size(2) - 1)),
        columns((at::arange(value.size(3), at::kLong) + column).clamp_(0, value.size(3) - 1)) {}
  Tensor of(const Tensor& value) const {  // [B, C, H, 1, W, 1]
    return value.index_select(2, rows).index_select(3, columns).unsqueeze(3).unsqueeze(5);
  }
};

// [B, x, I H, I W] -> [B, x, H, I, W, I]
Tensor by_cell(const Tensor& pixels, const Tensor& value) {
  return pixels.unflatten(3, {value.size(3), -1}).unflatten(2, {value.size(2), -1});
}

Tensor forward_definition(const Tensor& value, const Tensor& logits, IntArrayRef rows, IntArrayRef columns) {
  const Tensor v = value.to(wide(value)), weights = by_cell(softmax_of(logits, wide(value)), v);
  Tensor out = at::zeros({v.size(0), v.size(1), v.size(2), weights.size(3), v.size(3), weights.size(5)}, v.options());
  for (size_t k = 0; k < rows.size(); ++k)
    out.addcmul_(weights.narrow(1, int64_t(k), 1), Seen(v, rows[k], columns[k]).of(v));
  return out.flatten(4, 5).flatten(2, 3).to(value.scalar_type()).contiguous(at::MemoryFormat::ChannelsLast);
}

Gradients backward_definition(const Tensor& d_out, const Tensor& value, const Tensor& logits, IntArrayRef rows,
                              IntArrayRef columns) {
  const Tensor v = value.to(wide(value)), weights = softmax_of(logits, wide(value));
  const Tensor given = by_cell(d_out.to(v.scalar_type()), v), shares = by_cell(weights, v);
  Tensor d_value = at::zeros(v.sizes(), v.options());
  std::vector<Tensor> d_weights;
  for (size_t k = 0; k < rows.size(); ++k) {
    const Seen seen(v, rows[k], columns[k]);
    const Tensor cells = (shares.narrow(1, int64_t(k), 1) * given).sum({3, 5});
    d_value.add_(at::zeros_like(v).index_add(2, seen.rows, at::zeros_like(v).index_add(3, seen.columns, cells)));
    d_weights.push_back((seen.of(v) * given).sum(1).flatten(3, 4).flatten(1, 2));
  }
  const Tensor d_logits = at::_softmax_backward_data(at::stack(d_weights, 1), weights, 1, weights.scalar_type());
  return {d_value.to(value.scalar_type()).contiguous(at::MemoryFormat::ChannelsLast),
          d_logits.to(logits.scalar_type())};
}

// ---- by rows of channels ----

struct Grid {
  int64_t batch, channels, height, width, factor, offsets;
  IntArrayRef rows, columns;
  kernels::DType type;

  Grid(const Tensor& value, const Tensor& logits, IntArrayRef r, IntArrayRef c)
      : batch(value.size(0)),
        channels(value.size(1)),
        height(value.size(2)),
        width(value.size(3)),
        factor(logits.size(2) / value.size(2)),
        offsets(logits.size(1)),
        rows(r),
        columns(c),
        type(dtype_of(value)) {}

  int64_t children() const { return factor * factor; }
  int64_t row_of(int64_t i, int64_t k) const { return std::clamp<int64_t>(i + rows[size_t(k)], 0, height - 1); }
  int64_t column_of(int64_t j, int64_t k) const { return std::clamp<int64_t>(j + columns[size_t(k)], 0, width - 1); }
  int64_t cell(int64_t b, int64_t i, int64_t j) const { return (b * height + i) * width + j; }
  // Child n of a cell, as a pixel of the output and as one of a weight's plane.
  int64_t plane_pixel(int64_t i, int64_t j, int64_t n) const {
    return (i * factor + n / factor) * width * factor + j * factor + n % factor;
  }
  int64_t plane() const { return height * width * children(); }
  int64_t pixel(int64_t b, int64_t i, int64_t j, int64_t n) const { return b * plane() + plane_pixel(i, j, n); }
  int64_t weight(int64_t b, int64_t k) const { return (b * offsets + k) * plane(); }

  // work(b, i, first and last column) over all rows of cells, in parts that are enough for threads to share.
  template <class Work>
  void each_row(const Work& work) const {
    run_queue(torch_pool(), batch * height, [&](int64_t item, int) { work(item / height, item % height); });
  }
};

// Rows of channels of a tensor [B, H, W, C].
struct Channels {
  char* data;
  int64_t bytes;

  Channels(const Tensor& t, int64_t channels)
      : data(static_cast<char*>(const_cast<void*>(t.const_data_ptr()))), bytes(channels * int64_t(t.element_size())) {}
  void* operator[](int64_t row) const { return data + row * bytes; }
};

Tensor forward_rows(const Tensor& value, const Tensor& logits, IntArrayRef rows, IntArrayRef columns) {
  const Grid g(value, logits, rows, columns);
  const Tensor out = at::empty({g.batch, g.channels, g.height * g.factor, g.width * g.factor},
                               value.options().memory_format(at::MemoryFormat::ChannelsLast));
  const Tensor values = channels_last(value), weights = softmax_of(logits, at::kFloat);
  const Channels from(values, g.channels), to(out, g.channels);
  const float* w = weights.const_data_ptr<float>();
  const kernels::Table& table = *kernel_table();
  g.each_row([&](int64_t b, int64_t i) {
    std::vector<const void*> seen(size_t(g.offsets));
    std::vector<void*> children(size_t(g.children()));
    std::vector<float> shares(size_t(g.offsets * g.children()));
    for (int64_t j = 0; j < g.width; ++j) {
      for (int64_t k = 0; k < g.offsets; ++k) {
        seen[size_t(k)] = from[g.cell(b, g.row_of(i, k), g.column_of(j, k))];
        for (int64_t n = 0; n < g.children(); ++n)
          shares[size_t(k * g.children() + n)] = w[g.weight(b, k) + g.plane_pixel(i, j, n)];
      }
      for (int64_t n = 0; n < g.children(); ++n) children[size_t(n)] = to[g.pixel(b, i, j, n)];
      table.weigh_rows({.rows = seen.data(),
                        .count = int(g.offsets),
                        .weights = shares.data(),
                        .to = children.data(),
                        .targets = int(g.children()),
                        .dim = int(g.channels),
                        .type = g.type});
    }
  });
  return out;
}

// d_weights[b, k, p, q] = value at offset k . d_out[b, :, p, q]
Tensor weight_gradient(const Grid& g, const Channels& values, const Channels& given, const Tensor& weights) {
  const Tensor d_weights = at::empty(weights.sizes(), weights.options());
  float* to = d_weights.mutable_data_ptr<float>();
  const kernels::Table& table = *kernel_table();
  g.each_row([&](int64_t b, int64_t i) {
    std::vector<const void*> seen(size_t(g.offsets)), children(size_t(g.children()));
    std::vector<float> dots(size_t(g.offsets * g.children()));
    for (int64_t j = 0; j < g.width; ++j) {
      for (int64_t k = 0; k < g.offsets; ++k) seen[size_t(k)] = values[g.cell(b, g.row_of(i, k), g.column_of(j, k))];
      for (int64_t n = 0; n < g.children(); ++n) children[size_t(n)] = given[g.pixel(b, i, j, n)];
      table.dot_rows({.rows = seen.data(),
                      .targets = children.data(),
                      .count = int(g.offsets),
                      .target_count = int(g.children()),
                      .dim = int(g.channels),
                      .type = g.type,
                      .to = dots.data()});
      for (int64_t k = 0; k < g.offsets; ++k)
        for (int64_t n = 0; n < g.children(); ++n)
          to[g.weight(b, k) + g.plane_pixel(i, j, n)] = dots[size_t(k * g.children() + n)];
    }
  });
  return d_weights;
}

// The cells whose offset `by` ends at `cell` of an axis: [first, end).
struct Sources {
  int64_t first, end;

  Sources(int64_t cell, int64_t by, int64_t cells)
      : first(cell == 0 ? 0 : cell - by), end(cell == cells - 1 ? cells : cell - by + 1) {
    first = std::max<int64_t>(first, 0), end = std::min(end, cells);
  }
};

// A cell collects from every pixel that saw it: rows of d_out, each with its weight.
void value_gradient(const Grid& g, const Channels& given, const float* weights, const Channels& to) {
  const kernels::Table& table = *kernel_table();
  g.each_row([&](int64_t b, int64_t i) {
    std::vector<const void*> pixels;
    std::vector<float> shares;
    for (int64_t j = 0; j < g.width; ++j) {
      pixels.clear(), shares.clear();
      for (int64_t k = 0; k < g.offsets; ++k) {
        const Sources down(i, g.rows[size_t(k)], g.height), across(j, g.columns[size_t(k)], g.width);
        for (int64_t y = down.first; y < down.end; ++y)
          for (int64_t x = across.first; x < across.end; ++x)
            for (int64_t n = 0; n < g.children(); ++n) {
              pixels.push_back(given[g.pixel(b, y, x, n)]);
              shares.push_back(weights[g.weight(b, k) + g.plane_pixel(y, x, n)]);
            }
      }
      void* target = to[g.cell(b, i, j)];
      table.weigh_rows({.rows = pixels.data(),
                        .count = int(pixels.size()),
                        .weights = shares.data(),
                        .to = &target,
                        .targets = 1,
                        .dim = int(g.channels),
                        .type = g.type});
    }
  });
}

Gradients backward_rows(const Tensor& d_out, const Tensor& value, const Tensor& logits, IntArrayRef rows,
                        IntArrayRef columns, Wanted wanted) {
  const Grid g(value, logits, rows, columns);
  const Tensor given = channels_last(d_out.to(value.scalar_type())), weights = softmax_of(logits, at::kFloat);
  const Channels from(given, g.channels);
  Tensor d_value = at::empty({0}, value.options()), d_logits = at::empty({0}, logits.options());
  if (wanted[0]) {
    d_value = at::empty(value.sizes(), value.options().memory_format(at::MemoryFormat::ChannelsLast));
    value_gradient(g, from, weights.const_data_ptr<float>(), Channels(d_value, g.channels));
  }
  if (wanted[1]) {
    const Tensor values = channels_last(value);
    const Tensor d_weights = weight_gradient(g, Channels(values, g.channels), from, weights);
    d_logits = at::_softmax_backward_data(d_weights, weights, 1, at::kFloat).to(logits.scalar_type());
  }
  return {d_value, d_logits};
}

// ---- the operator ----

bool by_rows(const Tensor& value, Pass pass) {
  return value.numel() > 0 && choose_kernel("weigh_offsets", decline_reason(value.scalar_type()), pass);
}

Tensor forward(const Tensor& value, const Tensor& logits, IntArrayRef rows, IntArrayRef columns) {
  check(value, logits, rows, columns);
  return (by_rows(value, Pass::forward) ? forward_rows : forward_definition)(value, logits, rows, columns);
}

Gradients backward(const Tensor& d_out, const Tensor& value, const Tensor& logits, IntArrayRef rows,
                   IntArrayRef columns, Wanted wanted) {
  check(value, logits, rows, columns);
  if (by_rows(value, Pass::backward)) return backward_rows(d_out, value, logits, rows, columns, wanted);
  const auto [d_value, d_logits] = backward_definition(d_out, value, logits, rows, columns);
  return {wanted[0] ? d_value : at::empty({0}, value.options()),
          wanted[1] ? d_logits : at::empty({0}, logits.options())};
}

Tensor channels_last_like(const Tensor& t, c10::SymIntArrayRef sizes) {
  return at::empty_symint(sizes, t.options().memory_format(at::MemoryFormat::ChannelsLast));
}

Tensor forward_meta(const Tensor& value, const Tensor& logits, IntArrayRef, IntArrayRef) {
  return channels_last_like(value, {value.sym_size(0), value.sym_size(1), logits.sym_size(2), logits.sym_size(3)});
}

Gradients backward_meta(const Tensor&, const Tensor& value, const Tensor& logits, IntArrayRef, IntArrayRef,
                        Wanted wanted) {
  return {wanted[0] ? channels_last_like(value, value.sym_sizes()) : at::empty({0}, value.options()),
          wanted[1] ? at::empty_symint(logits.sym_sizes(), logits.options()) : at::empty({0}, logits.options())};
}

class WeighOffsets : public torch::autograd::Function<WeighOffsets> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& value, const Tensor& logits,
                        IntArrayRef rows, IntArrayRef columns) {
    at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({value, logits});
    context->saved_data["rows"] = rows.vec();
    context->saved_data["columns"] = columns.vec();
    return weigh_offsets(value, logits, rows, columns);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const auto rows = context->saved_data["rows"].toIntVector(), columns = context->saved_data["columns"].toIntVector();
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("foveate::weigh_offsets_backward", "")
                               .typed<decltype(foveate::ops::backward)>();
    const Wanted wanted = {context->needs_input_grad(0), context->needs_input_grad(1)};
    const auto [d_value, d_logits] = [&] {
      at::AutoDispatchBelowADInplaceOrView below;
      return op.call(gradients[0], saved[0], saved[1], rows, columns, wanted);
    }();
    return once_differentiable("weigh_offsets",
                               {wanted[0] ? d_value : Tensor(), wanted[1] ? d_logits : Tensor(), Tensor(), Tensor()},
                               {saved[0], saved[1], gradients[0]});
  }
};

Tensor autograd(const Tensor& value, const Tensor& logits, IntArrayRef rows, IntArrayRef columns) {
  return WeighOffsets::apply(value, logits, rows, columns);
}

}  // namespace

Tensor weigh_offsets(const Tensor& value, const Tensor& logits, IntArrayRef rows, IntArrayRef columns) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("foveate::weigh_offsets", "").typed<decltype(forward)>();
  return op.call(value, logits, rows, columns);
}

TORCH_LIBRARY_FRAGMENT(foveate, library) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  library.def("weigh_offsets(Tensor value, Tensor logits, int[] rows, int[] columns) -> Tensor", tags);
  library.def(
      "weigh_offsets_backward(Tensor d_out, Tensor value, Tensor logits, int[] rows, int[] columns, "
      "bool[2] output_mask) -> (Tensor d_value, Tensor d_logits)",
      tags);
}

TORCH_LIBRARY_IMPL(foveate, CPU, library) {
  library.impl("weigh_offsets", TORCH_FN(forward));
  library.impl("weigh_offsets_backward", TORCH_FN(backward));
}

TORCH_LIBRARY_IMPL(foveate, Meta, library) {
  library.impl("weigh_offsets", TORCH_FN(forward_meta));
  library.impl("weigh_offsets_backward", TORCH_FN(backward_meta));
}

TORCH_LIBRARY_IMPL(foveate, Autograd, library) { library.impl("weigh_offsets", TORCH_FN(autograd)); }

}  // namespace foveate::ops
