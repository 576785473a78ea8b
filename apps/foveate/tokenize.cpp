// foveate tokenize: a text's ids as a JSON array, and back.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "common.h"
#include "foveate/base/error.h"
#include "foveate/io/cache.h"

namespace foveate::app {
namespace {

std::vector<int32_t> parse_ids(const std::string& text, const std::string& path) {
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  require(json.is_array(), "{}: a JSON array of token ids is needed", path);
  std::vector<int32_t> ids;
  for (const auto& id : json) {
    require(id.is_number_integer() && id.get<int64_t>() >= 0 && id.get<int64_t>() <= INT32_MAX,
            "{}: a token id must be a whole number >= 0, got {}", path, id.dump());
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

}  // namespace

void add_tokenize(CLI::App& app) {
  struct Options {
    std::string model = "smollm2", file;
    bool decode = false, special = false, no_bos = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("tokenize", "text to token ids, and back");
  command
      ->add_option("--model", options->model, "GGUF file, tokenizer.json or its folder, or the name of a fetched model")
      ->capture_default_str();
  command->add_option("file", options->file, "text (with --decode: a JSON array of ids); - reads standard input")
      ->required();
  command->add_flag("--decode", options->decode, "ids to text");
  command->add_flag("--special", options->special, "control tokens' texts stand for the tokens");
  command->add_flag("--no-bos", options->no_bos, "add no token that the text does not hold");
  command->footer(
      "Examples:\n  foveate tokenize --model smollm2 notes.txt\n"
      "  echo 'Hello' | foveate tokenize - | foveate tokenize --decode -");
  command->callback([options] {
    const auto tokenizer = load_tokenizer(options->model);
    const std::string text = io::read_text(options->file);
    if (options->decode) {
      const std::string bytes = tokenizer->decode(parse_ids(text, options->file), options->special);
      std::fwrite(bytes.data(), 1, bytes.size(), stdout);
      return;
    }
    fmt::print("{}\n", nlohmann::json(tokenizer->encode(
                                          text, {.add_special = !options->no_bos, .parse_special = options->special}))
                           .dump());
  });
}

}  // namespace foveate::app
