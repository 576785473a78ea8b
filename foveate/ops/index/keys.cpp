#include "foveate/ops/index/keys.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "foveate/base/error.h"
#include "foveate/kernels/level.h"
#include "foveate/ops/level.h"

namespace foveate::ops {
namespace {

using at::Tensor;
constexpr int64_t kPanel = kernels::kPanelKeys;
constexpr int64_t kColumns = kPanel / kernels::kIndexColumn;  // of a panel

bool level_has_pairs() { return kernel_table() && kernels::has_pairs(*kernel_table()); }

}  // namespace

IndexKeys::IndexKeys(int64_t dim, const IndexForm& form)
    : dim_(dim), steps_(dim), pairs_(form.type != IndexType::fp32 && level_has_pairs()), form_(form) {
  require(dim >= 1, "index keys: dim must be >= 1, got {}", dim);
  if (pairs_) steps_ = (dim + 1) / 2;
}

Tensor IndexKeys::units(const Tensor& x) const {
  if (form_.type == IndexType::fp32) return x.to(at::kFloat).contiguous();
  const Tensor rounded = x.to(at::kBFloat16);
  if (!pairs_) return rounded.to(at::kFloat).contiguous();
  return (dim_ % 2 ? at::constant_pad_nd(rounded, {0, 1}) : rounded).contiguous().view(at::kFloat);
}

void IndexKeys::append(const Tensor& x) {
  require(x.dim() == 2 && x.size(1) == dim_ && x.is_floating_point(),
          "index keys: rows must be floating point [n, {}], got {} [{}]", dim_, c10::toString(x.scalar_type()),
          fmt::join(x.sizes(), ", "));
  if (form_.type == IndexType::e4m3) return append(quantise_float8(x, form_.float8));
  put(units(x.detach()));
}

void IndexKeys::append(const Float8Rows& rows) {
  const Tensor &codes = rows.codes, &scales = rows.scales;
  require(
      form_.type == IndexType::e4m3 && codes.scalar_type() == at::kFloat8_e4m3fn && codes.dim() == 2 &&
          codes.size(1) == dim_ && scales.dim() == 1 && scales.size(0) == codes.size(0) &&
          scales.scalar_type() == at::kFloat,
      "index keys: rows of e4m3 must be codes [n, {}] and fp32 scales [n] for keys of e4m3, got {} [{}] and {} [{}]",
      dim_, c10::toString(codes.scalar_type()), fmt::join(codes.sizes(), ", "), c10::toString(scales.scalar_type()),
      fmt::join(scales.sizes(), ", "));
  const int64_t first = length_;
  put(units(codes.to(at::kBFloat16)));
  scales_.narrow(0, first, scales.size(0)).copy_(scales);
}

void IndexKeys::reserve(int64_t length) {
  const int64_t held = panels_.defined() ? panels_.size(0) : 0;
  if (held * kPanel >= length && panels_.defined()) return;
  const int64_t wanted = held == 0 ? length : std::max(length, length_ + length_ / 2);
  const int64_t panels = (wanted + kPanel - 1) / kPanel;
  const Tensor larger = at::zeros({panels, steps_, kPanel}, at::kFloat);
  if (held) larger.narrow(0, 0, held).copy_(panels_);
  panels_ = larger;
  if (form_.type != IndexType::e4m3) return;
  const Tensor scales = at::zeros({panels * kPanel}, at::kFloat);
  if (held) scales.narrow(0, 0, held * kPanel).copy_(scales_);
  scales_ = scales;
}

void IndexKeys::put(const Tensor& rows) {
  const int64_t count = rows.size(0);
  reserve(length_ + count);
  int64_t done = 0;
  const auto part_of_panel = [&](int64_t some) {
    panels_.select(0, length_ / kPanel).narrow(1, length_ % kPanel, some).copy_(rows.narrow(0, done, some).t());
    done += some, length_ += some;
  };
  if (length_ % kPanel && count > 0) part_of_panel(std::min(count, kPanel - length_ % kPanel));
  if (const int64_t whole = (count - done) / kPanel; whole > 0) {
    const Tensor body = rows.narrow(0, done, whole * kPanel).unflatten(0, {whole, kPanel});
    panels_.narrow(0, length_ / kPanel, whole).copy_(body.transpose(1, 2));
    done += whole * kPanel, length_ += whole * kPanel;
  }
  if (done < count) part_of_panel(count - done);
}

void IndexKeys::truncate(int64_t length) {
  require(length >= 0 && length <= length_, "index keys: length must be in [0, {}], got {}", length_, length);
  length_ = length;
}

int64_t IndexKeys::bytes() const {
  return (panels_.defined() ? int64_t(panels_.nbytes()) : 0) + (scales_.defined() ? int64_t(scales_.nbytes()) : 0);
}

int64_t IndexKeys::key_bytes() const { return 4 * (steps_ + (form_.type == IndexType::e4m3 ? 1 : 0)); }

Float8Rows IndexKeys::rows(int64_t first, int64_t count) const {
  require(first >= 0 && count >= 0 && first + count <= length_, "index keys: rows must be in [0, {}), got [{}, {})",
          length_, first, first + count);
  if (count == 0) return {at::zeros({0, dim_}, at::kFloat), at::zeros({0}, at::kFloat)};
  const int64_t panel = first / kPanel, panels = (first + count - 1) / kPanel - panel + 1;
  const Tensor all = panels_.narrow(0, panel, panels).transpose(1, 2).reshape({-1, steps_});
  Tensor rows = at::empty({count, steps_}, at::kFloat);  // not contiguous(): one key's axes may have any strides
  rows.copy_(all.narrow(0, first - panel * kPanel, count));
  if (pairs_) rows = rows.view(at::kBFloat16).narrow(1, 0, dim_).to(at::kFloat);
  return {rows, scales_.defined() ? scales_.narrow(0, first, count) : scales_};
}

Tensor IndexKeys::values(int64_t first, int64_t count) const {
  const Float8Rows held = rows(first, count);
  return scales_.defined() && count > 0 ? held.values() : held.codes;
}

const float* IndexKeys::column(int64_t i) const {
  return panels_.const_data_ptr<float>() + i / kColumns * steps_ * kPanel + i % kColumns * kernels::kIndexColumn;
}

const float* IndexKeys::scales() const { return scales_.defined() ? scales_.const_data_ptr<float>() : nullptr; }

Tensor pool_rows(const Tensor& x, IndexPooling pooling) {
  const Tensor from = x.to(at::kFloat).contiguous(), to = at::empty({1, x.size(1)}, at::kFloat);
  const int64_t rows = x.size(0), dim = x.size(1);
  require(rows >= 1, "pool_rows: at least one row is needed, got 0");
  const float* row = from.const_data_ptr<float>();
  float* sum = to.mutable_data_ptr<float>();
  std::copy_n(row, dim, sum);
  for (int64_t i = 1; i < rows; ++i) {
    row += dim;
    for (int64_t d = 0; d < dim; ++d)
      sum[d] = pooling == IndexPooling::mean ? sum[d] + row[d] : sum[d] < row[d] || row[d] != row[d] ? row[d] : sum[d];
  }
  if (pooling == IndexPooling::mean)
    for (int64_t d = 0; d < dim; ++d) sum[d] /= float(rows);
  return to;
}

BlockedKeys::BlockedKeys(int64_t dim, const IndexForm& form, int64_t block, IndexPooling pooling, bool pooled_as_bf16)
    : keys_(dim, form),
      pooled_(dim, {form.type == IndexType::fp32 ? IndexType::fp32
                    : pooled_as_bf16             ? IndexType::bf16
                                                 : form.type,
                    {.least = 1e-10, .power_of_two = form.float8.power_of_two}}),
      block_(block),
      pooling_(pooling) {
  require(block >= 1, "index keys: block must be >= 1, got {}", block);
}

void BlockedKeys::pool_from(int64_t block) {
  pooled_.truncate(std::min(block, pooled_.length()));
  const int64_t length = keys_.length(), first = block * block_;
  if (first >= length) return;
  const Tensor fresh = keys_.values(first, length - first);
  std::vector<Tensor> means;
  for (int64_t at = 0; at < fresh.size(0); at += block_)
    means.push_back(pool_rows(fresh.narrow(0, at, std::min(block_, fresh.size(0) - at)), pooling_));
  pooled_.append(at::cat(means));
}

void BlockedKeys::truncate(int64_t length) {
  keys_.truncate(length);
  pool_from(length / block_);
}

IndexKeys BlockedKeys::pooled_parts(const std::vector<int64_t>& first, const std::vector<int64_t>& end) const {
  IndexKeys parts(pooled_.dim(), pooled_.form());
  std::vector<Tensor> means;
  for (size_t i = 0; i < first.size(); ++i)
    means.push_back(first[i] < end[i] ? pool_rows(keys_.values(first[i], end[i] - first[i]), pooling_)
                                      : at::zeros({1, keys_.dim()}, at::kFloat));
  if (!means.empty()) parts.append(at::cat(means));
  return parts;
}

}  // namespace foveate::ops
