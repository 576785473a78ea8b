// Writes the mixed text for tools/make_tokenizer_goldens.py: per chunk a line "kind bytes", the bytes, a line break.
#include <cstdio>

#include "tests/support/mixed_text.h"

int main() {
  for (const foveate::test::TextChunk& chunk : foveate::test::mixed_text()) {
    std::printf("%s %zu\n", chunk.kind.c_str(), chunk.text.size());
    std::fwrite(chunk.text.data(), 1, chunk.text.size(), stdout);
    std::putchar('\n');
  }
  return 0;
}
