// Fuzz target of the safetensors reader and its JSON: the first byte chooses what the others are, a whole file, a
// header whose length is right, or the index of a folder with two shards.
#include "foveate/io/safetensors.h"
#include "tests/fuzz/read_stored.h"
#include "tests/support/safetensors_writer.h"

namespace {

using foveate::io::Safetensors;
using foveate::test::SafetensorsWriter;
using foveate::test::succeeds;
using foveate::test::TemporaryFolder;

constexpr char kWholeFile = 0, kHeader = 1, kIndex = 2;
constexpr size_t kHeaderData = 16;  // bytes of data behind a header

bool read_index(std::string_view index) {
  static TemporaryFolder folder("safetensors_fuzz");
  static const bool has_shards = [] {
    folder.add("1", SafetensorsWriter().tensor("a", "F32", {1}, "abcd").bytes());
    folder.add("2", SafetensorsWriter().tensor("b", "F32", {1}, "abcd").bytes());
    return true;
  }();
  folder.add("model.safetensors.index.json", index);
  return has_shards && succeeds([&] { foveate::test::read_stored(Safetensors::open_folder(folder.path())); });
}

bool accepts(std::string_view input) {
  if (input.empty()) return false;
  const std::string_view rest = input.substr(1);
  if (input[0] == kIndex) return read_index(rest);
  const std::string whole =
      input[0] == kHeader ? foveate::test::safetensors_file(rest, std::string(kHeaderData, 'x')) : std::string(rest);
  const auto bytes = foveate::test::copy_of(reinterpret_cast<const uint8_t*>(whole.data()), whole.size());
  return succeeds([&] { foveate::test::read_stored(Safetensors::parse(bytes, "fuzz")); });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  accepts({reinterpret_cast<const char*>(data), size});
  return 0;
}

#ifndef FOVEATE_LIBFUZZER
namespace {

std::vector<std::string> seed_files() {
  SafetensorsWriter writer;
  writer.entry(R"("__metadata__":{"format":"pt","note":"\u00fc\n"})");
  writer.tensor("shift", "U8", {1}, "x").tensor("w", "F64", {2, 1}, std::string(16, '\1'));
  writer.tensor("b", "BF16", {3}, "abcdef").tensor("h", "F16", {}, "ab").tensor("none", "F32", {0, 7}, "");
  const std::string whole = writer.bytes();
  const std::string header = R"({"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}})";
  const std::string two = R"({"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},)"
                          R"("b":{"dtype":"F64","shape":[1],"data_offsets":[8,16]},)"
                          R"("c":{"dtype":"BF16","shape":[2,1],"data_offsets":[4,8]}}   )";
  const std::string index = R"({"metadata":{"total_size":8},"weight_map":{"a":"1","b":"2"}})";
  return {kWholeFile + whole, kHeader + header, kHeader + two, kIndex + index};
}

}  // namespace

int main(int count, char** arguments) { return foveate::test::mutate_files(count, arguments, seed_files(), accepts); }
#endif
