#include "foveate/io/gguf.h"

#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <numeric>

#include "foveate/io/dequantize.h"

namespace foveate::io {
namespace {

enum ValueType : uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64 };

// Bytes of a value; of a string or an array the least.
constexpr std::array<uint8_t, 13> kValueBytes = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};

constexpr std::array<std::string_view, 42> kTypeNames = {
    "F32",        "F16",        "Q4_0",       "Q4_1",  "Q4_2",     "Q4_3",     "Q5_0",     "Q5_1",    "Q8_0",
    "Q8_1",       "Q2_K",       "Q3_K",       "Q4_K",  "Q5_K",     "Q6_K",     "Q8_K",     "IQ2_XXS", "IQ2_XS",
    "IQ3_XXS",    "IQ1_S",      "IQ4_NL",     "IQ3_S", "IQ2_S",    "IQ4_XS",   "I8",       "I16",     "I32",
    "I64",        "F64",        "IQ1_M",      "BF16",  "Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8", "TQ1_0",   "TQ2_0",
    "IQ4_NL_4_4", "IQ4_NL_4_8", "IQ4_NL_8_8", "MXFP4", "NVFP4",    "Q1_0"};

bool is_supported(uint32_t type) { return block_elements(static_cast<GgmlType>(type)) > 0; }

std::string supported_types() {
  std::string names;
  for (uint32_t type = 0; type < kTypeNames.size(); ++type)
    if (is_supported(type)) names += fmt::format("{}{}", names.empty() ? "" : " ", kTypeNames[type]);
  return names;
}

uint32_t read_value_type(ByteReader& reader, std::string_view what) {
  const uint64_t start = reader.offset();
  const auto type = reader.number<uint32_t>(what);
  require(type < kValueBytes.size(), "{}: {} at byte {}: value type must be 0 .. {}, got {}", reader.name(), what,
          start, kValueBytes.size() - 1, type);
  return type;
}

GgufValue read_array(ByteReader& reader, std::string_view what) {
  const uint64_t start = reader.offset();
  const uint32_t type = read_value_type(reader, what);
  require(type != kArray, "{}: {} at byte {}: values must not be arrays of arrays", reader.name(), what, start);
  const uint64_t count = reader.count(what, kValueBytes[type]);
  if (type != kString) return GgufArray{type, reader.take(count * kValueBytes[type], what)};
  std::vector<std::string> texts;
  texts.reserve(count);  // at most the bytes left / 8
  for (uint64_t i = 0; i < count; ++i) texts.emplace_back(reader.text(what));
  return texts;
}

GgufValue read_value(ByteReader& reader, std::string_view what) {
  switch (read_value_type(reader, what)) {
    case kU8:
      return int64_t(reader.number<uint8_t>(what));
    case kI8:
      return int64_t(reader.number<int8_t>(what));
    case kU16:
      return int64_t(reader.number<uint16_t>(what));
    case kI16:
      return int64_t(reader.number<int16_t>(what));
    case kU32:
      return int64_t(reader.number<uint32_t>(what));
    case kI32:
      return int64_t(reader.number<int32_t>(what));
    case kF32:
      return double(reader.number<float>(what));
    case kBool:
      return reader.number<uint8_t>(what) != 0;
    case kString:
      return std::string(reader.text(what));
    case kArray:
      return read_array(reader, what);
    case kU64:
      return reader.number<uint64_t>(what);
    case kI64:
      return reader.number<int64_t>(what);
    default:
      return reader.number<double>(what);
  }
}

template <class T>
std::vector<double> widen(std::span<const std::byte> bytes) {
  std::vector<double> list(bytes.size() / sizeof(T));
  for (size_t i = 0; i < list.size(); ++i) {
    T item;
    std::memcpy(&item, bytes.data() + i * sizeof(T), sizeof(T));
    list[i] = double(item);
  }
  return list;
}

std::vector<double> widen(const GgufArray& array) {
  switch (array.value_type) {
    case kU8:
      return widen<uint8_t>(array.bytes);
    case kI8:
      return widen<int8_t>(array.bytes);
    case kU16:
      return widen<uint16_t>(array.bytes);
    case kI16:
      return widen<int16_t>(array.bytes);
    case kU32:
      return widen<uint32_t>(array.bytes);
    case kI32:
      return widen<int32_t>(array.bytes);
    case kF32:
      return widen<float>(array.bytes);
    case kU64:
      return widen<uint64_t>(array.bytes);
    case kI64:
      return widen<int64_t>(array.bytes);
    case kF64:
      return widen<double>(array.bytes);
    default:
      break;
  }
  std::vector<double> truths = widen<uint8_t>(array.bytes);
  for (double& truth : truths) truth = truth != 0;
  return truths;
}

std::string_view kind_of(const GgufValue& value) {
  constexpr std::array<std::string_view, 7> kKinds = {
      "a boolean", "an integer", "an integer", "a number", "text", "an array of numbers", "an array of texts"};
  const auto* array = std::get_if<GgufArray>(&value);
  return array && array->value_type == kBool ? "an array of booleans" : kKinds[value.index()];
}

}  // namespace

