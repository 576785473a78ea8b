// The best entries of one row of scores, by counting digits: no sort, no L log L.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace foveate::ops {

// Not to be used by two threads at a time: it keeps its memory between rows.
class TopOfRow {
 public:
  // to[0 .. count): places of the `count` best scores, ascending, -1 behind the end where there are fewer.  Higher
  // scores first, then lower places; NaN behind all numbers, -inf never.
  void operator()(std::span<const float> scores, int64_t count, int32_t* to);

 private:
  static constexpr int kDigit = 11;
  std::vector<uint32_t> orders_, left_;
  std::array<uint32_t, 1 << kDigit> counts_;
};

}  // namespace foveate::ops
