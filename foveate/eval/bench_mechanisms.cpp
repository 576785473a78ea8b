#include "foveate/eval/bench_mechanisms.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/scaled_dot_product_attention.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "foveate/attention/dense.h"
#include "foveate/base/error.h"
#include "foveate/base/timer.h"
#include "foveate/eval/kept_mass.h"
#include "foveate/eval/relative_error.h"

namespace foveate::eval {
namespace {

using at::Tensor;
using attention::Attended;
using attention::Inputs;
using attention::Mechanism;

// How a mechanism is given a budget: options that make it look at 1 to 18 % of all pairs of a causal prompt (n/16 keys
// for each row are an eighth of the n/2 that dense attention has; what it came to is measured; quest reads prompts
// densely), and options that cover everything, "" where none do.  One that is not here runs at its defaults.
struct Budget {
  std::string_view mechanism, sparse, full;
};
constexpr Budget kBudgets[] = {
    {"window", "size=n/16", "size=n"},
    {"neighborhood", "kernel=n/64,dilation=4", "kernel=n"},
    {"dhsa", "budget=n/16,decode=sparse", "budget=n"},
    {"dhsa_blocks", "density=0.06", "density=1"},
    {"block_topk", "density=0.12", "density=1"},
    {"xattention", "tau=0.2", "tau=1"},
    {"quest", "budget=n/16", "budget=n"},
    {"triangle", "size=n/16", "size=n"},
    {"vertical_slash", "vertical=n/32,slash=128", "slash=n"},
    {"flexprefill", "gamma=0.25,min_budget=n/128", "gamma=1"},
    {"nsa", "blocks=n/2048,window=n/32", "gates=selected,phi=mean,blocks=n"},
    {"duo", "size=n/16,full_heads=none", "full_heads=all"},
    {"flux", "cheap=(window:size=n/16),route=cheap", "route=full"},
    {"hisa", "topk=n/16,heads=4,dim=64", "topk=n"},  // 256 dims, where layers have 256 to 1,024
    {"landmark", "", "mode=nomem"},
    {"cca", "window=n/32", "group=1"},
    {"hyper", "min_seq_len=n/32,block_size=n/128,sample_size=n/128", "min_seq_len=n"},
    {"superlinear", "num_spans=2,sw_index=16,backward_factor=1,forward_factor=0.3", ""},
};

const Budget* budget_of(std::string_view mechanism) {
  const auto found = std::ranges::find(kBudgets, mechanism, &Budget::mechanism);
  return found == std::end(kBudgets) ? nullptr : found;
}

double median(std::vector<double> numbers) {
  std::ranges::sort(numbers);
  return numbers[numbers.size() / 2];
}

Inputs rows_of(const Inputs& all, int64_t first, int64_t count) {
  Inputs part = all;
  part.q = all.q.narrow(2, first, count);
  part.k = all.k.narrow(2, first, count), part.v = all.v.narrow(2, first, count);
  part.hidden = all.hidden->narrow(1, first, count);
  return part;
}

// One mechanism on one problem, with learned parts as they begin.
class Layer {
 public:
  Layer(const std::string& spec, const LayerProblem& problem)
      : mechanism_(attention::make_mechanism(parse_spec(spec))),
        learned_(attention::make_learned(
            mechanism_.learned_parts({problem.width, problem.heads, problem.kv_heads, problem.dim, problem.dim}), 0)) {}

  struct Run {
    double prefill_seconds = 0;
    std::vector<double> decode_seconds;
    Attended prompt, last;  // of the prefill, of the last decoded token
    int64_t read_bytes = 0;
  };
  // Reads the first `prompt` rows at once and the others one by one.
  Run run(Inputs in, int64_t prompt) const {
    in.learned = &learned_;
    const auto state = mechanism_.make_state({.rule = in.rule});
    Run run;
    const Timer prefill;
    run.prompt = state->prefill(rows_of(in, 0, prompt));
    run.prefill_seconds = prefill.seconds();
    run.read_bytes = state->read_bytes();
    for (int64_t row = prompt; row < in.q.size(2); ++row) {
      const Inputs one = rows_of(in, row, 1);
      const Timer decode;
      run.last = state->decode(one);
      run.decode_seconds.push_back(decode.seconds());
    }
    return run;
  }

