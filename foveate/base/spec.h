// Spec strings: how a user names a mechanism, its options and its layers on one line.
//   name:key=value,key=value      one mechanism; a value may be a spec in brackets: flux:cheap=(window:size=2048)
//   spec@layers;spec              several, each for its layers: dense@0-1,29;dhsa:budget=1024
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace foveate {

struct Spec {
  std::string name;
  std::vector<std::pair<std::string, std::string>> options;  // in the order written; brackets of nested specs removed

  std::string text() const;  // parse_spec(text()) gives the same Spec
  bool operator==(const Spec&) const = default;
};

// One mechanism without layers.  Throws Error: empty name, option without '=', a key given twice, unbalanced brackets.
Spec parse_spec(std::string_view text);

// Numbers and ascending ranges of them, "0-3,7", both ends included.  Throws Error, which begins with `what`: something
// else.
struct NumberRange {
  int64_t first, last;
};
std::vector<NumberRange> parse_ranges(std::string_view text, std::string_view what);

// The spec of every layer of a model with `layers` layers.  A part without '@' serves the layers that no other part
// names; where there is none, they are dense.  Throws Error: a layer out of range or named twice, two parts without
// '@'.
std::vector<Spec> parse_layered_spec(std::string_view text, int64_t layers);

}  // namespace foveate
