// Patterns by PCRE2, over UTF-8 and with Unicode's classes.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace foveate::io {

// Immutable after construction: one serves several threads.
class Regex {
 public:
  // PCRE2's syntax; ^ and $ stand at the ends of lines.  Throws Error: `what` names the pattern in it.
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

    // The leftmost match that begins at or after `from`.  Throws Error where PCRE2 gives up: a pattern from a file may
    // try more ways than ever end.
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
