#include "foveate/ops/level.h"

#include <ATen/Parallel.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <string>

#include "foveate/base/error.h"

namespace foveate::ops {

const kernels::Table* kernel_table() {
  const auto levels = kernels::levels();
  const char* forced = std::getenv("FOVEATE_BACKEND");
  if (!forced || !*forced) return levels.back();
  if (std::string_view(forced) == "definition") return nullptr;
  std::string known = "definition";
  for (const kernels::Table* table : levels) {
    if (std::string_view(forced) == table->name) return table;
    known += fmt::format(" {}", table->name);
  }
  fail("FOVEATE_BACKEND: this machine has no level '{}', it has: {}", forced, known);
}

std::string_view kernel_level() {
  const kernels::Table* table = kernel_table();
  return table ? table->name : "definition";
}

bool avoid_faulty_products() {
#if defined(__x86_64__)
  if (std::getenv("ONEDNN_MAX_CPU_ISA")) return false;
  unsigned a = 7, b, c = 0, d;
  asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  constexpr unsigned kAmxTile = 1u << 24;
  if (!(d & kAmxTile)) return false;
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGILL, SIG_DFL);
    at::set_num_threads(1);
    const at::Tensor ones = at::ones({64, 64}, at::kBFloat16);
    at::linear(ones, ones);
    ::_exit(0);
  }
  int status = 0;
  if (child < 0 || ::waitpid(child, &status, 0) != child || !WIFSIGNALED(status)) return false;
  ::setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16", 1);
  return true;
#else
  return false;
#endif
}

}  // namespace foveate::ops
