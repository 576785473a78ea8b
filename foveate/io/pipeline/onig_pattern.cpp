#include "foveate/io/pipeline/onig_pattern.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <vector>

#include "foveate/base/error.h"
#include "foveate/io/bytes.h"
#include "foveate/io/pipeline/unicode_tables.h"
#include "foveate/io/regex.h"
#include "foveate/io/unicode.h"

namespace foveate::io {

namespace {

constexpr int kDeepest = 100;  // classes inside each other
constexpr size_t kLongestPattern = 20'000;

constexpr std::string_view kNotSpace =
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}!-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}"
    "\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}";
// Without C and Cn: what PCRE2's tables lack would have to be taken out of them.
constexpr std::array<std::string_view, 35> kCategories = {
    "Cc", "Cf", "Co", "Cs", "L",  "Ll", "Lm", "Lo", "Lt", "Lu", "M",  "Mc", "Me", "Mn", "N",  "Nd", "Nl", "No",
    "P",  "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "S",  "Sc", "Sk", "Sm", "So", "Z",  "Zl", "Zp", "Zs",
};
constexpr std::array<std::string_view, 16> kScripts = {
    "Arabic", "Armenian", "Bengali", "Common",   "Cyrillic",  "Devanagari", "Georgian", "Greek",
    "Han",    "Hangul",   "Hebrew",  "Hiragana", "Inherited", "Katakana",   "Latin",    "Thai",
};

// The inside of a class: a general category of Unicode 16.
std::string category_class(std::string_view category) {
  std::string text = fmt::format("\\p{{{}}}", category);
  for (const Categorised& late : kSince14)
    if (std::string_view(late.category).starts_with(category))
      text += late.first == late.last ? fmt::format("\\x{{{:x}}}", late.first)
                                      : fmt::format("\\x{{{:x}}}-\\x{{{:x}}}", late.first, late.last);
  return text;
}

// Oniguruma's words: the superscripts of Latin-1 and circled letters as well.
const std::string& word_class() {
  static const std::string text = category_class("L") + category_class("M") + category_class("Nd") +
                                  category_class("Nl") + category_class("Pc") +
                                  "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}"
                                  "\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}";
  return text;
}

class Translator {
 public:
  Translator(std::string_view pattern, const std::string& what) : in_(pattern), what_(what) {}

  std::string run() {
    while (at_ < in_.size()) outside();
    return std::move(out_);
  }

 private:
  [[noreturn]] void reject(std::string_view thing) const {
    fail("{}: patterns must do without {}, got it at byte {} of {}", what_, thing, at_, printable(in_));
  }
  bool follows(std::string_view text) const { return in_.substr(at_).starts_with(text); }
  char next() const { return at_ < in_.size() ? in_[at_] : '\0'; }
  bool skip(std::string_view text) {
    if (!follows(text)) return false;
    at_ += text.size();
    return true;
  }

  void outside() {
    switch (next()) {
      case '\\':
        ++at_;
        return escape_outside();
      case '[':
        ++at_;
        return outer_class();
      case '(':
        return group();
      case '{':
        return interval();
      case ')':
        if (ignores_case_.size() > 1) ignores_case_.pop_back();
        out_ += in_[at_++];
        return;
      default:
        out_ += in_[at_++];
    }
  }

  void group() {
    if (follows("(*")) reject("'(*'");
    ++at_;
    out_ += '(';
    ignores_case_.push_back(ignores_case_.back());
    if (!skip("?")) return;
    out_ += '?';
    for (const std::string_view kind : {":", "=", "!", ">", "<=", "<!"})
      if (skip(kind)) {
        out_ += kind;
        return;
      }
    if (skip("#")) {
      const size_t end = in_.find(')', at_);
      if (end == std::string_view::npos) reject("an open comment");
      out_ += "#)";
      at_ = end + 1;
      ignores_case_.pop_back();
      return;
    }
    // Ruby's m is PCRE2's s; in Ruby, options without a group also end where the alternative before them began.
    const bool is_first = at_ == 2;
    bool turns_on = true;
    for (; next() != ')' && next() != ':'; ++at_) {
      const char option = next();
      if (option == '-') turns_on = false;
      if (option == 'i') ignores_case_.back() = turns_on;
      if (option != 'i' && option != 'm' && option != 'x' && option != '-') reject("this kind of group");
      out_ += option == 'm' ? 's' : option;
    }
    if (next() == ')' && !is_first) reject("options behind the beginning");
    if (next() == ')') ignores_case_.front() = ignores_case_.back();  // for all that follows
  }

