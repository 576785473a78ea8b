// Dequantises for the Python tests: the type's name as the argument, packed blocks on standard input, fp32 on standard
// output.
#include <cstdio>
#include <iterator>
#include <string>
#include <vector>

#include "foveate/io/dequantize.h"

namespace {

using foveate::io::GgmlType;

GgmlType type_named(const std::string& name) {
  for (uint32_t type = 0; type < 64; ++type)
    if (foveate::io::type_name(type) == name) return static_cast<GgmlType>(type);
  foveate::fail("dequantize_tool: unknown type, got '{}'", name);
}

std::vector<std::byte> read_all(std::FILE* file) {
  std::vector<std::byte> bytes;
  std::byte part[65536];
  while (const size_t count = std::fread(part, 1, sizeof part, file)) bytes.insert(bytes.end(), part, part + count);
  return bytes;
}

void dequantize_stream(const std::string& name) {
  const GgmlType type = type_named(name);
  const int64_t block = foveate::io::block_bytes(type);
  foveate::require(block > 0, "dequantize_tool: unsupported type, got '{}'", name);
  const std::vector<std::byte> bytes = read_all(stdin);
  std::vector<float> values(size_t(int64_t(bytes.size()) / block * foveate::io::block_elements(type)));
  foveate::io::dequantize(type, bytes, values);
  std::fwrite(values.data(), sizeof(float), values.size(), stdout);
}

}  // namespace

int main(int count, char** arguments) {
  try {
    foveate::require(count == 2, "dequantize_tool: one argument, a type's name, got {}", count - 1);
    dequantize_stream(arguments[1]);
  } catch (const foveate::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
  return 0;
}