std::string type_name(uint32_t type) {
  return type < kTypeNames.size() ? std::string(kTypeNames[type]) : fmt::format("type {}", type);
}

int64_t GgufTensor::elements() const {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

Gguf Gguf::open(const std::string& path) {
  Gguf gguf;
  gguf.path_ = path;
  gguf.files_.push_back(std::make_shared<const MappedFile>(path));
  gguf.read(gguf.files_.front()->bytes());
  gguf.add_parts();
  return gguf;
}

void Gguf::add_parts() {
  const int64_t count = integer("split.count").value_or(1), number = integer("split.no").value_or(0);
  if (count <= 1) return;
  const std::string ending = fmt::format("-{:05}-of-{:05}.gguf", number + 1, count);
  require(number >= 0 && number < count && count <= 99999,
          "{}: keys 'split.no' and 'split.count' must be a part of 2 .. 99999, got {} of {}", path_, number, count);
  require(path_.ends_with(ending), "{}: part {} of {} must be named NAME{}", path_, number + 1, count, ending);
  const std::string name = path_.substr(0, path_.size() - ending.size());
  const auto path_of = [&](int64_t part) { return fmt::format("{}-{:05}-of-{:05}.gguf", name, part + 1, count); };
  require(number == 0, "{}: of a file in parts the first must be opened: {}", path_, path_of(0));
  for (int64_t part = 1; part < count; ++part) add_part(path_of(part), part, count);
  const int64_t wanted = integer("split.tensors.count").value_or(std::ssize(tensors()));
  require(wanted == std::ssize(tensors()),
          "{}: key 'split.tensors.count' must be the tensors of all {} parts, {}, got {}", path_, count,
          tensors().size(), wanted);
}

void Gguf::add_part(const std::string& path, int64_t number, int64_t count) {
  Gguf part;
  part.path_ = path;
  part.files_.push_back(std::make_shared<const MappedFile>(path));
  part.read(part.files_.front()->bytes());
  const int64_t no = part.integer("split.no").value_or(-1), of = part.integer("split.count").value_or(-1);
  require(no == number && of == count, "{}: keys 'split.no' and 'split.count' must be {} and {}, got {} and {}", path,
          number, count, no, of);
  files_.push_back(part.files_.front());
  for (const GgufTensor& tensor : part.tensors())
    require(tensors_.add(tensor), "{}: tensor {} must stand in one part", path, printable(tensor.name));
}

Gguf Gguf::parse(std::span<const std::byte> bytes, std::string name) {
  Gguf gguf;
  gguf.path_ = std::move(name);
  gguf.read(bytes);
  return gguf;
}

void Gguf::read(std::span<const std::byte> bytes) {
  ByteReader reader(bytes, path_);
  const auto magic = reader.take(4, "the magic number");
  require(std::memcmp(magic.data(), "GGUF", 4) == 0, "{}: not a GGUF file: bytes 0 .. 3 must be 'GGUF'", path_);
  const auto version = reader.number<uint32_t>("the version");
  const bool is_big_endian = version != 0 && (version & 0xFFFF) == 0;
  require(!is_big_endian, "{}: version at byte 4 must be little-endian, got {:#x} of a big-endian file", path_,
          version);
  require(version == 2 || version == 3, "{}: version at byte 4 must be 2 or 3, got {}", path_, version);
  constexpr uint64_t kLeastTensorBytes = 8 + 4 + 8 + 4 + 8, kLeastPairBytes = 8 + 4 + 1;
  const uint64_t tensors = reader.count("the tensor count", kLeastTensorBytes);
  const uint64_t pairs = reader.count("the metadata count", kLeastPairBytes);
  read_metadata(reader, pairs);
  for (uint64_t i = 0; i < tensors; ++i) read_tensor(reader);
  place_tensors(bytes, reader.offset());
  check_overlaps();
}

void Gguf::read_metadata(ByteReader& reader, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t start = reader.offset();
    std::string key(reader.text("a metadata key"));
    require(!has(key), "{}: key {} at byte {} must stand once", path_, printable(key), start);
    GgufValue value = read_value(reader, "key " + printable(key));
    values_.emplace(std::move(key), std::move(value));
  }
}

void Gguf::read_tensor(ByteReader& reader) {
  const uint64_t start = reader.offset();
  GgufTensor tensor;
  tensor.name = reader.text("a tensor name");
  const std::string what = "tensor " + printable(tensor.name);
  const auto dims = reader.number<uint32_t>(what);
  require(dims >= 1 && dims <= 4, "{}: {} at byte {} must have 1 .. 4 dimensions, got {}", path_, what, start, dims);
  uint64_t elements = 1;
  for (uint32_t i = 0; i < dims; ++i) {
    const auto size = reader.number<uint64_t>(what);
    const uint64_t largest = uint64_t(std::numeric_limits<int64_t>::max()) / elements;
    require(size >= 1 && size <= largest, "{}: {} at byte {}: dimension {} must be 1 .. {}, got {}", path_, what, start,
            i, largest, size);
    elements *= size;
    tensor.shape.insert(tensor.shape.begin(), int64_t(size));
  }
  const auto type = reader.number<uint32_t>(what);
  require(is_supported(type), "{}: {} at byte {}: type must be one of: {}; got {}", path_, what, start,
          supported_types(), type_name(type));
  tensor.type = static_cast<GgmlType>(type);
  const int64_t unit = block_elements(tensor.type);
  require(tensor.shape.back() % unit == 0, "{}: {} at byte {}: rows of {} must be a multiple of {}, got {}", path_,
          what, start, type_name(type), unit, tensor.shape.back());
  tensor.offset = reader.number<uint64_t>(what);  // in the data section, whose start is not known yet
  require(tensors_.add(std::move(tensor)), "{}: {} at byte {} must stand once", path_, what, start);
}

