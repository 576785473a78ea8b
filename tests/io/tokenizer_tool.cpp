// Encodes and decodes texts for the Python tests: tokenizer_tool PATH.  A text is a line "bytes add_special
// parse_special" and the bytes; the answer a line of ids, a line with the number of decoded bytes, the bytes, a line
// break.
#include <cstdio>
#include <iostream>
#include <string>

#include "foveate/base/error.h"
#include "foveate/io/open_tokenizer.h"

int main(int count, char** arguments) try {
  if (count != 2) return 1;
  const auto tokenizer = foveate::io::open_tokenizer(arguments[1]);
  size_t bytes = 0;
  for (bool add_special = false, parse_special = false; std::cin >> bytes >> add_special >> parse_special;) {
    std::string text(bytes, '\0');
    std::cin.get();
    std::cin.read(text.data(), std::streamsize(bytes));
    const auto ids = tokenizer->encode(text, {.add_special = add_special, .parse_special = parse_special});
    const std::string decoded = tokenizer->decode(ids, parse_special);
    for (const int32_t id : ids) std::printf("%d ", id);
    std::printf("\n%zu\n", decoded.size());
    std::fwrite(decoded.data(), 1, decoded.size(), stdout);
    std::putchar('\n');
  }
  return 0;
} catch (const foveate::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
