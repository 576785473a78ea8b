// Deterministic text of every kind that a tokenizer may stumble over: the same bytes on every machine.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "foveate/base/random.h"

namespace foveate::test {

struct TextChunk {
  std::string kind;  // what it is made of, for messages
  std::string text;  // valid UTF-8, about 16 KiB
};

// More than 1 MB in all.
std::vector<TextChunk> mixed_text();

// Any bytes, mostly no valid UTF-8; those next to the borders of its rules come often.
std::string random_bytes(Random& random, size_t count);

}  // namespace foveate::test
