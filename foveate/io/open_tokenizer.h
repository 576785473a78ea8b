// The tokenizer of a model, whichever kind of file has it.
#pragma once

#include <memory>
#include <string>

#include "foveate/io/tokenizer.h"

namespace foveate::io {

// A GGUF file, a tokenizer.json or a folder with one.  Throws Error: no such file, and what read_vocabulary,
// make_tokenizer and read_tokenizer_json refuse.
std::unique_ptr<Tokenizer> open_tokenizer(const std::string& path);

}  // namespace foveate::io
