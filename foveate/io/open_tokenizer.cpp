#include "foveate/io/open_tokenizer.h"

#include <filesystem>

#include "foveate/io/cache.h"
#include "foveate/io/gguf.h"
#include "foveate/io/pipeline/tokenizer_json.h"

namespace foveate::io {

std::unique_ptr<Tokenizer> open_tokenizer(const std::string& name_or_path) {
  namespace fs = std::filesystem;
  const fs::path path(name_or_path), fetched = fs::path(cache_folder()) / "models" / path;
  if (fs::is_directory(path) || (path.extension() == ".json" && fs::is_regular_file(path)))
    return read_tokenizer_json(name_or_path);
  if (!path.has_parent_path() && fs::is_directory(fetched)) return read_tokenizer_json(fetched.string());
  return make_tokenizer(read_vocabulary(Gguf::open(find_model(name_or_path))));
}

}  // namespace foveate::io
