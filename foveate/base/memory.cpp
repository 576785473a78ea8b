#include "foveate/base/memory.h"

#include <malloc.h>

#include <fstream>
#include <string>

namespace foveate {

std::optional<int64_t> peak_resident_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmHWM:")) return std::stoll(line.substr(6)) * 1024;  // the line counts in KiB
  return std::nullopt;
}

bool reset_peak_resident() {
  malloc_trim(0);
  std::ofstream clear("/proc/self/clear_refs");
  return bool(clear << "5" << std::flush);
}

}  // namespace foveate
