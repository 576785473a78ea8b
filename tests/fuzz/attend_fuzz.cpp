// Random attention problems at every level against the definition in fp64: forward, gradients, and the same bits on one
// thread and on two.
//   attend_fuzz [SECONDS] [SEED]
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <numeric>

#include "foveate/kernels/level.h"
#include "foveate/ops/attend/explain.h"
#include "foveate/ops/quantise/quantise.h"
#include "tests/support/compare.h"

using namespace foveate;
using at::Tensor;

namespace {

struct Case {
  Tensor q, k, v, d_out, d_lse;
  Plan plan;
  ops::Score score;
  ops::HeadMap heads;
  std::string text;
};

class Generator {
 public:
  explicit Generator(uint64_t seed) : random_(seed), seed_(seed) {}

  Case make() {
    batch_ = 1 + pick(2), kv_heads_ = 1 + pick(3), heads_ = kv_heads_ * (1 + pick(4));
    queries_ = pick(4) == 0 ? 1 + pick(6) : length();
    keys_ = queries_ < 7 && pick(4) == 0 ? 1 + pick(3500) : length();
    const int64_t dims[] = {1, 3, 8, 16, 24, 37, 40, 64, 80, 96, 128, 130};
    dim_ = dims[pick(12)], value_dim_ = pick(2) ? dim_ : dims[pick(12)];
    const at::ScalarType types[] = {at::kFloat, at::kBFloat16, at::kHalf};
    type_ = types[pick(3)];
    Case c;
    c.q = tensor(heads_, queries_, dim_), c.k = tensor(kv_heads_, keys_, dim_),
    c.v = tensor(kv_heads_, keys_, value_dim_);
    c.d_out = tensor(heads_, queries_, value_dim_);
    c.d_lse = test::random_tensor({batch_, heads_, queries_}, next());
    c.plan = plan();
    c.score = score();
    if (pick(6) == 0) {
      c.heads.keys = longs({heads_}, 0, kv_heads_ - 1);
      if (pick(2)) c.heads.values = longs({heads_}, 0, kv_heads_ - 1);
    }
    c.text = fmt::format(
        "B {} heads {}/{} L {}/{} D {}/{} {} plan {} cap {} bias {} sink {} slopes {} "
        "relative {} leaky {} dropout {} head map {} landmarks {}",
        batch_, heads_, kv_heads_, queries_, keys_, dim_, value_dim_, c10::toString(type_), plan_text_,
        c.score.soft_cap.value_or(0), c.score.bias.has_value(), c.score.sink.has_value(), c.score.slopes.has_value(),
        c.score.relative.has_value(), c.score.leaky.value_or(1), c.score.dropout, c.heads.keys.has_value(),
        c.score.landmarks.has_value());
    return c;
  }

 private:
  int64_t pick(int64_t n) { return int64_t(random_.below(uint64_t(n))); }
  uint64_t next() { return seed_ * 1000003 + ++drawn_; }
  int64_t length() { return pick(5) == 0 ? pick(4) : pick(3) == 0 ? 1 + pick(700) : 1 + pick(150); }

  // Any of several memory layouts.
  Tensor tensor(int64_t heads, int64_t rows, int64_t dim) {
    const Tensor t = test::random_tensor({batch_, heads, rows, dim}, next(), type_);
    switch (pick(4)) {
      case 0:
        return t.transpose(1, 2).contiguous().transpose(1, 2);
      case 1:
        return at::full({batch_, heads, rows, dim + 5}, NAN, t.options()).narrow(3, 2, dim).copy_(t);
      case 2:
        return pick(4) ? t : t.transpose(2, 3).contiguous().transpose(2, 3);
      default:
        return t;
    }
  }

  Tensor longs(at::IntArrayRef shape, int64_t low, int64_t high) {
    const Tensor t = at::zeros(shape, at::kLong);
    for (int64_t i = 0; i < t.numel(); ++i) t.mutable_data_ptr<int64_t>()[i] = low + pick(high - low + 1);
    return t;
  }

