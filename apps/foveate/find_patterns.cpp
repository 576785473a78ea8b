// foveate find-patterns: a setting for every head of a model, found on a text.
#include "foveate/eval/find_patterns.h"

#include <filesystem>

#include "commands.h"
#include "common.h"
#include "foveate/base/error.h"
#include "foveate/base/write_file.h"
#include "foveate/io/cache.h"

namespace foveate::app {
namespace {

using By = attention::HeadSearch::By;

struct Options {
  ModelOptions model;
  std::string text = "book", mechanism = "vertical_slash", out;
  int64_t context = 4096;
  std::optional<By> by;
  std::optional<double> density;
  std::optional<int64_t> size, sinks;
  bool force = false;
};

bool is_duo(const Options& options) { return options.mechanism == "duo"; }

attention::Window streaming_of(const Options& options) {
  return {.size = options.size.value_or(1024), .sinks = options.sinks.value_or(128)};
}

attention::HeadSearch search_of(const Options& options) {
  attention::HeadSearch search{.by = options.by.value_or(By::output_error), .density = options.density};
  search.first_row = std::min(search.first_row, options.context / 2);
  return search;
}

void check_form(const Options& options) {
  const auto belongs = [&](const char* option, bool is_given, const char* mechanism) {
    require(!is_given || options.mechanism == mechanism, "find-patterns: {} must come with --for {}, got --for {}",
            option, mechanism, options.mechanism);
  };
  belongs("--by", options.by.has_value(), "vertical_slash");
  belongs("--density", options.density.has_value(), "vertical_slash");
  belongs("--size", options.size.has_value(), "duo");
  belongs("--sinks", options.sinks.has_value(), "duo");
}

// The mechanism that reads the file as it was measured.
std::string reader_of(const Options& options) {
  if (!is_duo(options)) return fmt::format("vertical_slash:heads={}", options.out);
  const attention::Window streaming = streaming_of(options);
  return fmt::format("duo:pattern={},size={},sinks={}", options.out, streaming.size, streaming.sinks);
}

void find_patterns(const Options& options) {
  check_form(options);
  require(options.context >= 2, "find-patterns: context must be >= 2, got {}", options.context);
  const std::filesystem::path out(options.out);
  require_writable_directory(out.has_parent_path() ? out.parent_path().string() : ".");
  const std::string text_path = io::find_text(options.text);
  const LoadedModel loaded = load_model(options.model);
  require_context(*loaded.decoder, options.context, options.force);
  const std::vector<int32_t> tokens = loaded.tokenizer->encode(io::read_text(text_path));
  require(std::ssize(tokens) >= options.context,
          "find-patterns: the text must have at least {} tokens (the context), got {}", options.context, tokens.size());
  const std::span<const int32_t> sample(tokens.data(), size_t(options.context));
  watch_interrupts();
  ProgressLine line;
  const auto done = [&](double share) {
    throw_if_interrupted();
    line.show("find-patterns", options.mechanism, share);
  };
  std::string found;
  if (is_duo(options)) {
    found = eval::gates_as_lines(eval::find_gates(*loaded.decoder, sample, streaming_of(options), done));
  } else {
    const auto layers = eval::find_line_patterns(*loaded.decoder, sample, search_of(options), done);
    found = attention::head_patterns_as_json(layers) + "\n";
  }
  line.finish();
  write_file_atomically(out, found);
  fmt::print(stderr, "written: {}; use it as --attention {}\n", options.out, reader_of(options));
}

}  // namespace

void add_find_patterns(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "find-patterns", "what each head of a model needs, found on a text: a file for vertical_slash or duo");
  add_model_options(*command, options->model);
  command->add_option("--text", options->text, "text file, or the name of a fetched text")->capture_default_str();
  command->add_option("--context", options->context, "tokens of the text that are read")->capture_default_str();
  command
      ->add_option("--for", options->mechanism,
                   "vertical_slash: pairs for each query head, as MInference's; duo: a gate for each key head, the "
                   "weight that its streaming window loses")
      ->check(CLI::IsMember({"vertical_slash", "duo"}))
      ->capture_default_str();
  command
      ->add_option("--by", options->by,
                   "vertical_slash: fewest outputs that differ from dense (without), or most weight kept")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, By>{{"output_error", By::output_error}, {"kept_mass", By::kept_mass}}));
  command->add_option("--density", options->density,
                      "vertical_slash: candidates scaled to list this share of the keys; without: as published");
  command->add_option("--size", options->size, "duo: latest keys of the window; without: 1024");
  command->add_option("--sinks", options->sinks, "duo: first keys of it; without: 128");
  command->add_option("-o,--out", options->out, "file that is written")->required();
  command->add_flag("--force", options->force, "go on beyond the model's context");
  command->footer(
      "Examples:\n  foveate find-patterns --model smollm2 --text book --context 4096 --density 0.2 -o lines.json\n"
      "  foveate compare --attention dense --attention vertical_slash:heads=lines.json\n"
      "  foveate find-patterns --for duo --size 256 --sinks 16 -o gates.tsv\n"
      "  foveate compare --attention dense --attention duo:pattern=gates.tsv,size=256,sinks=16,sparsity=0.5");
  command->callback([options] { find_patterns(*options); });
}

}  // namespace foveate::app
