#include "foveate/eval/agreement.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/tensor.h>

#include <limits>
#include <numeric>

#include "foveate/base/error.h"

namespace foveate::eval {
namespace {

constexpr int64_t kRowsAtOnce = 128;

template <class T>
double mean(const std::vector<T>& values) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  return std::accumulate(values.begin(), values.end(), 0.0) / double(values.size());
}

template <class T>
void append(std::vector<T>& to, const at::Tensor& values) {
  const at::Tensor flat = values.to(c10::CppTypeToScalarType<T>::value).contiguous();
  to.insert(to.end(), flat.const_data_ptr<T>(), flat.const_data_ptr<T>() + flat.numel());
}

// [n, 1] int64
at::Tensor as_column(std::span<const int32_t> targets) {
  const std::vector<int64_t> wide(targets.begin(), targets.end());
  return at::tensor(wide, at::kLong).unsqueeze(1);
}

}  // namespace

double Agreement::nats_vs_dense() const { return mean(nll) - mean(dense_nll); }
double Agreement::top1_agreement() const { return mean(same_top1); }
double Agreement::mean_kl() const { return mean(kl); }

Agreement compare_predictions(const models::Decoder& decoder, const at::Tensor& hidden, const at::Tensor& dense_hidden,
                              std::span<const int32_t> targets) {
  const int64_t rows = std::ssize(targets);
  require(hidden.size(0) == rows && dense_hidden.size(0) == rows,
          "compare_predictions: one target per row, got {} and {} rows for {} targets", hidden.size(0),
          dense_hidden.size(0), rows);
  const at::NoGradGuard no_grad;
  Agreement agreement;
  for (int64_t row = 0; row < rows; row += kRowsAtOnce) {
    const int64_t count = std::min(kRowsAtOnce, rows - row);
    const at::Tensor target = as_column(targets.subspan(row, count));
    const at::Tensor ours = at::log_softmax(decoder.logits(hidden.narrow(0, row, count)), 1);
    const at::Tensor dense = at::log_softmax(decoder.logits(dense_hidden.narrow(0, row, count)), 1);
    append(agreement.nll, ours.gather(1, target).neg());
    append(agreement.dense_nll, dense.gather(1, target).neg());
    append(agreement.same_top1, ours.argmax(1).eq(dense.argmax(1)));
    append(agreement.kl, dense.exp().mul_(dense - ours).sum(1).clamp_min_(0));
  }
  return agreement;
}

std::vector<float> token_nll(const models::Decoder& decoder, const at::Tensor& hidden,
                             std::span<const int32_t> targets) {
  const int64_t rows = std::ssize(targets);
  require(hidden.size(0) == rows, "token_nll: one target per row, got {} rows for {} targets", hidden.size(0), rows);
  const at::NoGradGuard no_grad;
  std::vector<float> nll;
  for (int64_t row = 0; row < rows; row += kRowsAtOnce) {
    const int64_t count = std::min(kRowsAtOnce, rows - row);
    const at::Tensor ours = at::log_softmax(decoder.logits(hidden.narrow(0, row, count)), 1);
    append(nll, ours.gather(1, as_column(targets.subspan(row, count))).neg());
  }
  return nll;
}

}  // namespace foveate::eval