  // Some or all queries in random order, with gaps.
  Tensor order(int64_t batch, int64_t heads) {
    rows_ = pick(queries_ + 20);
    const Tensor t = at::full({batch, heads, rows_}, -1, at::kLong);
    for (int64_t list = 0; list < batch * heads; ++list) {
      std::vector<int64_t> ids(static_cast<size_t>(std::max(rows_, queries_)), -1);
      std::iota(ids.begin(), ids.begin() + queries_, 0);
      random_.shuffle(std::span(ids));
      std::copy_n(ids.begin(), rows_, t.mutable_data_ptr<int64_t>() + list * rows_);
    }
    return t;
  }

  Rule rule() {
    Rule r;
    if (pick(3) == 0)
      r.window_right = std::nullopt;
    else if (pick(3) == 0)
      r.window_right = pick(100);
    if (pick(3) == 0) r.query_start = pick(keys_ + 20) - 10;
    if (pick(3) == 0) r.window_left = pick(200);
    if (pick(4) == 0) r.sinks = pick(80);
    if (pick(6) == 0) r.head_window = longs({heads_}, -1, 100);
    if (pick(6) == 0) r.key_lengths = longs({batch_}, 0, keys_ + 3);
    if (pick(6) == 0) {
      r.query_documents = std::get<0>(longs({batch_, queries_}, 0, 3).sort(1));
      r.key_documents = std::get<0>(longs({batch_, keys_}, 0, 3).sort(1));
    }
    if (pick(6) == 0) {
      r.row_start = longs({pick(2) ? batch_ : 1, pick(2) ? heads_ : 1, queries_}, -2, 60);
      r.row_end = longs({1, pick(2) ? heads_ : 1, queries_}, 0, keys_ + 10);
    }
    rows_ = queries_;
    if (pick(6) == 0) r.query_order = order(pick(2) ? batch_ : 1, pick(2) ? heads_ : 1);
    return r;
  }

  int64_t plan_heads() { return std::array<int64_t, 3>{1, kv_heads_, heads_}[size_t(pick(3))]; }

  Plan plan() {
    const Rule base = rule();
    const int64_t kind = pick(6);
    plan_text_ = kind < 2 ? "rule" : kind < 4 ? "blocks" : kind == 4 ? "tokens" : "runs";
    if (base.query_order) plan_text_ += " of ordered queries";
    takes_landmarks_ = kind < 2;
    if (kind < 2) return base;
    const int64_t query_blocks[] = {1, 7, 16, 64, 128, 200}, query_block = query_blocks[pick(6)];
    const int64_t blocks = (rows_ + query_block - 1) / query_block;
    const int64_t b = pick(2) ? batch_ : 1;
    if (kind == 4) {
      const Tensor index = longs({b, plan_heads(), blocks, pick(200)}, -1, keys_ - 1).to(at::kInt);
      return TokenPlan{query_block, index, base};
    }
    if (kind == 5) {
      const std::array<int64_t, 4> shape = {b, plan_heads(), blocks, pick(6)};
      const Tensor start = longs(shape, -3, keys_), length = longs(shape, -3, 1 + pick(keys_ + 20));
      return RunPlan{query_block, start.to(at::kInt), (start + length).to(at::kInt), base};
    }
    const int64_t key_blocks[] = {1, 16, 48, 64, 128, 160}, key_block = key_blocks[pick(6)];
    const int64_t columns = (keys_ + key_block - 1) / key_block, capacity = std::min<int64_t>(columns, 1 + pick(12));
    BlockPlan p{.query_block = query_block,
                .key_block = key_block,
                .count = {},
                .index = {},
                .full_count = {},
                .full_index = {},
                .rule = base};
    int64_t heads = plan_heads();
    p.count = longs({b, heads, blocks}, 0, capacity).to(at::kInt);
    p.index = longs({b, heads, blocks, capacity}, 0, std::max<int64_t>(columns - 1, 0)).to(at::kInt);
    if (pick(2)) {
      heads = plan_heads();
      p.full_count = longs({b, heads, blocks}, 0, capacity).to(at::kInt);
      p.full_index = longs({b, heads, blocks, capacity}, 0, std::max<int64_t>(columns - 1, 0)).to(at::kInt);
    }
    return p;
  }

