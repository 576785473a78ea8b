// Fuzz target of the GGUF reader: any bytes give a file whose tensors can all be read, or an Error of one line.
#include "foveate/io/dequantize.h"
#include "foveate/io/gguf.h"
#include "tests/fuzz/file_fuzz.h"
#include "tests/support/gguf_writer.h"

namespace {

using foveate::io::Gguf;
using foveate::io::GgufTensor;
using foveate::test::GgufWriter;
using foveate::test::succeeds;

void read_metadata(const Gguf& file) {
  for (const char* key :
       {"text", "u8", "i64", "u64", "f32", "flag", "tokens", "scores", "flags", "general.alignment"}) {
    succeeds([&] { file.string(key); });
    succeeds([&] { file.integer(key); });
    succeeds([&] { file.number(key); });
    succeeds([&] { file.boolean(key); });
    succeeds([&] { file.strings(key); });
    succeeds([&] { file.numbers(key); });
  }
}

void read_tensors(const Gguf& file) {
  for (const GgufTensor& tensor : file.tensors()) {
    if (file.find(tensor.name) != &tensor) std::abort();
    std::vector<float> values(size_t(tensor.elements()));
    if (!succeeds([&] { foveate::io::dequantize(tensor.type, tensor.bytes, values); })) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::vector<std::byte> bytes = foveate::test::copy_of(data, size);
  succeeds([&] {
    const Gguf file = Gguf::parse(bytes, "fuzz");
    read_metadata(file);
    read_tensors(file);
  });
  return 0;
}

#ifndef FOVEATE_LIBFUZZER
namespace {

std::vector<std::string> seed_files() {
  GgufWriter metadata;
  metadata.set("text", "value").set("u8", uint8_t(1)).set("i64", int64_t(-1)).set("u64", ~uint64_t{0});
  metadata.set("f32", 1.0f).set("flag", true).set("tokens", std::vector<std::string>{"a", "bb", ""});
  metadata.set("scores", std::vector<float>{1, 2, 3}).set("flags", std::vector<bool>{true, false});
  GgufWriter tensors;
  tensors.alignment = 8;
  for (const uint32_t type : {0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 30}) {
    const auto known = static_cast<foveate::io::GgmlType>(type);
    const std::string blocks(size_t(2 * foveate::io::block_bytes(known)), '\x35');
    tensors.tensor("tensor" + std::to_string(type), {2, foveate::io::block_elements(known)}, known, blocks);
  }
  GgufWriter both = metadata;
  both.tensor("w", {1, 2, 2, 2}, foveate::io::GgmlType::f32, std::string(32, '\1'));
  return {metadata.bytes(), tensors.bytes(), both.bytes()};
}

}  // namespace

int main(int count, char** arguments) {
  return foveate::test::mutate_files(count, arguments, seed_files(), [](const std::string& bytes) {
    return succeeds([&] { Gguf::parse(foveate::test::as_bytes(bytes), "fuzz"); });
  });
}
#endif
