#include "foveate/io/open_tokenizer.h"

#include <filesystem>

#include "foveate/io/cache.h"
#include "foveate/io/gguf.h"
#include "foveate/io/pipeline/tokenizer_json.h"

namespace foveate::io {

std::unique_ptr<Tokenizer> open_tokenizer(const std::string& name_or_path) {
  namespace fs = std::filesystem;
  const fs::path path(find_model(name_or_path));
  std::error_code ignored;
  if (fs::is_directory(path, ignored) || path.extension() == ".json") return read_tokenizer_json(path.string());
  return make_tokenizer(read_vocabulary(Gguf::open(path.string())));
}

}  // namespace foveate::io
