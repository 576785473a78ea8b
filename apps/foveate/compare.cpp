// foveate compare: the main job.
#include "foveate/eval/compare.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <filesystem>

#include "commands.h"
#include "common.h"
#include "foveate/attention/registry.h"
#include "foveate/base/error.h"
#include "foveate/base/sweep.h"
#include "foveate/base/write_file.h"
#include "foveate/eval/interval.h"
#include "foveate/io/cache.h"
#include "foveate/ops/level.h"
#include "foveate/report/compare_report.h"
#include "machine.h"

namespace foveate::app {
namespace {

struct Options {
  ModelOptions model;
  std::string text = "book", out = "out/compare";
  std::vector<std::string> attention = {"dense", "window:size=512,sinks=4", "dhsa:budget=512"};
  std::vector<std::string> sweeps, ruler;
  bool has_own_attention = false, wants_heat_map = false, has_heat_options = false, has_ruler_options = false;
  eval::CompareOptions eval;
  bool force = false, json = false;
};

// One run: a spec, and which value of a sweep it is.
struct Entry {
  std::string spec, sweep, value;
};

// What is compared.  Sweeps and maps are read against dense, so that it comes first where it was not given.
std::vector<Entry> entries_of(const Options& options) {
  std::vector<Entry> entries;
  if (options.has_own_attention || options.sweeps.empty())
    for (const std::string& spec : options.attention) entries.push_back({spec, "", ""});
  const bool needs_dense = !options.sweeps.empty() || options.wants_heat_map;
  if (needs_dense && std::ranges::none_of(entries, [](const Entry& entry) { return entry.spec == "dense"; }))
    entries.insert(entries.begin(), {"dense", "", ""});
  for (const std::string& text : options.sweeps) {
    const Sweep sweep = parse_sweep(text);
    for (size_t i = 0; i < sweep.specs.size(); ++i) entries.push_back({sweep.specs[i], text, sweep.values[i]});
  }
  return entries;
}

std::vector<std::string> ruler_tasks_of(const Options& options) {
  const auto known = eval::ruler_tasks();
  std::vector<std::string> tasks;
  for (const std::string& task : options.ruler) {
    if (task == "all") {
      tasks.assign(known.begin(), known.end());
      continue;
    }
    require(std::ranges::count(known, task) > 0, "ruler: unknown task '{}', known: all {}", task,
            fmt::join(known, " "));
    tasks.push_back(task);
  }
  return tasks;
}

using Mechanisms = std::vector<attention::Mechanism>;

std::string class_of(const Mechanisms& mechanisms) {
  attention::Kind widest = attention::Kind::row;
  for (const auto& mechanism : mechanisms) widest = std::max(widest, mechanism.kind());
  return std::string(enum_names(widest)[size_t(widest)]);
}

report::CompareRow make_row(const Entry& entry, const Mechanisms& mechanisms, const eval::Measured& m,
                            const std::optional<eval::Measured>& dense, uint64_t seed) {
  report::CompareRow row{.attention = entry.spec, .mechanism_class = class_of(mechanisms)};
  row.sweep = entry.sweep, row.sweep_value = entry.value;
  row.prefill_tokens_per_s = m.prefill_tokens_per_s;
  if (dense) row.prefill_vs_dense = m.prefill_tokens_per_s / dense->prefill_tokens_per_s;
  row.decode_tokens_per_s = m.decode_tokens_per_s;
  row.kv_bytes = m.kv_bytes;
  row.kv_bytes_read_per_token = m.kv_bytes_read_per_token;
  row.peak_bytes = m.peak_bytes;
  row.density = m.density;
  row.kept_mass = m.kept_mass;
  row.perplexity = m.perplexity;
  row.nats_vs_dense = m.nats_vs_dense;
  row.top1_agreement = m.top1_agreement;
  row.kl_vs_dense = m.kl_vs_dense;
  if (row.mechanism_class != "row") {  // prefill rows of the others may leak: their selection sees later tokens
    row.continuation_nats_vs_dense = m.continuation_nats_vs_dense;
    row.continuation_top1_agreement = m.continuation_top1_agreement;
    row.continuation_kl_vs_dense = m.continuation_kl_vs_dense;
  }
  row.nll_by_position = m.nll_by_position;
  row.kept_mass_by_layer = m.kept_mass_by_layer;
  for (const eval::RulerCell& cell : m.ruler)
    row.ruler.push_back({cell.task, cell.length, cell.samples, cell.score, cell.ranked_first});
  if (m.heat_map) row.needle_heat = m.heat_map->needle, row.passkey_heat = m.heat_map->passkey;
  if (!m.needle_ranked_first.empty()) {
    double first = 0;
    for (const double is_first : m.needle_ranked_first) first += is_first;
    row.needle_score = first / double(m.needle_ranked_first.size());
    row.needle_total = std::ssize(m.needle_ranked_first);
    row.needle_hits = m.needle_hits;
    if (dense) {
      const eval::Interval interval = eval::paired_interval(m.needle_ranked_first, dense->needle_ranked_first, seed);
      row.needle_vs_dense_low = interval.low;
      row.needle_vs_dense_high = interval.high;
    }
  }
  if (m.passkey_total > 0) {
    row.passkey_hits = m.passkey_hits;
    row.passkey_total = m.passkey_total;
  }
  return row;
}

report::CompareReport describe(const Options& options, const LoadedModel& loaded, const std::string& text_path) {
  report::CompareReport report;
  report.machine = this_machine();
  report.versions = this_build();
  report.level = ops::kernel_level();
  const models::DecoderConfig& config = loaded.decoder->config();
  report.model = {.name = config.name,
                  .path = loaded.path,
                  .architecture = config.architecture,
                  .parameters = loaded.decoder->parameter_count(),
                  .dtype = options.model.dtype + (loaded.has_packed_weights ? ", packed weights" : "") +
                           (options.eval.cache == attention::CacheType::q8 ? ", q8 cache" : "")};
  report.text = {.name = options.text, .path = text_path, .tokens = options.eval.context};
  report.context = options.eval.context;
  report.seed = options.eval.seed;
  if (!options.eval.heat_map.lengths.empty()) {
    report.heat_lengths = options.eval.heat_map.lengths;
    report.heat_depths = options.eval.heat_map.depth_percent();
    report.heat_prompts = options.eval.heat_map.prompts;
  }
  report.threads = at::get_num_threads();
  report.date = today();
  report.command = command_line();
  return report;
}

void write(const Options& options, const report::CompareReport& report) {
  const std::filesystem::path folder(options.out);
  write_file_atomically(folder / "compare.json", report::to_json(report));
  write_file_atomically(folder / "compare.html", report::to_html(report));
}

// Lengths that follow from others, checked before anything is loaded.
Options completed(Options options) {
  eval::CompareOptions& eval = options.eval;
  require(options.wants_heat_map || (eval.heat_map.lengths.empty() && !options.has_heat_options),
          "compare: --heat-lengths, --heat-depths and --heat-prompts need --heat-map");
  require(!options.ruler.empty() || !options.has_ruler_options,
          "compare: --ruler-lengths and --ruler-samples need --ruler TASKS");
  eval.ruler_tasks = ruler_tasks_of(options);
  if (options.wants_heat_map && eval.heat_map.lengths.empty())
    eval.heat_map.lengths = eval::default_heat_lengths(eval.context);
  eval.validate();
  return options;
}

int64_t longest_prompt(const eval::CompareOptions& options) {
  int64_t longest = options.context;
  for (const auto* lengths : {&options.ruler_lengths, &options.heat_map.lengths})
    for (const int64_t length : *lengths) longest = std::max(longest, length);
  return longest;
}

void compare(const Options& given) {
  const Options options = completed(given);
  const std::vector<Entry> entries = entries_of(options);
  const std::string text_path = io::find_text(options.text);
  io::find_model(options.model.model);
  require_writable_directory(options.out);
  watch_interrupts();
  const LoadedModel loaded = load_model(options.model);
  std::vector<Mechanisms> all;
  for (const Entry& entry : entries) all.push_back(make_mechanisms(entry.spec, loaded, options.model));
  const int64_t longest = longest_prompt(options.eval);
  require_context(*loaded.decoder, longest, options.force);
  // Haystacks read on behind the context: encode no more of a long text than they can use.
  const size_t bytes_wanted =
      8 * size_t(options.eval.context * (options.eval.needle_haystacks + 2) + 2 * (longest - options.eval.context));
  eval::Comparison comparison(
      *loaded.decoder, *loaded.tokenizer,
      loaded.tokenizer->encode(std::string_view(io::read_text(text_path)).substr(0, bytes_wanted)), options.eval);
  report::CompareReport report = describe(options, loaded, text_path);
  report.bucket_positions = comparison.bucket_positions();
  std::optional<eval::Measured> dense;
  ProgressLine line;
  bool stopped = false;
  std::string first_error;
  for (size_t i = 0; i < all.size() && !stopped; ++i) {
    const std::string title = fmt::format("{} ({} of {})", entries[i].spec, i + 1, all.size());
    try {
      const eval::Measured measured = comparison.run(all[i], [&](std::string_view what, double share) {
        throw_if_interrupted();
        line.show(title, what, (double(i) + share) / double(all.size()));
      });
      if (entries[i].spec == "dense") dense = measured;
      report.rows.push_back(make_row(entries[i], all[i], measured, dense, options.eval.seed));
    } catch (const Interrupted&) {
      stopped = true;
    } catch (const std::exception& error) {  // the others go on; torch's own says more than one line
      const std::string text = error.what(), line = text.substr(0, text.find('\n'));
      if (first_error.empty()) first_error = line;
      report.rows.push_back({.attention = entries[i].spec, .mechanism_class = class_of(all[i])});
      report::CompareRow& row = report.rows.back();
      row.sweep = entries[i].sweep, row.sweep_value = entries[i].value, row.error = line;
    }
    report.complete = report.rows.size() == all.size();
    write(options, report);  // after every row: what is finished is never lost
  }
  line.finish();
  fmt::print("{}", options.json ? report::to_json(report) : report::to_table(report));
  fmt::print(stderr, "written: {}/compare.json, {}/compare.html\n", options.out, options.out);
  if (stopped) throw Interrupted();
  require(first_error.empty(), "{}", first_error);
}

void add_recall_options(CLI::App& command, Options& options) {
  command.add_option("--haystacks", options.eval.needle_haystacks, "long prompts for the needle test; 0: none")
      ->capture_default_str();
  command.add_option("--needles", options.eval.needles, "facts to find in each")->capture_default_str();
  command.add_option("--passkeys", options.eval.passkeys, "passkey trials; 0: none")->capture_default_str();
  command
      .add_option("--ruler", options.ruler,
                  fmt::format("RULER's generated tasks: all, or {}", fmt::join(eval::ruler_tasks(), " ")))
      ->delimiter(',');
  command
      .add_option("--ruler-lengths", options.eval.ruler_lengths, "of their prompts, in tokens; without: the context")
      ->delimiter(',');
  command.add_option("--ruler-samples", options.eval.ruler_samples, "of each task at each length")
      ->capture_default_str();
  command.add_flag("--heat-map", options.wants_heat_map, "needles and passkeys by length and depth");
  command
      .add_option("--heat-lengths", options.eval.heat_map.lengths,
                  "of its prompts, in tokens; without: six, up to the context")
      ->delimiter(',');
  command.add_option("--heat-depths", options.eval.heat_map.depths, "rows of it, from 0 to 100 %")
      ->capture_default_str();
  command.add_option("--heat-prompts", options.eval.heat_map.prompts, "of each test in each cell")
      ->capture_default_str();
  command.add_option("--seed", options.eval.seed, "of all these prompts")->capture_default_str();
}

}  // namespace

void add_compare(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("compare", "what attention mechanisms cost and lose on a real model and text");
  add_model_options(*command, options->model);
  command->add_option("--text", options->text, "text file, or the name of a fetched text")->capture_default_str();
  command
      ->add_option("--attention", options->attention,
                   "a mechanism, e.g. window:size=512 or dense@0-1;dhsa:budget=512; repeat for more")
      ->take_all()
      ->allow_extra_args(false)
      ->capture_default_str();
  add_cache_option(*command, options->eval.cache);
  command->add_option("--context", options->eval.context, "tokens of the text that are read")->capture_default_str();
  command
      ->add_option("--continuation", options->eval.continuation,
                   "the last of them, read one by one as generated text is")
      ->capture_default_str();
  command
      ->add_option("--sweep", options->sweeps,
                   "a mechanism with an option that takes several values, doubled from one to another or listed: "
                   "dhsa:budget=256..4096, dhsa:budget=256,512; repeat for more")
      ->take_all()
      ->allow_extra_args(false);
  add_recall_options(*command, *options);
  command->add_option("--out", options->out, "folder for compare.json and compare.html")->capture_default_str();
  command->add_flag("--force", options->force, "go on beyond the model's context");
  command->add_flag("--json", options->json, "print compare.json instead of the table");
  command->footer(
      "Give dense first: the others are compared with it (with --sweep or --heat-map it is added).\n"
      "Examples:\n  foveate compare --model smollm2 --text book --context 4096 --attention dense --attention "
      "dhsa:budget=512\n"
      "  foveate compare --model gemma3 --text notes.txt --attention dense --attention "
      "'dense@5,11,17;window:size=256'\n"
      "  foveate compare --sweep dhsa:budget=256..2048 --sweep window:size=256..2048    # the frontier, as charts\n"
      "  foveate compare --context 2048 --heat-map --ruler vt,fwe --ruler-lengths 1024,2048 --attention dense "
      "--attention window:size=256");
  command->callback([options, command] {
    options->has_own_attention = command->count("--attention") > 0;
    options->has_heat_options = command->count("--heat-depths") + command->count("--heat-prompts") > 0;
    options->has_ruler_options = command->count("--ruler-lengths") + command->count("--ruler-samples") > 0;
    compare(*options);
  });
}

}  // namespace foveate::app
