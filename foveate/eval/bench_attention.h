// Speed of ops::attend against the machine's peaks and torch's own attention, measured in one process.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "foveate/ops/attend/attend.h"

namespace foveate::eval {

// What the machine can do on one thread, measured: 10^9 operations or bytes a second.
struct MachinePeaks {
  double fp32 = 0, bf16 = 0;  // products in registers; bf16 0 where the level has no such products
  double read = 0;            // memory
};
MachinePeaks measure_peaks();

enum class BenchPass { forward, backward };

struct AttentionCase {
  std::string name;
  int64_t batch = 1, heads = 4, kv_heads = 4, queries = 2048, keys = 2048, dim = 64;
  at::ScalarType type = at::kBFloat16;
  bool quantised = false;  // k and v in 8 bits
  BenchPass pass = BenchPass::forward;
  int threads = 1;
  Plan plan;
  std::function<ops::Score(int64_t heads)> score;  // of the first heads; empty: plain
  bool sdpa = false;                               // torch's attention can do the same: causal, or full without a plan
  std::optional<std::string> reference;            // the case whose rate this one is held against
};

struct AttentionTiming {
  AttentionCase shape;
  std::string kernel;  // what ran, or why the definition did
  double seconds = 0;  // the best of several runs
  double median = 0;
  double operations = 0;    // useful: 4 * D per visible pair forward, 10 * D backward
  double bytes = 0;         // of keys and values, each once
  double of_peak = 0;       // rate over threads * the peak measured beside it
  double of_read = 0;       // bytes a second over what as many threads read, measured beside it; 0: not a decode case
  double of_reference = 0;  // rate over the reference case's; 0 without one
  double sdpa_seconds = 0;  // 0: not run
  double folded_sdpa_seconds = 0;  // one query, with the group of query heads as its rows; 0: not run
};

struct BenchOptions {
  std::vector<std::string> suites = {"dense"};  // dense sparse window scores ragged decode
  std::vector<std::string> dtypes = {"bf16", "fp32"};
  std::vector<int64_t> dims = {64, 128}, lengths = {2048};
  std::vector<int> threads = {1};
  bool backward = true, peers = true;
  double seconds = 1;  // spent on each measurement, at least three runs
};

at::ScalarType bench_dtype(const std::string& name);  // bf16 fp16 fp32; throws Error: another one

// Throws Error: an unknown suite or dtype, numbers < 1.
std::vector<AttentionCase> attention_cases(const BenchOptions& options);

// Checks every case against the definition before it is timed.  Throws Error where they differ.
void bench_attention(const BenchOptions& options, const std::function<void(const AttentionTiming&)>& done);

}  // namespace foveate::eval
