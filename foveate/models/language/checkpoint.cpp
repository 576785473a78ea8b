#include "foveate/models/language/checkpoint.h"

#include <filesystem>

#include "foveate/models/language/hf_config.h"
#include "foveate/models/language/hf_parameters.h"

namespace foveate::models {

Checkpoint::Checkpoint(const io::Gguf& file)
    : path(file.path()), config(read_config(file)), parameters(std::make_shared<GgufParameters>(file)) {}

Checkpoint Checkpoint::open(const std::string& path) {
  if (!std::filesystem::is_directory(path)) return Checkpoint(io::Gguf::open(path));
  Checkpoint checkpoint;
  checkpoint.path = path;
  checkpoint.config = read_hf_config(path);
  checkpoint.parameters = std::make_shared<HfParameters>(io::Safetensors::open_folder(path),
                                                         checkpoint.config.architecture, checkpoint.config.heads);
  return checkpoint;
}

}  // namespace foveate::models
