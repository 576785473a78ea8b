#include "foveate/ops/attend/explain.h"

#include <cstdlib>
#include <map>
#include <mutex>

#include "foveate/base/error.h"
#include "foveate/ops/level.h"

namespace foveate::ops {
namespace {

std::mutex uses_mutex;
std::map<std::string, int64_t> uses;

bool strict() {
  const char* set = std::getenv("FOVEATE_STRICT");
  return set && std::string_view(set) == "1";
}

}  // namespace

std::string explain(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Plan& plan, const Score& score,
                    Pass pass, const HeadMap& heads, const std::optional<at::Tensor>& pages) {
  const Problem problem{q, k, v, plan, score, heads, {}, pages};
  check_problem(problem);
  const std::string reason = decline_reason(problem);
  return reason.empty() ? describe(problem, pass) : "definition: " + reason;
}

std::vector<KernelUse> kernel_uses() {
  const std::lock_guard lock(uses_mutex);
  std::vector<KernelUse> all;
  for (const auto& [what, calls] : uses) all.push_back({what, calls});
  return all;
}

std::string decline_reason(at::ScalarType type) {
  if (!kernel_table()) return "FOVEATE_BACKEND=definition";
  return type == at::kDouble ? "fp64 runs in the definition" : "";
}

bool choose_kernel(std::string_view name, const std::string& reason, Pass pass) {
  require(reason.empty() || !strict() || !kernel_table(), "{}: strict mode, and no kernel runs this: {}", name, reason);
  std::string what(pass == Pass::forward ? "forward" : "backward");
  if (name != "attend") what = fmt::format("{} {}", name, what);
  const std::lock_guard lock(uses_mutex);
  ++uses[reason.empty() ? fmt::format("{} {}", kernel_level(), what) : fmt::format("definition {}: {}", what, reason)];
  return reason.empty();
}

bool choose(const Problem& problem, Pass pass) { return choose_kernel("attend", decline_reason(problem), pass); }

}  // namespace foveate::ops
