#include "foveate/io/open_tokenizer.h"

#include <filesystem>

#include "foveate/io/gguf.h"
#include "foveate/io/pipeline/tokenizer_json.h"

namespace foveate::io {

std::unique_ptr<Tokenizer> open_tokenizer(const std::string& path) {
  const std::filesystem::path file(path);
  if (std::filesystem::is_directory(file) || file.extension() == ".json") return read_tokenizer_json(path);
  return make_tokenizer(read_vocabulary(Gguf::open(path)));
}

}  // namespace foveate::io
