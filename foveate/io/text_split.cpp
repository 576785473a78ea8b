#include "foveate/io/text_split.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>

#include "foveate/base/error.h"
#include "foveate/io/unicode.h"

namespace foveate::io {

namespace {

// The classes are those of Unicode 15.1, llama.cpp's version: PCRE2 10.42 knows 14.0 only, so what came later is
// listed.
constexpr std::string_view kLetter =
    "\\p{L}\\x{1123f}-\\x{11240}\\x{11f02}\\x{11f04}-\\x{11f10}\\x{11f12}-\\x{11f33}\\x{1342f}\\x{13441}-\\x{13446}"
    "\\x{1b132}\\x{1b155}\\x{1df25}-\\x{1df2a}\\x{1e030}-\\x{1e06d}\\x{1e4d0}-\\x{1e4eb}\\x{2b739}"
    "\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}";
constexpr std::string_view kNumber = "\\p{N}\\x{11f50}-\\x{11f59}\\x{1d2c0}-\\x{1d2d3}\\x{1e4f0}-\\x{1e4f9}";
// White_Space: PCRE2's \s under UCP also has U+180E, which has been no space since Unicode 6.3.
constexpr std::string_view kSpace =
    "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";

constexpr std::string_view kGpt2 = "'s|'t|'re|'ve|'m|'ll|'d| ?[L]+| ?[N]+| ?[^SLN]+|[S]+(?![^S])|[S]+";

// Llama 3 and, with one digit a piece, Qwen2.  As their tokenizer.json has it, without regard to case for 's and the
// like.
constexpr std::string_view kLlama3 =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\nLN]?[L]+|[N]{1,3}| ?[^SLN]+[\\r\\n]*|[S]*[\\r\\n]+|[S]+(?![^S])|[S]+";
constexpr std::string_view kQwen2 =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\nLN]?[L]+|[N]| ?[^SLN]+[\\r\\n]*|[S]*[\\r\\n]+|[S]+(?![^S])|[S]+";

struct Split {
  std::string_view name;
  std::array<std::string_view, 2> passes;  // each pass cuts the pieces of the one before; "" is none
  bool keeps_whole_tokens = false;
};
constexpr std::array kSplits = {
    Split{"smollm", {"[N]", kGpt2}},      Split{"starcoder", {"[N]", kGpt2}}, Split{"refact", {"[N]", kGpt2}},
    Split{"command-r", {"[N]", kGpt2}},   Split{"gpt-2", {kGpt2, ""}},        Split{"olmo", {kGpt2, ""}},
    Split{"phi-2", {kGpt2, ""}},          Split{"mpt", {kGpt2, ""}},          Split{"llama-bpe", {kLlama3, ""}, true},
    Split{"llama3", {kLlama3, ""}, true}, Split{"dbrx", {kLlama3, ""}},       Split{"smaug-bpe", {kLlama3, ""}},
    Split{"qwen2", {kQwen2, ""}},         Split{"stablelm2", {kQwen2, ""}},   Split{"deepseek-r1-qwen", {kQwen2, ""}},
};

// L, N and S in a pattern stand for the classes above.
std::string expand(std::string_view pattern) {
  std::string text;
  for (const char c : pattern) {
    if (c == 'L')
      text += kLetter;
    else if (c == 'N')
      text += kNumber;
    else if (c == 'S')
      text += kSpace;
    else
      text += c;
  }
  return text;
}

// The text with every byte that is in no UTF-8 character replaced by a control character: PCRE2 accepts it, and the
// offsets stay the same.
std::string matchable_text(std::string_view text) {
  std::string matchable(text);
  for (size_t at = 0; at < text.size();) {
    const size_t length = utf8_length(text, at);
    if (length == 0) matchable[at] = '\x01';
    at += length == 0 ? 1 : length;
  }
  return matchable;
}

}  // namespace

struct TextSplitter::Pattern {
  explicit Pattern(std::string_view pattern) {
    const std::string text = expand(pattern);
    int status = 0;
    size_t where = 0;
    code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), PCRE2_UTF | PCRE2_UCP, &status,
                             &where, nullptr));
    require(code != nullptr, "split: PCRE2 must accept the pattern, got status {} at {} of {}", status, where, text);
    pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);  // where PCRE2 has no JIT it interprets: slower, same pieces
  }

  struct Free {
    void operator()(pcre2_code* code) const { pcre2_code_free(code); }
    void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
  };
  std::unique_ptr<pcre2_code, Free> code;
};

TextSplitter::TextSplitter(std::string_view pre, std::string_view source) {
  std::string known;
  for (const Split& split : kSplits) {
    known += fmt::format(" {}", split.name);
    if (split.name != pre) continue;
    keeps_whole_tokens_ = split.keeps_whole_tokens;
    for (const std::string_view pattern : split.passes)
      if (!pattern.empty()) passes_.push_back(std::make_unique<Pattern>(pattern));
  }
  require(!passes_.empty(), "{}: tokenizer.ggml.pre must be one of:{}; got '{}'", source, known, pre);
}

TextSplitter::~TextSplitter() = default;

void TextSplitter::split(std::string_view text, const std::function<void(std::string_view)>& take) const {
  split_from(0, text, matchable_text(text), take);
}

// `matchable` is what the pattern sees of `text`.  A piece ends for the look-ahead where the pass before cut it, so
// each is matched as a text of its own.
void TextSplitter::split_from(size_t pass, std::string_view text, std::string_view matchable,
                              const std::function<void(std::string_view)>& take) const {
  if (pass == passes_.size()) return take(text);
  const auto deeper = [&](size_t begin, size_t end) {
    if (begin < end) split_from(pass + 1, text.substr(begin, end - begin), matchable.substr(begin, end - begin), take);
  };
  const std::unique_ptr<pcre2_match_data, Pattern::Free> data(pcre2_match_data_create(1, nullptr));
  size_t done = 0;
  while (done < text.size()) {
    const int status = pcre2_match(passes_[pass]->code.get(), reinterpret_cast<PCRE2_SPTR>(matchable.data()),
                                   matchable.size(), done, PCRE2_NO_UTF_CHECK, data.get(), nullptr);
    if (status == PCRE2_ERROR_NOMATCH) break;
    require(status > 0, "split: PCRE2 must match a piece of {} bytes, got status {}", matchable.size(), status);
    const size_t* bounds = pcre2_get_ovector_pointer(data.get());
    deeper(done, bounds[0]);
    deeper(bounds[0], bounds[1]);
    done = bounds[1];
  }
  deeper(done, text.size());
}

}  // namespace foveate::io
