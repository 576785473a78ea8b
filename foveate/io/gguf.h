// GGUF files (versions 2 and 3, little-endian), whole or in parts: metadata and tensors, memory-mapped.  Files are
// untrusted: every count, offset and length is checked before use, and nothing larger than the file justifies is
// allocated.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "foveate/io/bytes.h"
#include "foveate/io/tensor_list.h"

namespace foveate::io {

// The tensor types that can be dequantised, with the format's numbers.
enum class GgmlType : uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  bf16 = 30,
};

std::string type_name(uint32_t type);  // also of types that are not supported: "IQ2_XXS"; "type 99" for unknown ones

struct GgufTensor {
  std::string name;
  std::vector<int64_t> shape;  // torch order, slowest first; 1 .. 4 sizes >= 1
  GgmlType type;
  std::span<const std::byte> bytes;  // whole blocks
  uint64_t offset;                   // in its file

  int64_t elements() const;
};

// Numbers or booleans as they lie in the file; widened when asked for.
struct GgufArray {
  uint32_t value_type;
  std::span<const std::byte> bytes;
};
using GgufValue = std::variant<bool, int64_t, uint64_t, double, std::string, GgufArray, std::vector<std::string>>;

class Gguf {
 public:
  // Of a file in parts (NAME-00001-of-00003.gguf) the path of the first, which has the metadata; the others stand
  // beside it.  Throws Error: whatever is wrong with a file, with its path, the key or tensor and the byte offset.
  static Gguf open(const std::string& path);
  // The bytes must outlive the object and its copies; `name` stands for the path in messages.
  static Gguf parse(std::span<const std::byte> bytes, std::string name);

  const std::string& path() const { return path_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_.all(); }            // in the order of the file
  const GgufTensor* find(std::string_view name) const { return tensors_.find(name); }  // null if absent
  const GgufTensor& tensor(std::string_view name) const { return tensors_.get(name, path_); }  // throws Error if absent

  // Metadata; unset or null if absent.  Throws Error where the key holds another type.
  bool has(std::string_view key) const { return values_.contains(key); }
  std::optional<std::string> string(std::string_view key) const;
  std::optional<int64_t> integer(std::string_view key) const;  // any integer type that fits
  std::optional<double> number(std::string_view key) const;    // any integer or floating-point type
  std::optional<bool> boolean(std::string_view key) const;
  const std::vector<std::string>* strings(std::string_view key) const;
  std::optional<std::vector<double>> numbers(std::string_view key) const;  // arrays of numbers or booleans (0 or 1)

 private:
  void read(std::span<const std::byte> bytes);
  void read_metadata(ByteReader& reader, uint64_t count);
  void read_tensor(ByteReader& reader);
  void place_tensors(std::span<const std::byte> bytes, uint64_t infos_end);
  void check_overlaps() const;
  void add_parts();
  void add_part(const std::string& path, int64_t number, int64_t count);
  const GgufValue* value(std::string_view key) const;
  [[noreturn]] void wrong_type(std::string_view key, std::string_view wanted) const;

  std::string path_;
  std::vector<std::shared_ptr<const MappedFile>> files_;  // none after parse()
  std::map<std::string, GgufValue, std::less<>> values_;
  TensorList<GgufTensor> tensors_;
};

}  // namespace foveate::io
