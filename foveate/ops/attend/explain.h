// Which kernel runs a problem, or why none does.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "foveate/ops/attend/cpu.h"

namespace foveate::ops {

// One line: the level, its tiles, the panels of keys visited and the extra memory; or "definition: " and the reason.
// Runs nothing.  Throws Error: a problem that does not fit.
std::string explain(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Plan& plan,
                    const Score& score = {}, Pass pass = Pass::forward, const HeadMap& heads = {},
                    const std::optional<at::Tensor>& pages = {});

// What ran since the program started: "avx512_bf16 forward", or "definition forward: fp64 runs in the definition".
struct KernelUse {
  std::string what;
  int64_t calls;
};
std::vector<KernelUse> kernel_uses();

// Whether the kernels run a checked problem; counts it.  Throws Error where they decline in strict mode
// (FOVEATE_STRICT=1), unless the definition itself was asked for.
bool choose(const Problem& problem, Pass pass);
// Why no kernel runs inputs of this dtype, whatever the operator: fp64, FOVEATE_BACKEND=definition; empty: they do.
std::string decline_reason(at::ScalarType type);
// As choose, for any operator, by why its kernels decline; empty: they run.
bool choose_kernel(std::string_view name, const std::string& reason, Pass pass);
// Counts a call that the kernels ran and the definition ran again, for what its numbers are; strict mode lets it pass.
void count_rerun(std::string_view name, std::string_view reason, Pass pass);

}  // namespace foveate::ops
