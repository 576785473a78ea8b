#include "foveate/ops/fused.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "foveate/base/error.h"
#include "foveate/ops/attend/prepared.h"
#include "foveate/ops/level.h"
#include "foveate/ops/parallel.h"

namespace foveate::ops {
namespace {

using at::Tensor;
using kernels::DType;

void check_type(const Tensor& t, std::string_view name) {
  require(t.scalar_type() == at::kFloat || t.scalar_type() == at::kBFloat16, "{}: dtype must be fp32 or bf16, got {}",
          name, c10::toString(t.scalar_type()));
}

const float* factors(const Tensor& weight, int64_t width, std::string_view name) {
  if (!weight.defined()) return nullptr;
  require(weight.scalar_type() == at::kFloat && weight.dim() == 1 && weight.size(0) == width && weight.is_contiguous(),
          "{}: a norm must be fp32 [{}], got {} [{}]", name, width, c10::toString(weight.scalar_type()),
          fmt::join(weight.sizes(), ", "));
  return weight.const_data_ptr<float>();
}

// A tensor as rows of its last axis, an equal stride apart; copied where it is not that.
class Rows {
 public:
  explicit Rows(const Tensor& t) : held_(is_regular(t) ? t : t.contiguous()), type_(dtype_of(held_)) {
    width = held_.size(-1), rows = width > 0 ? held_.numel() / width : 0;
    for (int64_t axis = held_.dim() - 2; axis >= 0; --axis)
      if (held_.size(axis) > 1) {
        stride_ = held_.stride(axis);
        break;
      }
    data_ = static_cast<const char*>(held_.const_data_ptr());
  }
  const void* operator[](int64_t row) const { return data_ + row * stride_ * int64_t(kernels::bytes_of(type_)); }
  DType type() const { return type_; }

  int64_t width = 0, rows = 0;

 private:
  static bool is_regular(const Tensor& t) {
    if (t.size(-1) != 1 && t.stride(-1) != 1) return false;
    int64_t next = -1;  // the stride that the axis before must have
    for (int64_t axis = t.dim() - 2; axis >= 0; --axis) {
      if (t.size(axis) == 1) continue;
      if (next >= 0 && t.stride(axis) != next) return false;
      next = t.stride(axis) * t.size(axis);
    }
    return true;
  }

