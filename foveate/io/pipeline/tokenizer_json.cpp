#include "foveate/io/pipeline/tokenizer_json.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "foveate/base/error.h"
#include "foveate/io/bytes.h"
#include "foveate/io/json.h"
#include "foveate/io/pipeline/json_model.h"
#include "foveate/io/pipeline/json_place.h"
#include "foveate/io/pipeline/pipeline_tokenizer.h"

namespace foveate::io {

namespace {

namespace fs = std::filesystem;
constexpr int64_t kLargestId = std::numeric_limits<int32_t>::max();

std::vector<AddedToken> read_added_tokens(const JsonPlace& root) {
  std::vector<AddedToken> tokens;
  const auto list = root.find("added_tokens");
  if (!list) return tokens;
  for (const JsonPlace& place : list->items()) {
    place.allow({"id", "content", "special", "lstrip", "rstrip", "single_word", "normalized"});
    AddedToken token{.id = int32_t(place.at("id").integer(0, kLargestId)), .content = place.at("content").string()};
    if (token.content.empty()) place.at("content").reject("must not be empty");
    token.special = place.boolean_or("special", false);
    token.lstrip = place.boolean_or("lstrip", false);
    token.rstrip = place.boolean_or("rstrip", false);
    token.single_word = place.boolean_or("single_word", false);
    token.normalized = place.boolean_or("normalized", !token.special);
    tokens.push_back(std::move(token));
  }
  return tokens;
}

// Added tokens are tokens of the model, by the same id, or continue its list.
void join(const std::vector<AddedToken>& added, const JsonPlace& root, Vocabulary& vocabulary) {
  std::vector<std::string>& tokens = vocabulary.tokens;
  std::unordered_map<std::string, int32_t> ids;
  for (size_t id = 0; id < tokens.size(); ++id) ids.emplace(tokens[id], int32_t(id));
  vocabulary.types.assign(tokens.size(), int32_t(TokenType::normal));
  std::set<std::string_view> seen;
  std::vector<size_t> order(added.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::ranges::stable_sort(order, {}, [&](size_t i) { return added[i].id; });
  for (const size_t i : order) {
    const AddedToken& token = added[i];
    const auto known = ids.try_emplace(token.content, int32_t(tokens.size()));
    require(known.first->second == token.id, "{}: added_tokens[{}].id must be {}, the id of {}, got {}", root.source(),
            i, known.first->second, printable(token.content), token.id);
    require(seen.insert(token.content).second, "{}: added_tokens[{}].content must stand once, got {} again",
            root.source(), i, printable(token.content));
    if (known.second) {
      tokens.push_back(token.content);
      vocabulary.types.push_back(0);
    }
    vocabulary.types[size_t(token.id)] = int32_t(token.special ? TokenType::control : TokenType::user_defined);
  }
}

// The ids of one special token that a post-processor adds; `ids` are not checked here.
void append_ids(const JsonPlace& place, std::vector<int32_t>& ids) {
  for (const JsonPlace& id : place.at("ids").items()) ids.push_back(int32_t(id.integer(0, kLargestId)));
}

void read_template(const JsonPlace& place, std::vector<int32_t>& before, std::vector<int32_t>& after) {
  place.allow({"type", "single", "pair", "special_tokens"});
  const JsonPlace specials = place.at("special_tokens"), single = place.at("single");
  bool has_text = false;
  std::vector<int32_t> first, last;
  for (const JsonPlace& piece : single.items()) {
    piece.allow({"SpecialToken", "Sequence"});
    if (const auto special = piece.find("SpecialToken")) {
      special->allow({"id", "type_id"});
      const JsonPlace name = special->at("id");
      const auto token = specials.find(name.string());
      if (!token) name.reject("must be one of special_tokens");
      token->allow({"id", "ids", "tokens"});
      append_ids(*token, has_text ? last : first);
      continue;
    }
    const JsonPlace id = piece.at("Sequence").at("id");
    if (id.string() != "A" || has_text) id.reject("must be A, once in a single text");
    has_text = true;
  }
  if (!has_text) single.reject("must have the text, Sequence A");
  before.insert(before.begin(), first.begin(), first.end());
  after.insert(after.end(), last.begin(), last.end());
}

// ["[CLS]", 101]
int32_t read_pair_id(const JsonPlace& place) {
  const auto items = place.items();
  if (items.size() != 2) place.reject("must be a token and its id");
  items[0].string();
  return int32_t(items[1].integer(0, kLargestId));
}

void read_post_processor(const JsonPlace& place, std::vector<int32_t>& before, std::vector<int32_t>& after) {
  const std::string& type = place.at("type").string();
  if (type == "Sequence") {
    place.allow({"type", "processors"});
    for (const JsonPlace& part : place.at("processors").items()) read_post_processor(part, before, after);
  } else if (type == "ByteLevel") {  // offsets only
    place.allow({"type", "add_prefix_space", "trim_offsets", "use_regex"});
  } else if (type == "TemplateProcessing") {
    read_template(place, before, after);
  } else if (type == "BertProcessing" || type == "RobertaProcessing") {
    place.allow({"type", "sep", "cls", "trim_offsets", "add_prefix_space"});
    before.insert(before.begin(), read_pair_id(place.at("cls")));
    after.push_back(read_pair_id(place.at("sep")));
  } else {
    place.at("type").reject("must be one of: BertProcessing ByteLevel RobertaProcessing Sequence TemplateProcessing");
  }
}

// A token's name in a configuration: a string, or an object with its content.
std::optional<int32_t> read_named(const std::optional<JsonPlace>& file, std::string_view key,
                                  const Vocabulary& vocabulary) {
  const auto place = file ? file->find(key) : std::nullopt;
  if (!place) return std::nullopt;
  const std::string& name = place->is_object() ? place->at("content").string() : place->string();
  const auto found = std::ranges::find(vocabulary.tokens, name);
  // A name without a token is harmless: many configurations have one.
  return found == vocabulary.tokens.end() ? std::nullopt : std::optional(int32_t(found - vocabulary.tokens.begin()));
}

// A string, or a list of {name, template}, of which "default" counts.
std::optional<std::string> read_chat_template(const JsonPlace& config) {
  const auto place = config.find("chat_template");
  if (!place) return std::nullopt;
  if (!place->is_array()) return place->string();
  for (const JsonPlace& each : place->items())
    if (each.at("name").string() == "default") return each.at("template").string();
  return std::nullopt;
}

void read_ends(const JsonPlace& generation, Vocabulary& vocabulary) {
  const auto eos = generation.find("eos_token_id");
  if (!eos) return;
  const auto last = int64_t(vocabulary.tokens.size()) - 1;
  const auto ids = eos->is_array() ? eos->items() : std::vector{*eos};
  for (const JsonPlace& id : ids) vocabulary.ends.insert(int32_t(id.integer(0, last)));
}

// A JSON file that may be missing.
class SideFile {
 public:
  SideFile(const std::string& text, const std::string& source) {
    if (text.empty()) return;
    json_ = parse_json(text, source);
    place_.emplace(json_, source);
    if (!place_->is_object()) place_->reject("must be an object");
  }
  const std::optional<JsonPlace>& place() const { return place_; }

 private:
  nlohmann::json json_;
  std::optional<JsonPlace> place_;
};

void read_side_files(const TokenizerFiles& files, const std::string& source, Vocabulary& vocabulary, Stages& stages) {
  const auto beside = [&](std::string_view name) { return (fs::path(source).parent_path() / name).string(); };
  const SideFile config(files.config, beside("tokenizer_config.json"));
  const SideFile names(files.special_tokens, beside("special_tokens_map.json"));
  const SideFile generation(files.generation_config, beside("generation_config.json"));
  for (const auto* file : {&config, &names}) {
    if (!vocabulary.bos) vocabulary.bos = read_named(file->place(), "bos_token", vocabulary);
    if (!vocabulary.eos) vocabulary.eos = read_named(file->place(), "eos_token", vocabulary);
  }
  if (generation.place()) read_ends(*generation.place(), vocabulary);
  if (!files.chat_template.empty()) vocabulary.chat_template = files.chat_template;
  if (!config.place()) return;
  if (!vocabulary.chat_template) vocabulary.chat_template = read_chat_template(*config.place());
  if (!stages.before.empty() || !stages.after.empty()) return;  // the post-processor has the last word
  if (config.place()->boolean_or("add_bos_token", false) && vocabulary.bos) stages.before = {*vocabulary.bos};
  if (config.place()->boolean_or("add_eos_token", false) && vocabulary.eos) stages.after = {*vocabulary.eos};
}

}  // namespace

std::unique_ptr<Tokenizer> parse_tokenizer_json(const TokenizerFiles& files, const std::string& source) {
  const nlohmann::json json = parse_json(files.tokenizer, source);
  const JsonPlace root(json, source);
  // How many texts make a batch is no matter of a single one: truncation and padding are not read.
  root.allow({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor",
              "decoder", "model"});
  if (const std::string version = root.string_or("version", "1.0"); version != "1.0")
    root.at("version").reject("must be '1.0'");
  const auto stage = [&](std::string_view key) {
    static const nlohmann::json kNone;
    const auto place = root.find(key);
    return place ? *place : JsonPlace(kNone, source);
  };
  Vocabulary vocabulary{.source = source, .model = "json"};
  Stages stages;
  stages.model = read_model(root.at("model"), vocabulary.tokens, vocabulary.unknown);
  stages.added = read_added_tokens(root);
  join(stages.added, root, vocabulary);
  stages.normalizers = read_normalizers(stage("normalizer"));
  stages.pre_tokenizers = read_pre_tokenizers(stage("pre_tokenizer"));
  stages.decoders = read_decoders(stage("decoder"));
  if (const auto place = root.find("post_processor")) read_post_processor(*place, stages.before, stages.after);
  read_side_files(files, source, vocabulary, stages);
  return std::make_unique<PipelineTokenizer>(std::move(vocabulary), std::move(stages));
}

std::unique_ptr<Tokenizer> read_tokenizer_json(const std::string& path) {
  std::error_code ignored;
  const fs::path file = fs::is_directory(path, ignored) ? fs::path(path) / "tokenizer.json" : fs::path(path);
  // Mapped: what is no regular file is refused instead of read without end.
  const auto text_of = [](const fs::path& name) { return std::string(as_text(MappedFile(name.string()).bytes())); };
  const auto beside = [&](std::string_view name) {
    const fs::path other = file.parent_path() / name;
    return fs::exists(fs::symlink_status(other, ignored)) ? text_of(other) : std::string();
  };
  TokenizerFiles files{.tokenizer = text_of(file)};
  files.config = beside("tokenizer_config.json");
  files.special_tokens = beside("special_tokens_map.json");
  files.generation_config = beside("generation_config.json");
  files.chat_template = beside("chat_template.jinja");
  return parse_tokenizer_json(files, file.string());
}

}  // namespace foveate::io
