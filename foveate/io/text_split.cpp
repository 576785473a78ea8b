#include "foveate/io/text_split.h"

#include <array>

#include "foveate/base/error.h"
#include "foveate/io/bytes.h"
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
      text += kSpaceClass;
    else
      text += c;
  }
  return text;
}

}  // namespace

TextSplitter::TextSplitter(std::string_view pre, std::string_view source) {
  std::string known;
  for (const Split& split : kSplits) {
    known += fmt::format(" {}", split.name);
    if (split.name != pre) continue;
    keeps_whole_tokens_ = split.keeps_whole_tokens;
    for (const std::string_view pattern : split.passes)
      if (!pattern.empty()) passes_.emplace_back(expand(pattern), "split");
  }
  require(!passes_.empty(), "{}: tokenizer.ggml.pre must be one of:{}; got {}", source, known, printable(pre));
}

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
  Regex::Search search(passes_[pass], matchable);
  size_t done = 0;
  while (done < text.size()) {
    const std::optional<Regex::Match> match = search.find(done);
    if (!match) break;
    deeper(done, match->begin);
    deeper(match->begin, match->end);
    done = match->end;
  }
  deeper(done, text.size());
}

}  // namespace foveate::io
