// Fuzz target of the GGUF reader: any bytes give a file whose tensors can all be read, or an Error of one line.
//   clang++ -fsanitize=fuzzer,address,undefined -DFOVEATE_LIBFUZZER ...     libFuzzer
//   g++ -fsanitize=address,undefined ... && gguf_fuzz [SECONDS] [SEED]      mutates built-in files
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "foveate/base/random.h"
#include "foveate/base/timer.h"
#include "foveate/io/dequantize.h"
#include "foveate/io/gguf.h"
#include "tests/support/gguf_writer.h"

namespace {

using foveate::Random;
using foveate::io::Gguf;
using foveate::io::GgufTensor;
using foveate::test::GgufWriter;

// Runs `action`; an Error must be one line of bounded length, anything else is a crash.
template <class Action>
bool succeeds(Action&& action) {
  try {
    action();
    return true;
  } catch (const foveate::Error& error) {
    const std::string message = error.what();
    if (message.find('\n') != std::string::npos || message.size() > 1000) std::abort();
    return false;
  }
}

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
  const std::vector<std::byte> bytes(reinterpret_cast<const std::byte*>(data),
                                     reinterpret_cast<const std::byte*>(data) + size);
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

uint64_t interesting_number(Random& random, size_t size) {
  const uint64_t numbers[] = {0,
                              1,
                              2,
                              4,
                              9,
                              31,
                              32,
                              size,
                              size - 1,
                              size / 8,
                              0x7FFFFFFF,
                              0xFFFFFFFF,
                              uint64_t(1) << 62,
                              uint64_t(1) << 63,
                              ~uint64_t{0},
                              ~uint64_t{0} - 31};
  return numbers[random.below(std::size(numbers))];
}

void mutate(std::string& bytes, const std::vector<std::string>& seeds, Random& random) {
  if (bytes.empty()) bytes = "G";
  const size_t at = random.below(bytes.size()), length = random.below(std::min<size_t>(bytes.size() - at, 64) + 1);
  switch (random.below(8)) {
    case 0:
      bytes[at] = char(bytes[at] ^ (1 << random.below(8)));
      break;
    case 1:
      bytes[at] = char(random.below(256));
      break;
    case 2:
    case 3: {  // a count, size or offset
      const uint64_t number = interesting_number(random, bytes.size());
      const size_t width = std::min<size_t>(bytes.size() - at, random.below(2) ? 8 : 4);
      std::memcpy(bytes.data() + at, &number, width);
      break;
    }
    case 4:
      bytes.resize(at);
      break;
    case 5:
      bytes.erase(at, length);
      break;
    case 6:
      bytes.insert(random.below(bytes.size()), bytes.substr(at, length));
      break;
    default: {
      const std::string& other = seeds[random.below(seeds.size())];
      bytes = bytes.substr(0, at) + other.substr(random.below(other.size()));
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  const double seconds = count > 1 ? std::atof(arguments[1]) : 10;
  Random random(count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 1);
  const std::vector<std::string> seeds = seed_files();
  uint64_t runs = 0, accepted = 0;
  for (const foveate::Timer timer; timer.seconds() < seconds; ++runs) {
    std::string bytes = seeds[random.below(seeds.size())];
    for (uint64_t changes = random.below(5); changes > 0; --changes) mutate(bytes, seeds, random);
    accepted += succeeds([&] { Gguf::parse(foveate::test::as_bytes(bytes), "fuzz"); });
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  }
  std::printf("%llu files, %llu of them good\n", (unsigned long long)runs, (unsigned long long)accepted);
  return 0;
}
#endif