  ops::Relative relative() {
    const int64_t axes = 1 + pick(3);
    std::vector<int64_t> sizes;
    int64_t columns = 0;
    for (int64_t axis = 0; axis < axes; ++axis) columns += sizes.emplace_back(1 + pick(20));
    const auto axis = [&](int64_t n) { return pick(3) ? n : int64_t{1}; };
    return {test::random_tensor({axis(batch_), axis(heads_), axis(queries_), columns}, next()),
            longs({axes, queries_}, -5, 10), longs({axes, keys_}, -5, 15), sizes};
  }

  ops::Score score() {
    ops::Score s;
    if (pick(4) == 0) s.scale = 0.1 * double(pick(5)) - 0.1;
    if (pick(4) == 0) s.soft_cap = 0.5 + double(pick(5));
    if (pick(4) == 0) {
      const auto axis = [&](int64_t n) { return pick(2) ? n : int64_t{1}; };
      const bool whole = pick(2);
      s.bias = whole ? test::random_tensor({batch_, heads_, queries_, keys_}, next())
                     : test::random_tensor({axis(batch_), axis(heads_), axis(queries_), axis(keys_)}, next());
      if (pick(3) == 0) s.bias = s.bias->to(at::kBFloat16);
    }
    if (pick(4) == 0) s.sink = test::random_tensor({heads_}, next());
    if (pick(6) == 0) s.slopes = test::random_tensor({heads_}, next()).mul(0.02);
    if (pick(6) == 0) s.relative = relative();
    if (pick(8) == 0) s.leaky = 0.2;
    if (pick(10) == 0 && takes_landmarks_) {
      const int64_t blocks[] = {16, 32, 64};
      s.landmarks = at::arange(1, keys_ + 1, at::kLong).remainder(blocks[pick(3)]).eq(0).unsqueeze(0);
    }
    if (pick(8) == 0) s.dropout = 0.1 * double(1 + pick(6)), s.dropout_seed = at::scalar_tensor(pick(1000), at::kLong);
    return s;
  }

