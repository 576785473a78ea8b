// Patterns by PCRE2, over UTF-8 and with Unicode's classes.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace foveate::io {

// The inside of a class: White_Space.  PCRE2's \\s under UCP also has U+180E, which has been no space since
// Unicode 6.3.
inline constexpr std::string_view kSpaceClass =
    "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";

// Immutable after construction: one serves several threads.
class Regex {
 public:
  // PCRE2's syntax, at most 1 MB; ^ and $ stand at the ends of lines.  Throws Error: `what` names the pattern in it.
  Regex(std::string_view pattern, std::string what);
  ~Regex();
  Regex(Regex&&) noexcept;

  struct Match {
    size_t begin, end;
  };

  // Walks through one text.
  class Search {
   public:
    // `text` is valid UTF-8 (matchable_text) and outlives the search.
    Search(const Regex& regex, std::string_view text);
    ~Search();

    // The leftmost match that begins at or after `from`.  Throws Error where PCRE2 gives up, or after 10 s and 20 us a
    // byte for all of a text: a pattern from a file may try more ways than ever end.
    std::optional<Match> find(size_t from);

   private:
    struct Data;
    const Regex& regex_;
    std::string_view text_;
    std::unique_ptr<Data> data_;
  };

 private:
  struct Code;
  std::unique_ptr<Code> code_;
  std::string what_;
};

}  // namespace foveate::io