  // {n}, {n,}, {n,m} and {,m}; any other brace is itself.
  void interval() {
    size_t end = at_ + 1;
    const auto digits = [&] {
      const size_t begin = end;
      while (end < in_.size() && in_[end] >= '0' && in_[end] <= '9') ++end;
      return in_.substr(begin, end - begin);
    };
    const std::string_view low = digits();
    const bool has_comma = end < in_.size() && in_[end] == ',';
    if (has_comma) ++end;
    const std::string_view high = has_comma ? digits() : std::string_view();
    if (end >= in_.size() || in_[end] != '}' || (low.empty() && high.empty())) {
      out_ += "\\{";
      ++at_;
      return;
    }
    at_ = end + 1;
    if (next() == '+') reject("'+' behind {..}");
    if (next() == '?' && !has_comma) reject("'?' behind {n}");
    out_ += fmt::format("{{{}{}{}}}", low.empty() ? "0" : low, has_comma ? "," : "", high);
  }

  // What \s, \d, \w, \h and \p stand for as the inside of a class; is_negated: for \S and the like.
  std::optional<std::string> shorthand(char letter, bool& is_negated) {
    is_negated = letter == 'S' || letter == 'D' || letter == 'W' || letter == 'H' || letter == 'P';
    switch (letter) {
      case 's':
      case 'S':
        return std::string(kSpaceClass);
      case 'd':
      case 'D':
        return category_class("Nd");
      case 'w':
      case 'W':
        return word_class();
      case 'h':
      case 'H':
        return "0-9a-fA-F";
      case 'p':
      case 'P':
        return property(is_negated);
      default:
        return std::nullopt;
    }
  }

  std::string property(bool& is_negated) {
    if (!skip("{")) reject("\\p without braces");
    if (skip("^")) is_negated = !is_negated;
    const size_t end = in_.find('}', at_);
    if (end == std::string_view::npos) reject("an open \\p{");
    const std::string_view name = in_.substr(at_, end - at_);
    at_ = end + 1;
    const bool has_case = name == "Lu" || name == "Ll" || name == "Lt";
    if (has_case && ignores_case_.back()) reject("a class of upper or lower case where case is ignored");
    if (std::ranges::find(kCategories, name) != kCategories.end()) return category_class(name);
    if (std::ranges::find(kScripts, name) != kScripts.end()) return fmt::format("\\p{{sc:{}}}", name);
    fail("{}: a property must be one of: {} {}; got {}", what_, fmt::join(kCategories, " "), fmt::join(kScripts, " "),
         printable(name));
  }

  void escape_outside() {
    if (at_ >= in_.size()) reject("a backslash at the end");
    const char letter = in_[at_++];
    bool is_negated = false;
    if (const auto inside = shorthand(letter, is_negated)) {
      out_ += (is_negated ? "[^" : "[") + *inside + "]";
      return;
    }
    const std::string word = "[" + word_class() + "]";
    if (letter == 'b' || letter == 'B') {
      const bool at_edge = letter == 'b';
      out_ += fmt::format("(?:(?<={0})(?{1}{0})|(?<!{0})(?{2}{0}))", word, at_edge ? "!" : "=", at_edge ? "=" : "!");
      return;
    }
    if (letter == 'A' || letter == 'z' || letter == 'Z' || (letter >= '1' && letter <= '9')) {
      out_ += {'\\', letter};
      return;
    }
    escape_anywhere(letter);
  }

