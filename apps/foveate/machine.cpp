#include "machine.h"

#include <sys/utsname.h>
#include <torch/version.h>
#include <unistd.h>

#include <ctime>
#include <fstream>
#include <iterator>
#include <thread>

#include "foveate/base/error.h"

namespace foveate::app {

report::CompareReport::Machine this_machine() {
  report::CompareReport::Machine machine;
  std::ifstream cpus("/proc/cpuinfo");
  for (std::string line; machine.cpu.empty() && std::getline(cpus, line);)
    if (line.starts_with("model name") && line.find(": ") != std::string::npos)
      machine.cpu = line.substr(line.find(": ") + 2);
  utsname system{};
  if (::uname(&system) == 0) {
    machine.os = fmt::format("{} {}", system.sysname, system.release);
    if (machine.cpu.empty()) machine.cpu = system.machine;
  }
  machine.cores = int(std::thread::hardware_concurrency());
  machine.memory_bytes = int64_t(::sysconf(_SC_PHYS_PAGES)) * ::sysconf(_SC_PAGE_SIZE);
  return machine;
}

report::CompareReport::Versions this_build() {
#if defined(__clang__)
  const std::string compiler = "clang " __clang_version__;
#else
  const std::string compiler = "g++ " __VERSION__;
#endif
  return {.foveate = FOVEATE_VERSION, .torch = TORCH_VERSION, .compiler = compiler};
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  ::gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

std::string command_line() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::string line;
  for (std::string word; std::getline(file, word, '\0');) {
    if (line.empty()) word = word.substr(word.find_last_of('/') + 1);
    const bool quote = word.find_first_of(" ;&|<>()$*\"'") != std::string::npos;
    line += fmt::format("{}{}", line.empty() ? "" : " ", quote ? "'" + word + "'" : word);
  }
  return line;
}

}  // namespace foveate::app
