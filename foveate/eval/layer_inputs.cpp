// Made-up layers for the bench of mechanisms.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>

#include <cmath>

#include "foveate/base/random.h"
#include "foveate/eval/bench_mechanisms.h"

namespace foveate::eval {
namespace {

constexpr int64_t kTopics = 64, kSegment = 64, kSinks = 4;
constexpr double kRotaryBase = 500000;
constexpr double kTopicLogit = 8, kSinkLogit = 6;  // of a query and a key that belong together, before rotation

at::Tensor normal(at::IntArrayRef sizes, uint64_t stream) {
  const at::Tensor t = at::empty(sizes, at::kFloat);
  Random random(0, stream);
  float* data = t.mutable_data_ptr<float>();
  for (int64_t i = 0; i < t.numel(); ++i) data[i] = float(random.normal());
  return t;
}

// The topic of each row: keys have their segment's; half of the queries look for that too, half for another segment's.
at::Tensor topics(int64_t rows, bool of_queries) {
  const at::Tensor ids = at::empty({rows}, at::kLong);
  Random segments(0, 1), queries(0, 2);
  int64_t* data = ids.mutable_data_ptr<int64_t>();
  int64_t topic = 0;
  for (int64_t row = 0; row < rows; ++row) {
    if (row % kSegment == 0) topic = int64_t(segments.below(kTopics));
    const bool is_elsewhere = of_queries && queries.below(2) == 1;
    data[row] = is_elsewhere ? int64_t(queries.below(kTopics)) : topic;
  }
  return ids;
}

const ops::Rotary& rotary_of(int64_t dim) {
  static const ops::Rotary narrow(64, kRotaryBase), wide(256, kRotaryBase);
  return dim == 64 ? narrow : wide;
}

}  // namespace

std::string LayerProblem::name() const {
  return fmt::format("{} tokens, {}/{} heads of {}", length, heads, kv_heads, dim);
}

LayerProblem layer_problem(int64_t length) {
  if (length <= 8192) return {length, 9, 3, 64, 576};
  if (length <= 32768) return {length, 4, 1, 256, 640};
  return {length, 4, 1, 64, 640};
}

attention::Inputs layer_inputs(const LayerProblem& problem, int64_t rows, at::ScalarType type) {
  const int64_t dim = problem.dim, group = problem.heads / problem.kv_heads;
  const double root = std::sqrt(double(dim));
  const at::Tensor directions = normal({problem.kv_heads, kTopics, dim}, 3) * std::sqrt(kTopicLogit / root);
  at::Tensor q = normal({1, problem.heads, rows, dim}, 4), k = normal({1, problem.kv_heads, rows, dim}, 5);
  k.add_(directions.index_select(1, topics(rows, false)).unsqueeze(0));
  q.add_(directions.index_select(1, topics(rows, true)).repeat_interleave(group, 0).unsqueeze(0));
  // Sinks lie in the channel that rotation turns least, so that every row finds them.
  const double sink = std::sqrt(kSinkLogit * root);
  q.select(3, dim / 2 - 1).add_(sink);
  k.narrow(2, 0, std::min(kSinks, rows)).select(3, dim / 2 - 1).add_(sink);
  const at::Tensor positions = at::arange(rows, at::kLong);
  const ops::Rotary& rotary = rotary_of(dim);
  attention::Inputs in;
  in.q = rotary.rotate(q, positions).to(type), in.k = rotary.rotate(k, positions).to(type);
  in.v = normal({1, problem.kv_heads, rows, dim}, 6).to(type);
  in.rotary = &rotary;
  in.hidden = normal({1, rows, problem.width}, 7);
  return in;
}

}  // namespace foveate::eval