  // A single character.
  void escape_anywhere(char letter) {
    static const std::map<char, std::string_view> kControls = {{'n', "\\n"}, {'r', "\\r"},   {'t', "\\t"}, {'f', "\\f"},
                                                               {'a', "\\a"}, {'v', "\\x0b"}, {'e', "\\e"}};
    if (const auto control = kControls.find(letter); control != kControls.end()) {
      out_ += control->second;
      return;
    }
    if (letter == 'x' || letter == 'u') return hexadecimal(letter);
    if ((letter >= 'a' && letter <= 'z') || (letter >= 'A' && letter <= 'Z') || (letter >= '0' && letter <= '9'))
      reject(fmt::format("the escape \\{}", letter));
    if (uint8_t(letter) < 0x80) out_ += '\\';
    out_ += letter;
  }

  void hexadecimal(char letter) {
    const bool braced = letter == 'x' && skip("{");
    const size_t begin = at_, most = braced ? 6 : letter == 'x' ? 2 : 4;
    const auto is_digit = [](char c) {
      return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
    };
    while (at_ < in_.size() && at_ - begin < most && is_digit(in_[at_])) ++at_;
    const std::string digits(in_.substr(begin, at_ - begin));
    if (digits.empty() || (letter == 'u' && digits.size() != 4)) reject(fmt::format("\\{} without digits", letter));
    if (braced && !skip("}")) reject("an open \\x{");
    if (!braced && letter == 'x' && std::stoul(digits, nullptr, 16) >= 0x80) reject("bytes by \\x");
    out_ += "\\x{" + digits + "}";
  }

  void outer_class() {
    out_ += '[';
    if (skip("^")) out_ += '^';
    if (skip("]")) out_ += "\\]";
    inside_class(0);
    out_ += ']';
  }

  // Up to and with the bracket that closes; a class inside joins the one around it.
  void inside_class(int depth) {
    if (depth > kDeepest) reject(fmt::format("more than {} classes inside each other", kDeepest));
    enum class Before { nothing, character, set } before = Before::nothing;
    for (;;) {
      if (at_ >= in_.size()) reject("an open class");
      if (skip("]")) return;
      if (follows("&&")) reject("&& in a class");
      if (follows("[:")) reject("POSIX brackets");
      if (follows("[^")) reject("a negated class in a class");
      const bool is_hyphen = next() == '-' && !follows("-]") && before != Before::nothing;
      if (is_hyphen && (before == Before::set || follows("-[") || is_shorthand(at_ + 1)))
        reject("a range from or to a class");
      before = Before::character;
      if (skip("[")) {
        before = Before::set;
        inside_class(depth + 1);
      } else if (next() == '\\') {
        if (is_shorthand(at_)) before = Before::set;
        ++at_;
        escape_in_class();
      } else {
        out_ += in_[at_++];
      }
    }
  }

  // Whether \s, \d and the like stand at a place.
  bool is_shorthand(size_t at) const {
    constexpr std::string_view kLetters = "sSdDwWhHpP";
    return at + 1 < in_.size() && in_[at] == '\\' && kLetters.find(in_[at + 1]) != std::string_view::npos;
  }

  void escape_in_class() {
    if (at_ >= in_.size()) reject("a backslash at the end");
    const char letter = in_[at_++];
    bool is_negated = false;
    if (const auto inside = shorthand(letter, is_negated)) {
      if (!is_negated) {
        out_ += *inside;
      } else if (letter == 'S') {
        out_ += kNotSpace;
      } else {
        reject(fmt::format("a negated \\{} in a class", letter));
      }
      return;
    }
    if (letter == 'b') {
      out_ += "\\x08";
      return;
    }
    escape_anywhere(letter);
  }

  std::string_view in_;
  const std::string& what_;
  size_t at_ = 0;
  std::string out_;
  std::vector<bool> ignores_case_ = {false};  // of the groups that are open
};

}  // namespace

std::string pcre2_pattern(std::string_view pattern, const std::string& what) {
  require(pattern.size() <= kLongestPattern, "{}: a pattern must have <= {} bytes, got {}", what, kLongestPattern,
          pattern.size());
  return Translator(pattern, what).run();
}

}  // namespace foveate::io