// Turns offsets in the data section into offsets in the file, and finds each tensor's bytes.
void Gguf::place_tensors(std::span<const std::byte> bytes, uint64_t infos_end) {
  const int64_t given = integer("general.alignment").value_or(32);
  require(given >= 1 && given <= (1 << 20) && (given & (given - 1)) == 0,
          "{}: key 'general.alignment' must be a power of two <= 2^20, got {}", path_, given);
  const uint64_t alignment = uint64_t(given), data_start = (infos_end + alignment - 1) / alignment * alignment;
  const uint64_t room = data_start <= bytes.size() ? bytes.size() - data_start : 0;
  for (GgufTensor& tensor : tensors_.all()) {
    const uint64_t block = uint64_t(block_bytes(tensor.type));
    const uint64_t blocks = uint64_t(tensor.elements() / block_elements(tensor.type));
    require(tensor.offset % alignment == 0, "{}: tensor {} at byte {} + {} must be aligned to {} bytes", path_,
            printable(tensor.name), data_start, tensor.offset, alignment);
    require(tensor.offset <= room && blocks <= (room - tensor.offset) / block,
            "{}: tensor {} at byte {} + {} must end in the file, got {} blocks of {} bytes in a file of {} bytes",
            path_, printable(tensor.name), data_start, tensor.offset, blocks, block, bytes.size());
    tensor.offset += data_start;
    tensor.bytes = bytes.subspan(tensor.offset, blocks * block);
  }
}

void Gguf::check_overlaps() const {
  std::vector<const GgufTensor*> order;
  for (const GgufTensor& tensor : tensors()) order.push_back(&tensor);
  std::ranges::sort(order, {}, &GgufTensor::offset);
  for (size_t i = 1; i < order.size(); ++i) {
    const GgufTensor &before = *order[i - 1], &after = *order[i];
    require(before.offset + before.bytes.size() <= after.offset,
            "{}: tensors {} and {} must not overlap, got {} bytes at byte {} and a start at byte {}", path_,
            printable(before.name), printable(after.name), before.bytes.size(), before.offset, after.offset);
  }
}

const GgufValue* Gguf::value(std::string_view key) const {
  const auto found = values_.find(key);
  return found == values_.end() ? nullptr : &found->second;
}

void Gguf::wrong_type(std::string_view key, std::string_view wanted) const {
  fail("{}: key {} must be {}, got {}", path_, printable(key), wanted, kind_of(*value(key)));
}

std::optional<std::string> Gguf::string(std::string_view key) const {
  const GgufValue* found = value(key);
  if (!found) return std::nullopt;
  if (const auto* text = std::get_if<std::string>(found)) return *text;
  wrong_type(key, "text");
}

std::optional<int64_t> Gguf::integer(std::string_view key) const {
  const GgufValue* found = value(key);
  if (!found) return std::nullopt;
  if (const auto* number = std::get_if<int64_t>(found)) return *number;
  if (const auto* number = std::get_if<uint64_t>(found)) {
    require(*number <= uint64_t(std::numeric_limits<int64_t>::max()), "{}: key {} must be < 2^63, got {}", path_,
            printable(key), *number);
    return int64_t(*number);
  }
  wrong_type(key, "an integer");
}

std::optional<double> Gguf::number(std::string_view key) const {
  const GgufValue* found = value(key);
  if (!found) return std::nullopt;
  if (const auto* number = std::get_if<double>(found)) return *number;
  if (const auto* number = std::get_if<int64_t>(found)) return double(*number);
  if (const auto* number = std::get_if<uint64_t>(found)) return double(*number);
  wrong_type(key, "a number");
}

std::optional<bool> Gguf::boolean(std::string_view key) const {
  const GgufValue* found = value(key);
  if (!found) return std::nullopt;
  if (const auto* truth = std::get_if<bool>(found)) return *truth;
  wrong_type(key, "a boolean");
}

const std::vector<std::string>* Gguf::strings(std::string_view key) const {
  const GgufValue* found = value(key);
  if (!found) return nullptr;
  if (const auto* texts = std::get_if<std::vector<std::string>>(found)) return texts;
  wrong_type(key, "an array of texts");
}

std::optional<std::vector<double>> Gguf::numbers(std::string_view key) const {
  const GgufValue* found = value(key);
  if (!found) return std::nullopt;
  if (const auto* array = std::get_if<GgufArray>(found)) return widen(*array);
  wrong_type(key, "an array of numbers");
}

}  // namespace foveate::io
