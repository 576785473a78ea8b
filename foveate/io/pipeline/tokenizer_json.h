// tokenizer.json of Hugging Face, and what lies beside it.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "foveate/io/tokenizer.h"

namespace foveate::io {

// What other files beside tokenizer.json say; "" where one is missing.
struct TokenizerFiles {
  std::string tokenizer = {};          // tokenizer.json
  std::string config = {};             // tokenizer_config.json: chat template, names of BOS and EOS, add_bos_token
  std::string special_tokens = {};     // special_tokens_map.json: names where the configuration is silent
  std::string generation_config = {};  // generation_config.json: ids that end a text
  std::string chat_template = {};      // chat_template.jinja, before the configuration's
};

// Throws Error of one line, with `source` and the place inside the file: not valid JSON; a type or option that is not
// known (names the known ones); ids that are not 0 .. n-1, each once; a token twice; merges, unknown tokens and
// post-processors that name no token; scores that are no numbers; patterns that PCRE2 cannot take over.
std::unique_ptr<Tokenizer> parse_tokenizer_json(const TokenizerFiles& files, const std::string& source);

// A folder with tokenizer.json, or that file; the others are read from beside it.  Throws Error, besides what
// parse_tokenizer_json refuses: no such file, not readable.
std::unique_ptr<Tokenizer> read_tokenizer_json(const std::string& path);

}  // namespace foveate::io
