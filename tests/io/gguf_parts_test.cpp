// GGUF files in parts.
#include <gtest/gtest.h>

#include <functional>

#include "foveate/base/error.h"
#include "tests/support/gguf_writer.h"

namespace foveate::io {
namespace {

using test::GgufWriter;
using test::TemporaryFile;

struct Part {
  int64_t number, count;
  std::vector<std::string> tensors;
  std::optional<int32_t> all_tensors;
};

std::string bytes_of(const Part& part) {
  GgufWriter writer;
  if (part.number == 0) writer.set("general.architecture", "llama");
  writer.set("split.no", uint16_t(part.number)).set("split.count", uint16_t(part.count));
  if (part.all_tensors) writer.set("split.tensors.count", *part.all_tensors);
  for (const std::string& name : part.tensors) writer.tensor(name, {3}, GgmlType::f32, std::string(12, name[0]));
  return writer.bytes();
}

std::vector<Part> good_parts() { return {{0, 3, {"a", "b"}, 4}, {1, 3, {"c"}, 4}, {2, 3, {"d"}, 4}}; }

const char* kNames[] = {"m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"};

// Writes the parts and hands the path of one of them to `use`.
void with_files(const std::vector<Part>& parts, size_t opened, const std::function<void(const std::string&)>& use) {
  std::vector<std::unique_ptr<TemporaryFile>> files;
  for (size_t i = 0; i < parts.size(); ++i)
    files.push_back(std::make_unique<TemporaryFile>(kNames[i], bytes_of(parts[i])));
  use(files.at(opened)->path());
}

std::string error_of(const std::vector<Part>& parts, size_t opened = 0) {
  std::string message = "no error";
  with_files(parts, opened, [&](const std::string& path) {
    try {
      Gguf::open(path);
    } catch (const Error& error) {
      message = error.what();
    }
  });
  return message;
}

TEST(GgufParts, are_one_file) {
  with_files(good_parts(), 0, [](const std::string& path) {
    const Gguf file = Gguf::open(path);
    ASSERT_EQ(file.tensors().size(), 4u);
    for (const char* name : {"a", "b", "c", "d"}) EXPECT_EQ(char(file.tensor(name).bytes[0]), name[0]);
    EXPECT_EQ(file.string("general.architecture"), "llama");
  });
}

TEST(GgufParts, name_what_is_wrong) {
  const std::vector<std::tuple<std::function<void(std::vector<Part>&)>, size_t, std::string>> defects = {
      {[](auto&) {}, 1, "m-00002-of-00003.gguf: of a file in parts the first must be opened: "},
      {[](auto& parts) { parts.pop_back(); }, 0, "m-00003-of-00003.gguf: cannot be opened: No such file"},
      {[](auto& parts) { parts[2].number = 1; }, 0, "must be 2 and 3, got 1 and 3"},
      {[](auto& parts) { parts[1].count = 4; }, 0, "must be 1 and 3, got 1 and 4"},
      {[](auto& parts) { parts[1].tensors = {"b"}; }, 0, "m-00002-of-00003.gguf: tensor 'b' must stand in one part"},
      {[](auto& parts) { parts[0].all_tensors = 5; }, 0, "must be the tensors of all 3 parts, 4, got 5"},
      {[](auto& parts) { parts[0].count = 2; }, 0, "part 1 of 2 must be named NAME-00001-of-00002.gguf"},
      {[](auto& parts) { parts[0].number = 7; }, 0, "must be a part of 2 .. 99999, got 7 of 3"},
  };
  for (const auto& [change, opened, expected] : defects) {
    std::vector<Part> parts = good_parts();
    change(parts);
    const std::string message = error_of(parts, opened);
    EXPECT_NE(message.find(expected), std::string::npos) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace foveate::io
