#include "foveate/io/merges.h"

#include <functional>
#include <limits>
#include <queue>

#include "foveate/base/error.h"

namespace foveate::io {

namespace {

struct Symbol {
  int32_t id;           // -1: no token, never merges
  int32_t prev, next;   // neighbours, -1 at the ends
  bool merged = false;  // into its left neighbour
};

struct Candidate {
  int32_t rank, left, right;
  int32_t left_id, right_id;  // when it was pushed: a symbol that has merged since makes it void
  bool operator>(const Candidate& other) const { return rank != other.rank ? rank > other.rank : left > other.left; }
};

}  // namespace

const Merges::Merge* Merges::find(int32_t left, int32_t right) const {
  if (left < 0 || right < 0) return nullptr;
  const auto found = merges_.find(key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void Merges::apply(std::vector<int32_t>& ids) const {
  require(ids.size() < size_t(std::numeric_limits<int32_t>::max()), "encode: a text must be < 2 GB, got {} symbols",
          ids.size());
  const auto count = int32_t(ids.size());
  std::vector<Symbol> symbols;
  symbols.reserve(ids.size());
  for (int32_t i = 0; i < count; ++i) symbols.push_back({ids[size_t(i)], i - 1, i + 1 < count ? i + 1 : -1});

  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto push = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0) return;
    const int32_t left_id = symbols[size_t(left)].id, right_id = symbols[size_t(right)].id;
    if (const Merge* merge = find(left_id, right_id)) queue.push({merge->rank, left, right, left_id, right_id});
  };
  for (int32_t i = 0; i + 1 < count; ++i) push(i, i + 1);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol &left = symbols[size_t(best.left)], &right = symbols[size_t(best.right)];
    if (left.merged || right.merged || left.id != best.left_id || right.id != best.right_id) continue;
    left.id = find(left.id, right.id)->id;
    left.next = right.next;
    right.merged = true;
    if (left.next >= 0) symbols[size_t(left.next)].prev = best.left;
    push(left.prev, best.left);
    push(best.left, left.next);
  }
  ids.clear();
  for (const Symbol& symbol : symbols)
    if (!symbol.merged) ids.push_back(symbol.id);
}

}  // namespace foveate::io
