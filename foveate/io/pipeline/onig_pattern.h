// Patterns of tokenizer.json, which are written for Oniguruma, in PCRE2's syntax.
#pragma once

#include <string>
#include <string_view>

namespace foveate::io {

// A PCRE2 pattern (for Regex) that matches what the `tokenizers` package matches: Ruby's syntax, Unicode 16.  Classes
// name what PCRE2's own tables lack.
// Throws Error, with `what` in front, for what has another meaning in PCRE2 or none: intersections and what is negated
// inside classes (but for \S), ranges from or to classes, classes of one case where case is ignored, POSIX brackets,
// callouts, named groups and references, {n}? and {n,m}+, \R, \X, unknown properties and options, more than 20,000
// bytes.  One difference is left: where case is ignored, a character that folds to several ("ss") matches them not.
std::string pcre2_pattern(std::string_view pattern, const std::string& what);

}  // namespace foveate::io