  Random random_;
  uint64_t seed_, drawn_ = 0;
  int64_t batch_ = 1, heads_ = 1, kv_heads_ = 1, queries_ = 1, keys_ = 1, dim_ = 1, value_dim_ = 1, rows_ = 1;
  at::ScalarType type_ = at::kFloat;
  bool takes_landmarks_ = false;
  std::string plan_text_;
};

struct Outcome {
  std::vector<Tensor> tensors;
  std::vector<std::string> names;  // out, lse, d_q, d_k, d_v and the score terms'
};

Outcome run(const Case& c, const char* level, at::ScalarType type) {
  ::setenv("FOVEATE_BACKEND", level, 1);
  const auto leaf = [&](const Tensor& t) {
    return (t.scalar_type() == type ? t.detach() : t.to(type)).requires_grad_();
  };
  const Tensor q = leaf(c.q), k = leaf(c.k), v = leaf(c.v);
  ops::Score score = c.score;
  if (score.bias) score.bias = score.bias->detach().requires_grad_();
  if (score.sink) score.sink = score.sink->detach().requires_grad_();
  if (score.slopes) score.slopes = score.slopes->detach().requires_grad_();
  if (score.relative) score.relative->logits = score.relative->logits.detach().requires_grad_();
  const auto [out, lse] = ops::attend(q, k, v, c.plan, score, c.heads);
  Tensor loss = (out * c.d_out.to(type)).to(lse.scalar_type()).sum();
  const Tensor seen = lse.detach().isfinite();
  loss = loss + (lse.masked_fill(seen.logical_not(), 0) * c.d_lse.to(lse.scalar_type())).sum();
  loss.backward();
  Outcome o{{out.detach(), lse.detach(), q.grad(), k.grad(), v.grad()}, {"out", "lse", "d_q", "d_k", "d_v"}};
  const auto add = [&](const char* name, const Tensor& term) {
    o.tensors.push_back(term.grad().clone());
    o.names.emplace_back(name);
  };
  if (score.bias) add("d_bias", *score.bias);
  if (score.sink) add("d_sink", *score.sink);
  if (score.slopes) add("d_slopes", *score.slopes);
  if (score.relative) add("d_relative", score.relative->logits);
  return o;
}

// The Frobenius norms of the difference and of what is wanted; infinity where infinities stand at other places.
struct Distance {
  double error, size;
};

// `kinks`: how many rows may differ at will.
Distance distance(const Tensor& got, const Tensor& want, int64_t kinks) {
  const Tensor a = got.to(at::kDouble), b = want.to(at::kDouble), finite = b.isfinite();
  if (!a.isfinite().equal(finite)) return {INFINITY, 0};
  const auto squares = [&](const Tensor& t) {
    return t.masked_fill(finite.logical_not(), 0).square().sum(-1).flatten();
  };
  const Tensor errors = std::get<0>(squares(a - b).sort());
  const int64_t kept = std::max<int64_t>(errors.numel() - kinks, 0);
  return {std::sqrt(errors.narrow(0, 0, kept).sum().item<double>()), std::sqrt(squares(b).sum().item<double>())};
}

// What rounding `out` to its type may change in d_bias, as a Frobenius norm. A row's d_bias is P (dP - delta), delta =
// sum of out * d_out: half an ulp of an element is eps / 4 sqrt(3) of it in the root mean square (over its mantissa),
// the elements of a row add up to (eps / 4 sqrt(3)) |out * d_out|, and P, whose squares sum to at most 1 in a row,
// spreads that over what the row feeds. Where the bias does not matter (it is the same in the row) nothing else is left
// of the sum.
double rounding_of_delta(const Case& c, const Tensor& out) {
  if (out.scalar_type() != at::kBFloat16 && out.scalar_type() != at::kHalf) return 0;
  const double eps = out.scalar_type() == at::kHalf ? 0x1p-10 : 0x1p-7, sigmas = 3;
  return sigmas * eps / (4 * std::sqrt(3.0)) * (out.to(at::kDouble) * c.d_out.to(at::kDouble)).norm().item<double>();
}

// Empty where every tensor is within its bound of the norm and of its elements, or within twice the error that the
// definition has in the same dtype: sums of many large terms that cancel.
std::string compare(const Case& c, const Outcome& got, const Outcome& want) {
  double unit = c.q.scalar_type() == at::kFloat ? 3e-6 : c.q.scalar_type() == at::kHalf ? 2e-3 : 8e-3;
  Outcome twin;
  unit /= 1 - c.score.dropout;  // what dropout keeps grows, and its error with it
  for (size_t i = 0; i < want.tensors.size(); ++i) {
    if (got.tensors[i].scalar_type() == at::kBFloat16) unit = std::max(unit, 8e-3);  // the gradient of a bf16 bias
    const double bound = i == 1 ? std::max(unit / 20, 3e-6) : i == 0 ? unit : 2 * unit;
    // errors of pairs add up in the gradients of what many pairs share
    const double pairs = double(c.q.size(0) * c.q.size(1) * c.q.size(2) * c.k.size(2));
    double shared = i < 5 ? 1 : std::sqrt(std::max(pairs / double(std::max<int64_t>(want.tensors[i].numel(), 1)), 1.0));
    if (got.names[i] == "d_slopes") shared *= double(c.q.size(2) + c.k.size(2));  // each pair counts by its distance
    const double count = double(std::max<int64_t>(want.tensors[i].numel(), 1)),
                 floor = shared * (i == 1 ? bound : bound / 2);
    // A leaky logit has a kink at 0: the gradient of a pair that rounds to the other side is another, and rightly so.
    const bool through_logits = got.names[i] != "out" && got.names[i] != "lse" && got.names[i] != "d_v";
    const int64_t kinks = c.score.leaky && through_logits ? 2 + want.tensors[i].numel() / 10000 : 0;
    const Distance far = distance(got.tensors[i], want.tensors[i], kinks);
    const double rounded = got.names[i] == "d_bias" ? rounding_of_delta(c, got.tensors[0]) : 0;
    if (far.error <= bound * far.size + floor * std::sqrt(count) + rounded) continue;
    if (twin.tensors.empty()) twin = run(c, "definition", c.q.scalar_type());
    if (std::isfinite(far.error) && far.error <= 2 * distance(twin.tensors[i], want.tensors[i], kinks).error) continue;
    return fmt::format("{} (error {:.2g}, norm {:.2g}, {} elements)", got.names[i], far.error, far.size, count);
  }
  return {};
}

// [B, H, L, D] as pages of `size` keys, L a multiple of it, the last key's page first.
Tensor paged(const Tensor& t, int64_t size) {
  return t.unflatten(2, {t.size(2) / size, size}).transpose(1, 2).flatten(0, 1).flip(0).contiguous();
}

// Forward over keys in 8 bits, against the definition over what they stand for; and over pages of them, which must give
// the same bits.
class Stored {
 public:
  explicit Stored(const Case& c) : exact_(c), k_(ops::quantise_rows(c.k)), v_(ops::quantise_rows(c.v)) {
    exact_.k = ops::dequantise_rows(k_, at::kFloat), exact_.v = ops::dequantise_rows(v_, at::kFloat);
    want_ = run(exact_, "definition", at::kDouble);
    want_.tensors.resize(2), want_.names.resize(2);
  }

