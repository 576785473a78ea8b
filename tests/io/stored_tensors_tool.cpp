// Prints what a file of tensors holds for the Python tests: FORMAT and PATH as arguments; one JSON line per tensor with
// its bytes in hexadecimal, and its floats' where the type has any; then one per other value, with its name.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "foveate/io/safetensors.h"
#include "foveate/io/torch_file.h"

namespace {

using foveate::io::DType;
using foveate::io::StoredTensor;

std::string hexadecimal(std::span<const std::byte> bytes) {
  std::string text;
  for (const std::byte byte : bytes) text += fmt::format("{:02x}", uint8_t(byte));
  return text;
}

void print(const StoredTensor& tensor) {
  std::vector<std::byte> bytes(size_t(tensor.elements() * foveate::io::type_bytes(tensor.type)));
  copy_elements(tensor, bytes);
  nlohmann::json line = {{"name", tensor.name},
                         {"shape", tensor.shape},
                         {"type", foveate::io::type_name(tensor.type)},
                         {"bytes", hexadecimal(bytes)}};
  const DType type = tensor.type;
  if (type == DType::f64 || type == DType::f32 || type == DType::f16 || type == DType::bf16) {
    std::vector<float> values(size_t(tensor.elements()));
    to_floats(tensor, values);
    line["floats"] = hexadecimal(std::as_bytes(std::span(values)));
  }
  std::puts(line.dump().c_str());
}

template <class File>
void print_all(const File& file) {
  for (const StoredTensor& tensor : file.tensors()) print(tensor);
}

void print_file(const std::string& format, const std::string& path) {
  if (format == "safetensors") return print_all(foveate::io::Safetensors::open(path));
  if (format == "folder") return print_all(foveate::io::Safetensors::open_folder(path));
  foveate::require(format == "torch", "stored_tensors_tool: format must be one of: safetensors folder torch; got '{}'",
                   format);
  const auto file = foveate::io::TorchFile::open(path);
  print_all(file);
  for (const std::string& name : file.others()) std::puts(nlohmann::json{{"other", name}}.dump().c_str());
}

}  // namespace

int main(int count, char** arguments) {
  try {
    foveate::require(count == 3, "stored_tensors_tool: two arguments, FORMAT and PATH, got {}", count - 1);
    print_file(arguments[1], arguments[2]);
  } catch (const foveate::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
  return 0;
}
