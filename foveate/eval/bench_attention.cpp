#include "foveate/eval/bench_attention.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <map>

#include "foveate/base/error.h"
#include "foveate/base/random.h"
#include "foveate/base/timer.h"
#include "foveate/eval/bench_cases.h"
#include "foveate/eval/relative_error.h"
#include "foveate/ops/attend/definition.h"
#include "foveate/ops/attend/explain.h"
#include "foveate/ops/level.h"
#include "foveate/ops/parallel.h"
#include "foveate/ops/quantise/quantise.h"

namespace foveate::eval {
namespace {

using at::Tensor;

struct Inputs {
  Tensor q, k, v, d_out;
};

Inputs make_inputs(const AttentionCase& c) {
  const auto make = [&](int64_t heads, int64_t rows, uint64_t seed) {
    const Tensor t = at::zeros({c.batch, heads, rows, c.dim});
    Random random(seed);
    float* data = t.mutable_data_ptr<float>();
    for (int64_t i = 0; i < t.numel(); ++i) data[i] = float(random.uniform() * 2 - 1);
    return t.to(c.type);
  };
  const auto keys = [&](uint64_t seed) {
    const Tensor t = make(c.kv_heads, c.keys, seed);
    return c.quantised ? ops::quantise_rows(t) : t;
  };
  return {make(c.heads, c.queries, 1), keys(2), keys(3), make(c.heads, c.queries, 4)};
}

// Seconds of single runs, best first, until `seconds` are spent.
std::vector<double> time_runs(double seconds, const std::function<void()>& run) {
  std::vector<double> times;
  const Timer all;
  do {
    const Timer one;
    run();
    times.push_back(one.seconds());
  } while (all.seconds() < seconds || times.size() < 3);
  std::sort(times.begin(), times.end());
  return times;
}

// The first key head's group of a case.
AttentionCase first_group(const AttentionCase& c) {
  AttentionCase one = c;
  one.heads = c.heads / c.kv_heads, one.kv_heads = 1, one.batch = 1;
  return one;
}

ops::Score score_of(const AttentionCase& c, int64_t heads) { return c.score ? c.score(heads) : ops::Score{}; }

// Holds the kernels' results against the definition's in fp32, over the first key head's group of the real problem.
void check(const AttentionCase& c, const Inputs& all, const ops::Attended& whole) {
  const AttentionCase one = first_group(c);
  const auto cut = [&](const Tensor& t, int64_t heads) { return t.narrow(0, 0, 1).narrow(1, 0, heads); };
  const ops::Problem low{cut(all.q, one.heads), cut(all.k, 1), cut(all.v, 1), c.plan, score_of(c, one.heads), {}, {}};
  const auto exactly = [](const Tensor& t) { return ops::widened(t, at::kFloat).to(at::kFloat); };
  const ops::Problem high{exactly(low.q), exactly(low.k), exactly(low.v), c.plan, low.score, {}, {}};
  const double bound = c.type == at::kFloat ? 1e-5 : c.type == at::kHalf ? 2e-3 : 1e-2;
  const auto expect = [&](const char* what, const Tensor& got, const Tensor& want) {
    const double error = relative_error(got, want);
    require(error <= bound, "bench: {}: {} differs from the definition by {:.2g} (relative), allowed {:.2g}", c.name,
            what, error, bound);
  };
  const ops::Attended want = ops::attend_definition(high);
  expect("out", cut(whole.out, one.heads), want.out);
  if (c.pass == BenchPass::forward) return;
  const ops::Attended own{cut(whole.out, one.heads).contiguous(),
                          whole.lse.narrow(0, 0, 1).narrow(1, 0, one.heads).contiguous()};
  const Tensor d_out = cut(all.d_out, one.heads);
  const ops::Gradients exact = ops::attend_backward_definition(high, want, d_out.to(at::kFloat), {});
  const auto run = ops::decline_reason(low).empty() ? ops::attend_backward_cpu : ops::attend_backward_definition;
  const ops::Gradients got = run(low, own, d_out, {});
  expect("d_q", got.q, exact.q);
  expect("d_k", got.k, exact.k);
  expect("d_v", got.v, exact.v);
}

// torch's own attention on the same inputs; backward is timed without its forward.
double time_sdpa(const AttentionCase& c, const Inputs& x, double seconds, bool folded) {
  const bool causal = rule_of(c.plan).window_right.has_value() && c.queries > 1, grouped = c.heads != c.kv_heads;
  Tensor q = x.q, k = x.k, v = x.v;
  if (folded) q = q.view({c.batch, c.kv_heads, c.heads / c.kv_heads * c.queries, c.dim});
  const auto attention = [&](const Tensor& q, const Tensor& k, const Tensor& v) {
    return at::scaled_dot_product_attention(q, k, v, {}, 0.0, causal, std::nullopt, grouped && !folded);
  };
  if (c.pass == BenchPass::forward) {
    const at::NoGradGuard no_gradients;
    return time_runs(seconds, [&] { attention(q, k, v); }).front();
  }
  q = q.detach().requires_grad_(), k = k.detach().requires_grad_(), v = v.detach().requires_grad_();
  std::vector<double> times;
  const Timer all;
  do {
    const Tensor out = attention(q, k, v);
    const Timer one;
    out.backward(x.d_out);
    times.push_back(one.seconds());
  } while (all.seconds() < 2 * seconds || times.size() < 3);
  return *std::min_element(times.begin(), times.end());
}

const kernels::Table& level_table() { return ops::kernel_table() ? *ops::kernel_table() : *kernels::levels().back(); }

// 10^9 a second, of work() that returns how much it did.
template <class Work>
double best_rate(const Work& work) {
  double rate = 0;
  for (int i = 0; i < 8; ++i) {
    const Timer timer;
    const double done = work();
    rate = std::max(rate, done / timer.seconds() * 1e-9);
  }
  return rate;
}

// Of the products that a dtype runs on, on one thread.  Clocks change, so every case is held against its own.
double products_peak(at::ScalarType type) {
  const kernels::Table& table = level_table();
  const bool pairs = type == at::kBFloat16 && table.peak_products[1];
  return best_rate([&] { return table.peak_products[pairs](1'000'000); });
}

// Memory that all threads read side by side.
double read_rate(const Tensor& memory) {
  const int64_t threads = at::get_num_threads(), each = memory.numel() / threads;
  return best_rate([&] {
    run_queue(ops::torch_pool(), threads,
              [&](int64_t part, int) { level_table().read(memory.const_data_ptr<float>() + part * each, each); });
    return 4.0 * double(each * threads);
  });
}

Tensor more_than_any_cache() { return at::ones({int64_t{64} << 20}); }  // 256 MiB

AttentionTiming time_case(const AttentionCase& c, const BenchOptions& options) {
  at::set_num_threads(c.threads);
  const Inputs x = make_inputs(c);
  const ops::Problem problem{x.q, x.k, x.v, c.plan, score_of(c, c.heads), {}, {}};
  AttentionTiming t{.shape = c};
  const auto pass = c.pass == BenchPass::forward ? ops::Pass::forward : ops::Pass::backward;
  t.kernel = ops::explain(x.q, x.k, x.v, c.plan, problem.score, pass);
  const bool kernels = ops::decline_reason(problem).empty();
  const auto forward = kernels ? ops::attend_cpu : ops::attend_definition;
  const auto backward = kernels ? ops::attend_backward_cpu : ops::attend_backward_definition;
  const ops::Attended attended = forward(problem);
  check(c, x, attended);
  const double before = products_peak(c.type);
  const std::vector<double> times = time_runs(options.seconds, [&] {
    if (c.pass == BenchPass::forward)
      forward(problem);
    else
      backward(problem, attended, x.d_out, {});
  });
  t.seconds = times.front(), t.median = times[times.size() / 2];
  t.operations = visible_pairs(c.plan, x.q, x.k) * double(c.dim) * (c.pass == BenchPass::forward ? 4 : 10);
  t.bytes = double(x.k.nbytes() + x.v.nbytes());
  if (c.queries < c.keys) t.of_read = t.bytes / t.seconds / (read_rate(more_than_any_cache()) * 1e9);
  const double peak = std::max(before, products_peak(c.type));
  t.of_peak = t.operations / t.seconds / (peak * 1e9 * c.threads);
  if (options.peers && c.sdpa) {
    t.sdpa_seconds = time_sdpa(c, x, options.seconds, false);
    if (c.queries == 1 && c.heads != c.kv_heads) t.folded_sdpa_seconds = time_sdpa(c, x, options.seconds, true);
  }
  return t;
}

}  // namespace

MachinePeaks measure_peaks() {
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const double read = read_rate(more_than_any_cache());
  at::set_num_threads(threads);
  return {.fp32 = products_peak(at::kFloat),
          .bf16 = level_table().peak_products[1] ? products_peak(at::kBFloat16) : 0,
          .read = read};
}

void bench_attention(const BenchOptions& options, const std::function<void(const AttentionTiming&)>& done) {
  const int threads = at::get_num_threads();
  std::map<std::string, double> rates;  // of earlier cases
  for (const AttentionCase& c : attention_cases(options)) {
    AttentionTiming t = time_case(c, options);
    rates[c.name] = t.operations / t.seconds;
    if (c.reference && rates.contains(*c.reference)) t.of_reference = rates[c.name] / rates[*c.reference];
    done(t);
  }
  at::set_num_threads(threads);
}

}  // namespace foveate::eval
