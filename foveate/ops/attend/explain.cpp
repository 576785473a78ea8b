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

void count(std::string_view level, std::string_view name, std::string_view reason, Pass pass) {
  std::string what(level);
  if (name != "attend") what += fmt::format(" {}", name);
  what += pass == Pass::forward ? " forward" : " backward";
  if (!reason.empty()) what += fmt::format(": {}", reason);
  const std::lock_guard lock(uses_mutex);
  ++uses[what];
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
  count(reason.empty() ? kernel_level() : "definition", name, reason, pass);
  return reason.empty();
}

void count_rerun(std::string_view name, std::string_view reason, Pass pass) { count("definition", name, reason, pass); }

bool choose(const Problem& problem, Pass pass) { return choose_kernel("attend", decline_reason(problem), pass); }

}  // namespace foveate::ops
