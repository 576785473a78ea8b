// foveate bench: the kernels' speed beside the machine's peaks and torch's own ways.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "common.h"
#include "foveate/attention/registry.h"
#include "foveate/base/error.h"
#include "foveate/eval/bench_attention.h"
#include "foveate/eval/bench_index.h"
#include "foveate/eval/bench_mechanisms.h"
#include "foveate/eval/bench_model.h"
#include "foveate/eval/bench_primitives.h"
#include "foveate/ops/level.h"
#include "foveate/report/table.h"

namespace foveate::app {
namespace {

struct Options {
  eval::BenchOptions bench;
  eval::MechanismBenchOptions mechanisms;  // its own part; what both have is in `bench`
  bool json = false, forward_only = false, no_peers = false;
};

nlohmann::json json_of(const eval::AttentionTiming& t) {
  nlohmann::json line = {{"case", t.shape.name},         {"heads", t.shape.heads},
                         {"kv_heads", t.shape.kv_heads}, {"threads", t.shape.threads},
                         {"kernel", t.kernel},           {"seconds", t.seconds},
                         {"median_seconds", t.median},   {"gflops", t.operations / t.seconds * 1e-9},
                         {"of_peak", t.of_peak}};
  if (t.of_reference > 0) line["of_reference"] = t.of_reference;
  if (t.of_read > 0) line["gb_per_second"] = t.bytes / t.seconds * 1e-9, line["of_read"] = t.of_read;
  if (t.sdpa_seconds > 0) line["sdpa_seconds"] = t.sdpa_seconds;
  if (t.folded_sdpa_seconds > 0) line["folded_sdpa_seconds"] = t.folded_sdpa_seconds;
  return line;
}

void run(Options options) {
  options.bench.backward = !options.forward_only;
  options.bench.peers = !options.no_peers;
  attention_cases(options.bench);  // says what is wrong before anything is measured
  const eval::MachinePeaks peaks = eval::measure_peaks();
  if (options.json)
    fmt::print("{}\n", nlohmann::json({{"level", ops::kernel_level()},
                                       {"peak_fp32_gflops", peaks.fp32},
                                       {"peak_bf16_gflops", peaks.bf16},
                                       {"read_gb_per_second", peaks.read}})
                           .dump());
  else
    fmt::print("{}, one thread's peaks: fp32 {:.0f} GFLOP/s, bf16 {:.0f} GFLOP/s, read {:.1f} GB/s\n",
               ops::kernel_level(), peaks.fp32, peaks.bf16, peaks.read);
  std::vector<std::vector<std::string>> rows;
  ProgressLine progress;
  eval::bench_attention(options.bench, [&](const eval::AttentionTiming& t) {
    throw_if_interrupted();
    if (options.json) {
      fmt::print("{}\n", json_of(t).dump());
      std::fflush(stdout);
      return;
    }
    progress.show("bench", t.shape.name, 0);
    const auto ratio = [](double a, double b) {
      return b > 0 && a > 0 ? fmt::format("{:.2f}x", a / b) : std::string();
    };
    rows.push_back({t.shape.name, fmt::format("{:.3f}", t.seconds * 1e3),
                    fmt::format("{:.0f}", t.operations / t.seconds * 1e-9), fmt::format("{:.0f} %", t.of_peak * 100),
                    t.of_read > 0 ? fmt::format("{:.0f} %", t.of_read * 100) : std::string(),
                    t.of_reference > 0 ? fmt::format("{:.2f}", t.of_reference) : std::string(),
                    ratio(t.sdpa_seconds, t.seconds), ratio(t.folded_sdpa_seconds, t.seconds)});
  });
  progress.finish();
  if (!options.json)
    fmt::print("{}", report::format_table({{"case", report::Align::kLeft},
                                           {"ms"},
                                           {"GFLOP/s"},
                                           {"of peak"},
                                           {"of reading"},
                                           {"of reference"},
                                           {"over SDPA"},
                                           {"over folded SDPA"}},
                                          rows));
}

constexpr std::string_view kMechanisms = "mechanisms";

// The suite of mechanisms has shapes, columns and options of its own.
void run_mechanisms(const CLI::App& command, const Options& options) {
  require(options.bench.suites.size() == 1, "bench: suite {} runs alone, got {} suites", kMechanisms,
          options.bench.suites.size());
  for (const char* name : {"--dim", "--seconds", "--forward-only"})
    require(command.count(name) == 0, "bench: {} means nothing to suite {}; its layers have shapes of their own", name,
            kMechanisms);
  eval::MechanismBenchOptions own = options.mechanisms;
  if (command.count("--length") > 0) own.lengths = options.bench.lengths;
  own.threads = options.bench.threads;
  own.peers = !options.no_peers;
  const std::string dtype = command.count("--dtype") > 0 ? options.bench.dtypes.front() : "bf16";
  require(options.bench.dtypes.size() == 1 || command.count("--dtype") == 0, "bench: suite {} takes one dtype, got {}",
          kMechanisms, options.bench.dtypes.size());
  own.type = eval::bench_dtype(dtype);
  bench_mechanisms(own, options.json);
}

void run_primitives(const eval::PrimitiveOptions& options, bool json) {
  const double read = eval::measure_peaks().read;
  std::vector<std::vector<std::string>> rows;
  eval::bench_primitives(options, [&](const eval::PrimitiveTiming& t) {
    throw_if_interrupted();
    const double rate = t.bytes / t.seconds * 1e-9;
    if (json) {
      nlohmann::json line = {
          {"case", t.name}, {"seconds", t.seconds}, {"beside", t.beside}, {"beside_seconds", t.beside_seconds}};
      if (t.bytes > 0) line["of_read"] = rate / read;
      fmt::print("{}\n", line.dump());
      return;
    }
    rows.push_back({t.name, fmt::format("{:.3f}", t.seconds * 1e3),
                    t.bytes > 0 ? fmt::format("{:.0f} %", rate / read * 100) : std::string(), t.beside,
                    fmt::format("{:.2f}x", t.beside_seconds / t.seconds)});
  });
  if (json) return;
  fmt::print("{}, {} threads; one thread reads {:.1f} GB/s\n", ops::kernel_level(), at::get_num_threads(), read);
  using report::Align;
  fmt::print(
      "{}",
      report::format_table(
          {{"case", Align::kLeft}, {"ms"}, {"of one thread's reading"}, {"beside", Align::kLeft}, {"over it"}}, rows));
}

void add_bench_primitives(CLI::App& bench) {
  CLI::App& command =
      *bench.add_subcommand("primitives", "pooling, selection, sums and merges beside other ways to them");
  const auto options = std::make_shared<eval::PrimitiveOptions>();
  const auto json = std::make_shared<bool>(false);
  command.add_option("--length", options->length, "queries and keys, a multiple of 64")->capture_default_str();
  command.add_option("--dim", options->dim, "head dim")->capture_default_str();
  command.add_option("--heads", options->heads, "query heads")->capture_default_str();
  command.add_option("--kv-heads", options->kv_heads, "key heads")->capture_default_str();
  command.add_option("--seconds", options->seconds, "spent on each measurement")->capture_default_str();
  command.add_flag("--json", *json, "one JSON object a line");
  command.footer("Examples:\n  foveate bench primitives --length 8192");
  command.callback([options, json] { run_primitives(*options, *json); });
}

struct IndexBench {
  eval::IndexBenchOptions bench;
  std::vector<int64_t> lengths = {8192, 16384, 32768, 65536};
  bool json = false;
};

void run_index(const IndexBench& options) {
  const double peak = eval::measure_peaks().bf16;
  std::vector<std::vector<std::string>> rows;
  for (const int64_t length : options.lengths) {
    throw_if_interrupted();
    const eval::IndexTiming t = eval::bench_index(length, options.bench);
    const double ratio = t.flat / t.hierarchical;
    if (options.json) {
      fmt::print("{}\n", nlohmann::json({{"length", t.length},
                                         {"flat_seconds", t.flat},
                                         {"hierarchical_seconds", t.hierarchical},
                                         {"pooling_seconds", t.pooling},
                                         {"flat_gflops", t.products},
                                         {"ratio", ratio},
                                         {"model_ratio", t.model_ratio}})
                             .dump());
      continue;
    }
    rows.push_back({std::to_string(length), fmt::format("{:.3f}", t.flat * 1e3), fmt::format("{:.0f}", t.products),
                    fmt::format("{:.3f}", t.hierarchical * 1e3), fmt::format("{:.2f}x", ratio),
                    fmt::format("{:.2f}x", t.model_ratio), fmt::format("{:.0f} %", 100 * ratio / t.model_ratio)});
  }
  if (options.json) return;
  fmt::print("{}, {} threads; one thread's bf16 peak {:.0f} GFLOP/s; milliseconds a query, mean over a prefill\n",
             ops::kernel_level(), at::get_num_threads(), peak);
  fmt::print(
      "{}",
      report::format_table(
          {{"length"}, {"flat"}, {"GFLOP/s"}, {"hierarchical"}, {"faster"}, {"products alone"}, {"of that"}}, rows));
}

void add_bench_index(CLI::App& bench) {
  CLI::App& command = *bench.add_subcommand("index", "the hierarchical indexer (HISA) beside the flat one (DSA)");
  const auto options = std::make_shared<IndexBench>();
  auto& b = options->bench;
  command.add_option("--length", options->lengths, "keys; queries lie evenly over them")->capture_default_str();
  command.add_option("--heads", b.heads, "of the indexer")->capture_default_str();
  command.add_option("--dim", b.dim, "of its vectors")->capture_default_str();
  command.add_option("--block", b.block, "keys of a block")->capture_default_str();
  command.add_option("--block-topk", b.hisa.block_topk, "blocks kept")->capture_default_str();
  command.add_option("--topk", b.hisa.topk, "keys kept")->capture_default_str();
  command.add_option("--rows", b.rows, "queries")->capture_default_str();
  command.add_option("--repeats", b.repeats, "of which the median counts")->capture_default_str();
  command.add_flag("--json", options->json, "one JSON object a line");
  command.footer("Examples:\n  foveate bench index --length 32768 65536");
  command.callback([options] { run_index(*options); });
}

struct ModelBench {
  ModelOptions model;
  std::vector<std::string> attention = {"dense"};
  eval::ModelBenchOptions bench;
  bool force = false, json = false;
};

void run_model(const ModelBench& options) {
  options.bench.validate();
  const LoadedModel loaded = load_model(options.model);
  std::vector<std::vector<attention::Mechanism>> all;
  for (const std::string& spec : options.attention) all.push_back(make_mechanisms(spec, loaded, options.model));
  for (const int64_t tokens : options.bench.lengths)
    require_context(*loaded.decoder, tokens + options.bench.decoded, options.force);
  const auto median = [](const std::vector<double>& numbers) { return numbers[numbers.size() / 2]; };
  const auto range = [&](const std::vector<double>& numbers) {
    return fmt::format("{:.0f} ({:.0f} .. {:.0f})", median(numbers), numbers.front(), numbers.back());
  };
  watch_interrupts();
  std::vector<std::vector<std::string>> rows;
  ProgressLine progress;
  for (size_t i = 0; i < all.size(); ++i)
    eval::bench_model(*loaded.decoder, all[i], options.bench, [&](const eval::ModelTiming& t) {
      throw_if_interrupted();
      if (options.json) {
        fmt::print("{}\n", nlohmann::json({{"attention", options.attention[i]},
                                           {"tokens", t.tokens},
                                           {"threads", at::get_num_threads()},
                                           {"prefill_tokens_per_s", t.prefill_tokens_per_s},
                                           {"decode_tokens_per_s", t.decode_tokens_per_s},
                                           {"prefill_attention_seconds", t.prefill_attention_seconds},
                                           {"decode_attention_seconds", t.decode_attention_seconds},
                                           {"decoded", options.bench.decoded},
                                           {"cache_bytes", t.cache_bytes}})
                               .dump());
        std::fflush(stdout);
        return;
      }
      progress.show("bench", fmt::format("{}, {} tokens", options.attention[i], t.tokens), 0);
      const double decoded = double(options.bench.decoded);
      rows.push_back({options.attention[i], std::to_string(t.tokens), range(t.prefill_tokens_per_s),
                      fmt::format("{:.0f}", median(t.prefill_attention_seconds) * 1e3), range(t.decode_tokens_per_s),
                      fmt::format("{:.2f}", median(t.decode_attention_seconds) / decoded * 1e3),
                      fmt::format("{:.1f}", double(t.cache_bytes) / (1 << 20))});
    });
  progress.finish();
  if (options.json) return;
  fmt::print("{}, {} threads, {} tokens decoded\n", ops::kernel_level(), at::get_num_threads(), options.bench.decoded);
  fmt::print("{}", report::format_table({{"attention", report::Align::kLeft},
                                         {"tokens"},
                                         {"prefill tok/s"},
                                         {"attention ms"},
                                         {"decode tok/s"},
                                         {"attention ms a token"},
                                         {"cache MiB"}},
                                        rows));
}

void add_bench_model(CLI::App& bench) {
  CLI::App& command =
      *bench.add_subcommand("model", "a model's prefill and decode, and the time attention takes of it");
  const auto options = std::make_shared<ModelBench>();
  add_model_options(command, options->model);
  command.add_option("--attention", options->attention, "a mechanism, see `foveate list`; repeat for more")
      ->take_all()
      ->allow_extra_args(false)
      ->capture_default_str();
  add_cache_option(command, options->bench.cache);
  command.add_option("--tokens", options->bench.lengths, "of the prompts")->capture_default_str();
  command.add_option("--decoded", options->bench.decoded, "tokens generated behind each")->capture_default_str();
  command.add_option("--repeats", options->bench.repeats, "after one that is not counted")->capture_default_str();
  command.add_flag("--force", options->force, "go on beyond the model's context");
  command.add_flag("--json", options->json, "one JSON object a line");
  command.footer(
      "Speeds are medians, with the slowest and the fastest.\n"
      "Examples:\n  foveate bench model --tokens 512 8000 --attention dense --attention window:size=512");
  command.callback([options] { run_model(*options); });
}

}  // namespace

void add_bench(CLI::App& app) {
  CLI::App& bench = *app.add_subcommand("bench", "measure speed; every case is checked before it is timed");
  bench.require_subcommand(1);
  CLI::App& command =
      *bench.add_subcommand("attention", "ops::attend beside the machine's peaks and torch's attention");
  const auto options = std::make_shared<Options>();
  auto& b = options->bench;
  command.add_option("--suite", b.suites, "dense sparse window scores ragged decode, or mechanisms")
      ->capture_default_str();
  command.add_option("--dtype", b.dtypes, "bf16 fp16 fp32")->capture_default_str();
  command.add_option("--dim", b.dims, "head dims")->capture_default_str();
  command.add_option("--length", b.lengths, "queries and keys (decode: keys; mechanisms: 8192 32768 65536)")
      ->capture_default_str();
  command.add_option("--threads", b.threads, "each is measured")->capture_default_str();
  command.add_option("--seconds", b.seconds, "spent on each measurement")->capture_default_str();
  auto& m = options->mechanisms;
  command
      .add_option("--attention", m.attention,
                  "of suite mechanisms, e.g. dhsa:budget=n/16, n being the length; repeat for more; without: each with "
                  "a budget that is a part of the length, see docs/long-context.md")
      ->take_all()
      ->allow_extra_args(false);
  command.add_option("--repeats", m.repeats, "prefills timed by suite mechanisms")->capture_default_str();
  command.add_option("--decoded", m.decoded, "tokens decoded behind each of them")->capture_default_str();
  command.add_flag("--forward-only", options->forward_only, "no backward");
  command.add_flag("--no-peers", options->no_peers, "without torch's attention");
  command.add_flag("--json", options->json, "one JSON object a line");
  command.footer(
      "Suite mechanisms times selection and attention of a layer's prefill and of one decoded token, beside dense and "
      "torch's attention.\n"
      "Examples:\n  foveate bench attention --suite dense sparse --dim 64 128 --length 8192 --threads 1 2\n"
      "  foveate bench attention --suite mechanisms --length 32768 --threads 2 --attention dhsa:budget=n/16");
  add_bench_primitives(bench);
  add_bench_index(bench);
  add_bench_model(bench);
  bench.footer("Examples:\n  foveate bench attention --help");
  command.callback([options, &command] {
    const bool has_mechanisms = std::ranges::count(options->bench.suites, kMechanisms) > 0;
    for (const char* name : {"--attention", "--repeats", "--decoded"})
      require(has_mechanisms || command.count(name) == 0, "bench: {} needs --suite {}", name, kMechanisms);
    if (has_mechanisms)
      run_mechanisms(command, *options);
    else
      run(*options);
  });
}

}  // namespace foveate::app
