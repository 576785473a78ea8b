// A sweep: a spec string in which one option has several values.
//   dhsa:budget=256..4096        256, 512, 1024, ... doubled up to and including 4096
//   dhsa:budget=256,512,1024     these
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace foveate {

struct Sweep {
  std::string option;               // "budget"
  std::vector<std::string> values;  // "256", "512", ...
  std::vector<std::string> specs;   // the spec with each value in its place; layers and other parts stay
};

// Throws Error: no option or more than one with several values; a range that does not ascend from above 0, or whose
// ends are no numbers; a value twice.
Sweep parse_sweep(std::string_view text);

}  // namespace foveate
