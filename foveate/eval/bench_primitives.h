// Speed of the primitives around ops::attend, each beside another way to the same result, measured in one process.
#pragma once

#include <c10/core/ScalarType.h>

#include <functional>
#include <string>

namespace foveate::eval {

struct PrimitiveTiming {
  std::string name, beside;  // what it is; what it is held against
  double seconds = 0, beside_seconds = 0;
  double bytes = 0;  // that must be read or written at least once; 0 where products count
};

struct PrimitiveOptions {
  int64_t length = 8192, dim = 64, heads = 8, kv_heads = 2;
  at::ScalarType type = at::kBFloat16;
  double seconds = 0.5;
};

// Each result is checked before it is timed.  Throws Error: numbers < 1, heads that are no multiple of kv_heads,
// results that differ.
void bench_primitives(const PrimitiveOptions& options, const std::function<void(const PrimitiveTiming&)>& done);

}  // namespace foveate::eval
