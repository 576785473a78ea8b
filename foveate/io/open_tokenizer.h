// The tokenizer of a model, whichever kind of file has it.
#pragma once

#include <memory>
#include <string>

#include "foveate/io/tokenizer.h"

namespace foveate::io {

// A GGUF file, a tokenizer.json, a folder with one, or the name of a fetched model.  Throws Error: no such file, and
// what read_vocabulary, make_tokenizer and read_tokenizer_json refuse.
std::unique_ptr<Tokenizer> open_tokenizer(const std::string& name_or_path);

}  // namespace foveate::io