  std::string wrong(const char* level) const {
    ::setenv("FOVEATE_BACKEND", level, 1);
    const Case& c = exact_;
    const auto whole = ops::attend(c.q, k_, v_, c.plan, c.score, c.heads);
    std::string wrong = compare(c, {{whole.out, whole.lse}, want_.names}, want_);
    if (!wrong.empty()) return wrong + " over 8 bits";
    ::setenv("FOVEATE_BACKEND", level, 1);  // compare() may have asked the definition
    const int64_t keys = k_.size(2);
    for (const int64_t size : {64, 10, 7, 3, 2, 1}) {
      if (keys == 0 || keys % size != 0) continue;
      const int64_t each = keys / size, all = k_.size(0) * each;
      const Tensor pages = at::arange(all - 1, -1, -1, at::kInt).view({k_.size(0), each});
      const auto parts = ops::attend(c.q, paged(k_, size), paged(v_, size), c.plan, c.score, c.heads, pages);
      if (!parts.out.equal(whole.out) || !parts.lse.equal(whole.lse)) return fmt::format("out over pages of {}", size);
      break;
    }
    return {};
  }

 private:
  Case exact_;
  Tensor k_, v_;
  Outcome want_;
};

}  // namespace

int main(int argc, char** argv) {
  ::setenv("FOVEATE_STRICT", "1", 1);  // a level that declined would be compared with itself
  const double seconds = argc > 1 ? std::atof(argv[1]) : 10;
  uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  int64_t cases = 0;
  for (; elapsed() < seconds; ++seed, ++cases) {
    const Case c = Generator(seed).make();
    const Outcome want = run(c, "definition", at::kDouble);
    const std::optional<Stored> stored = seed % 3 == 0 ? std::optional<Stored>(c) : std::nullopt;
    for (const kernels::Table* table : kernels::levels()) {
      at::set_num_threads(1);
      const Outcome got = run(c, table->name, c.q.scalar_type());
      std::string wrong = compare(c, got, want);
      at::set_num_threads(2);
      const Outcome again = run(c, table->name, c.q.scalar_type());
      for (size_t i = 0; i < got.tensors.size() && wrong.empty(); ++i)
        if (!again.tensors[i].equal(got.tensors[i])) wrong = got.names[i] + " on two threads";
      if (wrong.empty() && stored) wrong = stored->wrong(table->name);
      if (wrong.empty()) continue;
      fmt::print("attend_fuzz: seed {} at {}: {} is wrong; {}\n", seed, table->name, wrong, c.text);
      return 1;
    }
  }
  fmt::print("attend_fuzz: {} problems at {} levels, no mismatch\n", cases, kernels::levels().size());
}
