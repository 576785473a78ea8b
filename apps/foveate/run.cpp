// foveate run: answers a prompt, or keeps a conversation.
#include <cstdio>
#include <filesystem>
#include <iostream>

#include "commands.h"
#include "common.h"
#include "foveate/attention/registry.h"
#include "foveate/base/error.h"
#include "foveate/base/write_file.h"
#include "foveate/io/cache.h"
#include "foveate/io/chat.h"
#include "foveate/models/language/generate.h"

namespace foveate::app {
namespace {

struct Options {
  ModelOptions model;
  std::string prompt, attention = "dense", system, session;
  models::GenerateOptions generate{.max_tokens = 256, .sampling = {}, .stop = {}, .seed = 0};
  attention::CacheType cache = attention::CacheType::model;
  bool raw = false, chat = false, force = false;
};

// One conversation: keeps the session and reads only what is new of a longer prompt.
class Conversation {
 public:
  Conversation(const LoadedModel& loaded, const Options& options)
      : loaded_(loaded), options_(options), mechanisms_(make_mechanisms(options.attention, loaded, options.model)) {
    if (options.session.empty() || !std::filesystem::exists(options.session)) return;
    open();
    session_->load(options.session);
  }

  models::Generated answer(const std::vector<int32_t>& prompt) {
    require(!prompt.empty(), "run: the prompt must not be empty");
    require_context(*loaded_.decoder, std::ssize(prompt) + options_.generate.max_tokens, options_.force);
    size_t common = 0;
    if (session_) {
      const std::vector<int32_t>& read = session_->tokens();
      while (common < std::min(read.size(), prompt.size() - 1) && read[common] == prompt[common]) ++common;
    }
    if (!rewind(common)) {
      open();
      common = 0;
    }
    const at::Tensor hidden = session_->prefill(std::span(prompt).subspan(common));
    models::Generated generated = models::generate(*session_, *loaded_.tokenizer, hidden.select(1, -1).squeeze(0),
                                                   options_.generate, [](std::string_view text) {
                                                     std::fwrite(text.data(), 1, text.size(), stdout);
                                                     std::fflush(stdout);
                                                     return !was_interrupted();
                                                   });
    fmt::print("\n");
    if (!options_.session.empty()) session_->save(options_.session);
    return generated;
  }

 private:
  void open() { session_.emplace(*loaded_.decoder, mechanisms_, models::SessionOptions{.cache = options_.cache}); }

  // Whether the session could go back to its first `length` tokens.
  bool rewind(size_t length) {
    if (!session_ || length == 0) return false;
    try {
      session_->truncate(int64_t(length));
      return true;
    } catch (const Error&) {  // a mechanism has evicted what is needed: the prompt is read anew
      return false;
    }
  }

  const LoadedModel& loaded_;
  const Options& options_;
  std::vector<attention::Mechanism> mechanisms_;
  std::optional<models::Session> session_;
};

std::vector<int32_t> encode(const LoadedModel& loaded, const Options& options,
                            const std::vector<io::Message>& messages) {
  if (options.raw) return loaded.tokenizer->encode(messages.back().content);
  return loaded.tokenizer->encode(io::chat_prompt(loaded.tokenizer->chat_template(), messages),
                                  {.parse_special = true});
}

void run(const Options& options) {
  require(options.chat || !options.prompt.empty(), "run: a prompt is needed (or --chat), got none");
  require(!(options.chat && options.raw), "run: --chat needs the model's chat template, got --raw");
  options.generate.sampling.validate();
  const std::string prompt = options.prompt == "-" ? io::read_text("-") : options.prompt;
  require(options.chat || !prompt.empty(), "run: the prompt must not be empty");
  if (!options.session.empty())  // known before the long work
    require_writable_directory(std::filesystem::absolute(options.session).parent_path());
  const LoadedModel loaded = load_model(options.model);
  Conversation conversation(loaded, options);
  watch_interrupts();
  std::vector<io::Message> messages;
  if (!options.system.empty()) messages.push_back({"system", options.system});
  std::string user = prompt;
  for (bool is_first = true;; is_first = false) {
    if (!is_first || user.empty()) {
      fmt::print(stderr, "> ");
      if (!std::getline(std::cin, user)) break;
      if (user.empty()) continue;
    }
    messages.push_back({"user", user});
    const models::Generated generated = conversation.answer(encode(loaded, options, messages));
    throw_if_interrupted();
    if (!options.chat) break;
    messages.push_back({"assistant", generated.text});
    user.clear();
  }
}

}  // namespace

void add_run(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("run", "generate text");
  add_model_options(*command, options->model);
  models::GenerateOptions& generate = options->generate;
  command->add_option("prompt", options->prompt, "the prompt; - reads standard input");
  command->add_option("--attention", options->attention, "mechanism, see `foveate list`")->capture_default_str();
  add_cache_option(*command, options->cache);
  command->add_option("--session", options->session,
                      "keep here what was read: a prompt that begins with it goes on from there, now or another day");
  command->add_option("--system", options->system, "system message");
  command->add_option("-n,--max-tokens", generate.max_tokens, "tokens to generate at most")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--temperature", generate.sampling.temperature, "0: always the likeliest token")
      ->capture_default_str();
  command->add_option("--top-k", generate.sampling.top_k, "sample among the k likeliest tokens; 0: all")
      ->capture_default_str();
  command->add_option("--top-p", generate.sampling.top_p, "among the fewest that hold this probability")
      ->capture_default_str();
  command->add_option("--min-p", generate.sampling.min_p, "among those at least this likely, relative to the likeliest")
      ->capture_default_str();
  command->add_option("--stop", generate.stop, "text that ends the answer; repeat for more")
      ->take_all()
      ->allow_extra_args(false);
  command->add_option("--seed", generate.seed, "same seed, same text")->capture_default_str();
  command->add_flag("--raw", options->raw, "continue the prompt as it is, without the chat template");
  command->add_flag("--chat", options->chat, "keep a conversation, a line a turn");
  command->add_flag("--force", options->force, "go on beyond the model's context");
  command->footer(
      "Examples:\n  foveate run --model smollm2 \"Why is the sky blue?\"\n"
      "  foveate run --raw --temperature 0.8 --top-p 0.9 --seed 7 \"Once upon a time\"\n"
      "  foveate run --chat --attention window:size=1024");
  command->callback([options] { run(*options); });
}

}  // namespace foveate::app
