// A language model on disk, whichever kind of file has it.
#pragma once

#include <memory>
#include <string>

#include "foveate/io/gguf.h"
#include "foveate/models/language/config.h"
#include "foveate/models/language/parameters.h"

namespace foveate::models {

struct Checkpoint {
  std::string path;
  DecoderConfig config;
  std::shared_ptr<const Parameters> parameters;

  // A GGUF file, or a Hugging Face folder (config.json and safetensors).  Throws Error: whatever is wrong with them,
  // with the file, the key or tensor; parameters are checked when they are read.
  static Checkpoint open(const std::string& path);
  Checkpoint(const io::Gguf& file);  // NOLINT: a file is a checkpoint

 private:
  Checkpoint() = default;
};

}  // namespace foveate::models
