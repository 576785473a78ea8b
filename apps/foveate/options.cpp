#include "options.h"

#include <ATen/Parallel.h>

#include <filesystem>

#include "foveate/base/write_file.h"

namespace foveate::app {

void add_threads(CLI::App& command, int& threads) {
  command.add_option("--threads", threads, "0: all cores")->check(CLI::Range(0, 4096))->capture_default_str();
}

void use_threads(int threads) {
  if (threads > 0) at::set_num_threads(threads);
}

void check_output(const std::string& file) {
  if (file.empty()) return;
  const std::filesystem::path folder = std::filesystem::path(file).parent_path();
  require_writable_directory(folder.empty() ? "." : folder);
}

}  // namespace foveate::app
