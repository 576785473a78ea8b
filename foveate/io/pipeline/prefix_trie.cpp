#include "foveate/io/pipeline/prefix_trie.h"

#include <algorithm>

namespace foveate::io {

// Sorted texts that share a beginning lie side by side: each node stands for such a run, and the runs of one more byte
// become its children.
PrefixTrie::PrefixTrie(std::vector<std::pair<std::string_view, int32_t>> entries) {
  std::ranges::sort(entries);
  struct Run {
    uint32_t node;
    size_t first, last, depth;
  };
  nodes_.emplace_back();
  std::vector<Run> runs = {{kRoot, 0, entries.size(), 0}};
  for (size_t next = 0; next < runs.size(); ++next) {
    Run run = runs[next];
    for (; run.first < run.last && entries[run.first].first.size() == run.depth; ++run.first)
      if (nodes_[run.node].value < 0) nodes_[run.node].value = entries[run.first].second;
    nodes_[run.node].children = uint32_t(nodes_.size());
    while (run.first < run.last) {
      const char byte = entries[run.first].first[run.depth];
      size_t end = run.first;
      while (end < run.last && entries[end].first[run.depth] == byte) ++end;
      runs.push_back({uint32_t(nodes_.size()), run.first, end, run.depth + 1});
      nodes_.push_back({.byte = uint8_t(byte)});
      ++nodes_[run.node].count;
      run.first = end;
    }
  }
}

uint32_t PrefixTrie::step(uint32_t node, char byte) const {
  const auto first = nodes_.begin() + nodes_[node].children, last = first + nodes_[node].count;
  const auto child =
      std::lower_bound(first, last, uint8_t(byte), [](const Node& each, uint8_t wanted) { return each.byte < wanted; });
  return child != last && child->byte == uint8_t(byte) ? uint32_t(child - nodes_.begin()) : kNone;
}

std::optional<uint32_t> PrefixTrie::walk(std::string_view text) const {
  uint32_t node = kRoot;
  for (const char byte : text)
    if ((node = step(node, byte)) == kNone) return std::nullopt;
  return node;
}

int32_t PrefixTrie::find(std::string_view text) const {
  const auto node = walk(text);
  return node ? value(*node) : -1;
}

}  // namespace foveate::io
