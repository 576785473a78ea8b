// foveate embed: one vector a line of text, as JSON arrays.

#include <cstdio>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "common.h"
#include "foveate/base/error.h"
#include "foveate/io/cache.h"
#include "foveate/models/language/encoder.h"
#include "options.h"

namespace foveate::app {
namespace {

struct Options {
  std::string model = "minilm", dtype = "fp32", file;
  int threads = 0;
  bool raw = false;
  models::EmbedOptions embed;
};

void embed(const Options& options) {
  use_threads(options.threads);
  const std::string path = io::find_model(options.model);
  const auto tokenizer = load_tokenizer(path);
  const models::Encoder encoder = models::Encoder::load(path, options.dtype == "bf16" ? at::kBFloat16 : at::kFloat);
  require(tokenizer->size() <= encoder.config().vocabulary, "{}: the tokenizer has {} tokens, the model only {}", path,
          tokenizer->size(), encoder.config().vocabulary);
  const std::string text = io::read_text(options.file);
  models::EmbedOptions how = options.embed;
  how.normalize = !options.raw;
  for (size_t begin = 0; begin < text.size();) {
    std::vector<std::string> lines;
    while (begin < text.size() && std::ssize(lines) < how.batch) {
      const size_t end = std::min(text.find('\n', begin), text.size());
      lines.push_back(text.substr(begin, end - begin));
      begin = end + 1;
    }
    const at::Tensor vectors = models::embed(encoder, *tokenizer, lines, how);
    for (int64_t i = 0; i < vectors.size(0); ++i) {
      const float* row = vectors.const_data_ptr<float>() + i * vectors.size(1);
      fmt::print("{}\n", nlohmann::json(std::vector<float>(row, row + vectors.size(1))).dump());
    }
    throw_if_interrupted();
  }
}

}  // namespace

void add_embed(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("embed", "a vector for every line of a text, as JSON arrays");
  command->add_option("--model", options->model, "folder or GGUF file of a BERT encoder, or the name of a fetched one")
      ->capture_default_str();
  command->add_option("--dtype", options->dtype, "of matrices")
      ->check(CLI::IsMember({"bf16", "fp32"}))
      ->capture_default_str();
  add_threads(*command, options->threads);
  add_explain_option(*command);
  command->add_option("--most-tokens", options->embed.most_tokens, "longer lines are cut; 0: the model's context")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--batch", options->embed.batch, "lines at a time")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_flag("--raw", options->raw, "means as they are, not scaled to length 1");
  command->add_option("file", options->file, "text, one a line; - reads standard input")->required();
  command->footer("Examples:\n  foveate embed --model minilm sentences.txt\n  echo 'a cat' | foveate embed -");
  command->callback([options] { embed(*options); });
}

}  // namespace foveate::app
