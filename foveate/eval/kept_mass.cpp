#include "foveate/eval/kept_mass.h"

#include <ATen/TensorOperators.h>

#include <algorithm>

namespace foveate::eval {

std::optional<double> kept_mass(const attention::Inputs& in, const attention::Attended& attended) {
  constexpr int64_t kParts = 4, kRows = 32;
  if (!attended.lse) return std::nullopt;
  const int64_t length = in.q.size(2);
  double mass = 0;
  int64_t parts = 0;
  for (int64_t part = 1; part <= kParts; ++part) {
    const int64_t end = length * part / kParts, rows = std::min(kRows, end), first = end - rows;
    if (rows == 0) continue;
    const attention::Inputs some = attention::narrow_rows(in, first, rows);
    const ops::Attended dense = ops::attend(some.q, some.k, some.v, some.rule, some.score);
    mass += (attended.lse->narrow(2, first, rows) - dense.lse).exp().mean().item<double>();
    ++parts;
  }
  return parts > 0 ? std::optional(mass / double(parts)) : std::nullopt;
}

}  // namespace foveate::eval
