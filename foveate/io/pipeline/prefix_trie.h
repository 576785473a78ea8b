// Which of a set of texts a text begins with.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace foveate::io {

class PrefixTrie {
 public:
  // Texts with a number >= 0; of equal texts the least number counts.
  explicit PrefixTrie(std::vector<std::pair<std::string_view, int32_t>> entries);

  static constexpr uint32_t kRoot = 0, kNone = 0;

  // The node that `byte` leads to, or kNone.
  uint32_t step(uint32_t node, char byte) const;
  // The number of the text that ends at the node, or -1.
  int32_t value(uint32_t node) const { return nodes_[node].value; }
  // The node behind the text, or nothing.
  std::optional<uint32_t> walk(std::string_view text) const;
  // The number of the whole text, or -1.
  int32_t find(std::string_view text) const;

 private:
  struct Node {
    uint32_t children = 0;  // the first of them, in nodes_; they lie side by side by their bytes
    uint16_t count = 0;
    uint8_t byte = 0;
    int32_t value = -1;
  };
  std::vector<Node> nodes_;
};

}  // namespace foveate::io