  Tensor held_;
  DType type_;
  const char* data_ = nullptr;
  int64_t stride_ = 0;
};

// work(row) for every row; threads are woken only for what takes longer than waking them.
template <class Work>
void each_row(int64_t rows, int64_t width, const Work& work) {
  constexpr int64_t kItem = int64_t{1} << 14;  // elements
  const int64_t some = std::max<int64_t>(kItem / std::max<int64_t>(width, 1), 1);
  const auto run = [&](int64_t item, int) {
    for (int64_t row = item * some; row < std::min((item + 1) * some, rows); ++row) work(row);
  };
  if (rows <= some) return run(0, 0);
  run_queue(torch_pool(), (rows + some - 1) / some, run);
}

}  // namespace

bool can_fuse() { return !at::GradMode::is_enabled() && kernel_table(); }

Tensor take_in(Tensor& x, const Tensor& branch, const RmsNorms& norms, at::ScalarType type) {
  require(x.scalar_type() == at::kFloat && x.dim() >= 1 && x.is_contiguous(), "take_in: x must be fp32, contiguous");
  require(!branch.defined() || branch.sizes() == x.sizes(), "take_in: branch must be [{}], got [{}]",
          fmt::join(x.sizes(), ", "), branch.defined() ? fmt::format("{}", fmt::join(branch.sizes(), ", ")) : "");
  const Tensor read = at::empty(x.sizes(), x.options().dtype(type));
  check_type(read, "take_in");
  if (branch.defined()) check_type(branch, "take_in");
  const std::optional<Rows> from = branch.defined() ? std::optional<Rows>(branch) : std::nullopt;
  const int64_t width = x.size(-1);
  kernels::BranchRow common;
  common.branch_norm = from ? factors(norms.branch, width, "take_in") : nullptr;
  common.norm = factors(norms.next, width, "take_in");
  common.epsilon = float(norms.epsilon), common.width = int(width), common.type = dtype_of(read);
  if (from) common.branch_type = from->type();
  float* stream = x.mutable_data_ptr<float>();
  auto* to = static_cast<char*>(read.mutable_data_ptr());
  const int64_t row_bytes = width * int64_t(kernels::bytes_of(common.type));
  const kernels::Table& table = *kernel_table();
  each_row(width > 0 ? x.numel() / width : 0, width, [&](int64_t row) {
    kernels::BranchRow r = common;
    r.x = stream + row * width, r.to = to + row * row_bytes;
    if (from) r.branch = (*from)[row];
    table.take_in(r);
  });
  return read;
}

Tensor rotated_heads(const Tensor& rows, int64_t heads, const Tensor& norm, double epsilon, const Rotation* rotation) {
  check_type(rows, "rotated_heads");
  require(rows.dim() == 3 && heads >= 1 && rows.size(2) % heads == 0,
          "rotated_heads: rows must be [B, L, {} * D], got [{}]", heads, fmt::join(rows.sizes(), ", "));
  const int64_t batch = rows.size(0), length = rows.size(1), dim = rows.size(2) / heads;
  const Tensor out = at::empty({batch, heads, length, dim}, rows.options());
  const Rows from(rows);
  kernels::HeadRows common;
  common.stride = length * dim, common.type = from.type(), common.heads = int(heads), common.dim = int(dim);
  common.norm = factors(norm, dim, "rotated_heads"), common.epsilon = float(epsilon);
  Tensor cos, sin;
  if (rotation) {
    rotation->check(length, dim);
    cos = rotation->cos.to(at::kFloat).contiguous(), sin = rotation->sin.to(at::kFloat).contiguous();
    common.half = int(cos.size(1));
  }
  const float *cosines = rotation ? cos.const_data_ptr<float>() : nullptr,
              *sines = rotation ? sin.const_data_ptr<float>() : nullptr;
  auto* to = static_cast<char*>(out.mutable_data_ptr());
  const auto bytes = int64_t(kernels::bytes_of(common.type));
  const kernels::Table& table = *kernel_table();
  each_row(from.rows, from.width, [&](int64_t row) {
    kernels::HeadRows r = common;
    const int64_t b = row / length, place = row % length;
    r.from = from[row], r.to = to + (b * heads * length + place) * dim * bytes;
    if (rotation) r.cos = cosines + place * common.half, r.sin = sines + place * common.half;
    table.rotate_heads(r);
  });
  return out;
}

Tensor rotated_for_each(const Tensor& x, const Tensor& places, const Rotation& rotation) {
  check_type(x, "rotated_for_each");
  require(x.dim() == 4 && places.dim() == 4 && places.sizes().slice(0, 3) == x.sizes().slice(0, 3),
          "rotated_for_each: places must be [B, H, L, N] of x [B, H, L, D], got [{}] and [{}]",
          fmt::join(places.sizes(), ", "), fmt::join(x.sizes(), ", "));
  const int64_t each = places.size(3), dim = x.size(3), count = rotation.cos.size(0);
  rotation.check(count, dim);
  const Tensor out = at::empty({x.size(0), x.size(1), x.size(2), each, dim}, x.options());
  const Tensor cos = rotation.cos.to(at::kFloat).contiguous(), sin = rotation.sin.to(at::kFloat).contiguous();
  const Tensor given = places.contiguous();
  const int64_t* place = given.const_data_ptr<int64_t>();
  require(std::all_of(place, place + given.numel(), [&](int64_t p) { return p >= 0 && p < count; }),
          "rotated_for_each: places must be 0 .. {}, got others", count - 1);
  const Rows from(x);
  kernels::HeadRows common;
  common.stride = dim, common.type = from.type(), common.heads = 1, common.dim = int(dim);
  common.norm = nullptr, common.half = int(cos.size(1));
  auto* to = static_cast<char*>(out.mutable_data_ptr());
  const int64_t bytes = dim * int64_t(kernels::bytes_of(common.type));
  const kernels::Table& table = *kernel_table();
  each_row(from.rows, from.width * each, [&](int64_t row) {
    for (int64_t n = row * each; n < (row + 1) * each; ++n) {
      kernels::HeadRows r = common;
      r.from = from[row], r.to = to + n * bytes;
      r.cos = cos.const_data_ptr<float>() + place[n] * common.half;
      r.sin = sin.const_data_ptr<float>() + place[n] * common.half;
      table.rotate_heads(r);
    }
  });
  return out;
}

Tensor gated(const Tensor& gate, const Tensor& up, Gate activation) {
  check_type(gate, "gated");
  require(!up.defined() || (up.sizes() == gate.sizes() && up.scalar_type() == gate.scalar_type()),
          "gated: gate and up must have one shape and dtype, got [{}] and [{}]", fmt::join(gate.sizes(), ", "),
          up.defined() ? fmt::format("{}", fmt::join(up.sizes(), ", ")) : "");
  const Tensor out = at::empty(gate.sizes(), gate.options());
  const Rows from(gate);
  const std::optional<Rows> factor = up.defined() ? std::optional<Rows>(up) : std::nullopt;
  kernels::GateRow common;
  common.type = from.type(), common.count = int(from.width), common.is_gelu = activation == Gate::gelu_tanh;
  auto* to = static_cast<char*>(out.mutable_data_ptr());
  const int64_t row_bytes = from.width * int64_t(kernels::bytes_of(common.type));
  const kernels::Table& table = *kernel_table();
  each_row(from.rows, from.width, [&](int64_t row) {
    kernels::GateRow r = common;
    r.gate = from[row], r.to = to + row * row_bytes;
    if (factor) r.up = (*factor)[row];
    table.gate_row(r);
  });
  return out;
}

}  // namespace foveate::ops