 private:
  Mechanism mechanism_;
  attention::Learned learned_;
};

// Throws Error where a spec whose budget covers everything is not dense attention.
void check(const LayerProblem& problem, const MechanismBenchOptions& options, MechanismTiming& t) {
  const int64_t length = std::min<int64_t>(problem.length, 1000), prompt = length - 8;
  const Inputs in = layer_inputs(problem, length, options.type);
  const auto outs = [&](const std::string& spec) {
    const Layer::Run run = Layer(spec, problem).run(in, prompt);
    return std::array<Tensor, 2>{run.prompt.out, run.last.out};
  };
  const auto own = outs(t.attention);
  for (const Tensor& out : own)
    require(out.isfinite().all().item<bool>(), "{}: out must be finite at {} tokens", t.attention, length);
  if (!t.full) return;
  const auto got = outs(*t.full), want = outs("dense");
  t.full_error = std::max(relative_error(got[0], want[0]), relative_error(got[1], want[1]));
  const double allowed = options.type == at::kFloat ? 1e-4 : 1e-2;
  require(t.full_error <= allowed, "{}: must equal dense at {} tokens, differs by {:.2g} (relative), allowed {:.2g}",
          *t.full, length, t.full_error, allowed);
}

double density_of(const Attended& prompt, const Inputs& in, int64_t rows) {
  double visited = 0;
  const Tensor k = in.k.narrow(2, 0, rows);
  for (const attention::PlannedRows& part : prompt.plans)
    visited += visible_pairs(part.plan, in.q.narrow(2, part.first_row, part.rows), k);
  return visited / (double(in.q.size(1)) * double(rows) * double(rows + 1) / 2);
}

// Medians over repeats, behind a short one that is not counted: torch and the kernels make tables at first use.
Layer::Run time_layer(const Layer& layer, const Inputs& in, int64_t prompt, int64_t repeats, MechanismTiming& t) {
  const int64_t warm = std::min<int64_t>(prompt, 256);
  layer.run(rows_of(in, 0, warm), std::max<int64_t>(warm - 1, 1));
  std::vector<double> prefill, decode;
  Layer::Run run;
  for (int64_t i = 0; i < repeats; ++i) {
    run = {};  // frees the one before
    run = layer.run(in, prompt);
    prefill.push_back(run.prefill_seconds);
    decode.insert(decode.end(), run.decode_seconds.begin(), run.decode_seconds.end());
  }
  t.prefill_seconds = median(prefill), t.decode_seconds = median(decode);
  return run;
}

void time_sdpa(const Inputs& in, int64_t prompt, const MechanismBenchOptions& options, MechanismTiming& t) {
  const auto time = [](int64_t repeats, const Tensor& q, const Tensor& k, const Tensor& v, bool is_causal) {
    std::vector<double> seconds;
    for (int64_t i = 0; i < repeats; ++i) {
      const Timer timer;
      at::scaled_dot_product_attention(q, k, v, {}, 0.0, is_causal, std::nullopt, q.size(1) != k.size(1));
      seconds.push_back(timer.seconds());
    }
    return median(seconds);
  };
  const auto first = [&](const Tensor& x) { return x.narrow(2, 0, prompt); };
  t.sdpa_prefill_seconds = time(options.repeats, first(in.q), first(in.k), first(in.v), true);
  // With the query heads of a group as rows: by far torch's faster way to decode.
  const int64_t groups = in.k.size(1);
  const Tensor q = in.q.narrow(2, prompt, 1).contiguous().view({1, groups, in.q.size(1) / groups, in.q.size(3)});
  t.sdpa_decode_seconds = time(options.decoded, q, in.k, in.v, false);
}

struct Baseline {
  MechanismTiming timing;
  int64_t read_bytes = 0;
};

MechanismTiming time_mechanism(const std::string& spec, const Inputs& in, const Baseline& dense,
                               const MechanismBenchOptions& options) {
  MechanismTiming t = dense.timing;
  const int64_t prompt = t.problem.length;
  try {
    t.attention = spec;
    t.attention = spec_at(spec, prompt);
    t.full = full_spec(t.attention);
    if (t.full) t.full = spec_at(*t.full, prompt);
    check(t.problem, options, t);
    const Layer::Run run = time_layer(Layer(t.attention, t.problem), in, prompt, options.repeats, t);
    t.density = density_of(run.prompt, in, prompt);
    t.decode_read = double(run.read_bytes) / double(dense.read_bytes);
    t.kept_mass = kept_mass(rows_of(in, 0, prompt), run.prompt);
  } catch (const Error& error) {
    t.error = error.what();
  }
  return t;
}

Baseline time_dense(const LayerProblem& problem, const Inputs& in, int threads, const MechanismBenchOptions& options) {
  Baseline dense;
  MechanismTiming& t = dense.timing;
  t.problem = problem, t.threads = threads;
  dense.read_bytes = time_layer(Layer("dense", problem), in, problem.length, options.repeats, t).read_bytes;
  t.dense_prefill_seconds = t.prefill_seconds, t.dense_decode_seconds = t.decode_seconds;
  if (options.peers) time_sdpa(in, problem.length, options, t);
  return dense;
}

// Throws the Error of making this mechanism where it can be made at none of the lengths.
void require_some_length(const std::string& spec, const std::vector<int64_t>& lengths) {
  std::string why;
  for (const int64_t length : lengths) {
    try {
      attention::make_mechanism(parse_spec(spec_at(spec, length)));
      return;
    } catch (const Error& error) {
      why = error.what();
    }
  }
  fail("{}", why);
}

}  // namespace

std::string sparse_spec(const std::string& mechanism) {
  const Budget* budget = budget_of(mechanism);
  return budget && !budget->sparse.empty() ? fmt::format("{}:{}", mechanism, budget->sparse) : mechanism;
}

std::optional<std::string> full_spec(const std::string& spec) {
  Spec parsed = parse_spec(spec);
  if (parsed.name == attention::Dense::name) return spec;
  const Budget* budget = budget_of(parsed.name);
  if (!budget || budget->full.empty()) return std::nullopt;
  for (const auto& [key, value] : parse_spec(fmt::format("{}:{}", parsed.name, budget->full)).options) {
    std::erase_if(parsed.options, [&](const auto& option) { return option.first == key; });
    parsed.options.emplace_back(key, value);
  }
  return parsed.text();
}

std::string spec_at(const std::string& spec, int64_t length) {
  std::string out;
  for (size_t i = 0; i < spec.size();) {
    out += spec[i++];
    if (out.back() != '=' || i == spec.size() || spec[i] != 'n') continue;
    const size_t end = std::min(spec.find_first_of(",;)@", i), spec.size());
    const std::string value = spec.substr(i, end - i);
    int64_t part = 1;
    if (value.size() > 1) {
      const auto [stop, status] = std::from_chars(value.data() + 2, value.data() + value.size(), part);
      const bool is_part = value[1] == '/' && status == std::errc() && stop == value.data() + value.size();
      if (!is_part) continue;  // a word that begins with n
    }
    require(part >= 1 && part <= length, "bench: {} must be a whole part of the length {}, in '{}'", value, length,
            spec);
    out += std::to_string(length / part);
    i = end;
  }
  return out;
}

void MechanismBenchOptions::validate() const {
  for (const int64_t length : lengths) require(length >= 16, "bench: length must be >= 16, got {}", length);
  for (const int count : threads) require(count >= 1, "bench: threads must be >= 1, got {}", count);
  require(repeats >= 1, "bench: repeats must be >= 1, got {}", repeats);
  require(decoded >= 1, "bench: decoded tokens must be >= 1, got {}", decoded);
  for (const std::string& spec : attention)  // one that fits some lengths alone is said at the others
    require_some_length(spec, lengths);
}

void bench_mechanisms(const MechanismBenchOptions& options, const std::function<void(const MechanismTiming&)>& done) {
  options.validate();
  const at::NoGradGuard no_grad;
  const int threads_before = at::get_num_threads();
  std::vector<std::string> specs = options.attention;
  if (specs.empty())
    for (const attention::MechanismInfo& info : attention::list_mechanisms()) specs.push_back(sparse_spec(info.name));
  for (const int64_t length : options.lengths) {
    const LayerProblem problem = layer_problem(length);
    const Inputs in = layer_inputs(problem, length + options.decoded, options.type);
    for (const int threads : options.threads) {
      at::set_num_threads(threads);
      const Baseline dense = time_dense(problem, in, threads, options);
      for (const std::string& spec : specs) done(time_mechanism(spec, in, dense, options));
    }
  }
  at::set_num_threads(threads_before);
}

}  // namespace foveate::eval
