#include "foveate/kernels/level.h"

#include <vector>

namespace foveate::kernels {

extern const Table kPortable;
#if defined(FOVEATE_X86_LEVELS)
extern const Table kAvx2, kAvx512, kAvx512Bf16;
#endif

std::span<const Table* const> levels() {
  static const std::vector<const Table*> known = [] {
    std::vector<const Table*> found{&kPortable};
#if defined(FOVEATE_X86_LEVELS)
    const auto has = [](auto... names) { return (names && ...); };
    const bool avx2 =
        has(__builtin_cpu_supports("avx2"), __builtin_cpu_supports("fma"), __builtin_cpu_supports("f16c"));
    const bool avx512 = avx2 && has(__builtin_cpu_supports("avx512f"), __builtin_cpu_supports("avx512bw"),
                                    __builtin_cpu_supports("avx512dq"), __builtin_cpu_supports("avx512vl"));
    if (avx2) found.push_back(&kAvx2);
    if (avx512) found.push_back(&kAvx512);
    if (avx512 && has(__builtin_cpu_supports("avx512bf16"), __builtin_cpu_supports("avx512vnni")))
      found.push_back(&kAvx512Bf16);
#endif
    return found;
  }();
  return known;
}

}  // namespace foveate::kernels
