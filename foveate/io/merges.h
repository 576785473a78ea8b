// The merge loop of byte pair encoding: neighbours become one token in the order of a ranked list.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace foveate::io {

class Merges {
 public:
  struct Merge {
    int32_t rank, id;  // the lower rank goes first; the token that the two become
  };

  void reserve(size_t count) { merges_.reserve(count); }
  // Of a pair added twice the first counts for add, the last for add_or_replace.
  void add(int32_t left, int32_t right, Merge merge) { merges_.try_emplace(key(left, right), merge); }
  void add_or_replace(int32_t left, int32_t right, Merge merge) { merges_.insert_or_assign(key(left, right), merge); }

  // Merges until no pair of neighbours is in the list; of equal ranks the leftmost goes first.  An id of -1 never
  // merges and stays.  Throws Error for 2^31 ids or more.
  void apply(std::vector<int32_t>& ids) const;

 private:
  static uint64_t key(int32_t left, int32_t right) { return uint64_t(uint32_t(left)) << 32 | uint32_t(right); }
  const Merge* find(int32_t left, int32_t right) const;

  std::unordered_map<uint64_t, Merge> merges_;
};

}  // namespace foveate::io
