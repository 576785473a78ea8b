#include "foveate/io/safetensors.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "foveate/base/write_file.h"
#include "foveate/io/json.h"

namespace foveate::io {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int64_t kLargest = std::numeric_limits<int64_t>::max();
constexpr uint64_t kMostHeaderBytes = 100'000'000;  // the format's limit

// What one entry of the header says, checked; offsets are in the data section.
class Entry {
 public:
  Entry(const std::string& path, const std::string& name, const json& value)
      : what_(fmt::format("{}: tensor {}", path, printable(name))), value_(value) {
    require(value.is_object(), "{} must be an object", what_);
  }

  std::vector<int64_t> numbers(const char* key, size_t most) const {
    const auto found = value_.find(key);
    require(found != value_.end() && found->is_array() && found->size() <= most,
            "{}: {} must be an array of <= {} integers", what_, key, most);
    std::vector<int64_t> list;
    for (const json& item : *found) {
      require(item.is_number_unsigned() && item.get<uint64_t>() <= uint64_t(kLargest),
              "{}: {} must hold integers 0 .. 2^63 - 1", what_, key);
      list.push_back(item.get<int64_t>());
    }
    return list;
  }

  DType type() const {
    const auto found = value_.find("dtype");
    require(found != value_.end() && found->is_string(), "{}: dtype must be text", what_);
    const auto& name = found->get_ref<const std::string&>();
    const std::optional<DType> type = type_named(name);
    require(type.has_value(), "{}: dtype must be one of the format's of whole bytes, got {}", what_, printable(name));
    return *type;
  }

  const std::string& what() const { return what_; }

 private:
  std::string what_;
  const json& value_;
};

int64_t bytes_of(const Entry& entry, const std::vector<int64_t>& shape) {
  int64_t bytes = type_bytes(entry.type());
  for (const int64_t size : shape) {
    require(size == 0 || bytes <= kLargest / size, "{}: shape {} must have < 2^63 bytes", entry.what(),
            print_sizes(shape));
    bytes *= size;
  }
  return bytes;
}

StoredTensor read_entry(const std::string& path, const std::string& name, const json& value,
                        std::span<const std::byte> file, uint64_t data_start) {
  constexpr size_t kMostDimensions = 64;  // torch's limit; the format has none
  const Entry entry(path, name, value);
  const std::vector<int64_t> shape = entry.numbers("shape", kMostDimensions), place = entry.numbers("data_offsets", 2);
  require(place.size() == 2 && place[0] <= place[1], "{}: data_offsets must be a begin and an end, got {}",
          entry.what(), print_sizes(place));
  const int64_t room = int64_t(file.size() - data_start), needed = bytes_of(entry, shape), got = place[1] - place[0];
  require(place[1] <= room, "{} at byte {} + {} must end in the file, got an end at {} of {} bytes of data",
          entry.what(), data_start, place[0], place[1], room);
  require(got == needed, "{} at byte {} + {}: {} of shape {} must have {} bytes, got {}", entry.what(), data_start,
          place[0], type_name(entry.type()), print_sizes(shape), needed, got);
  const uint64_t offset = data_start + uint64_t(place[0]);
  return {name, shape, contiguous_strides(shape), entry.type(), file.subspan(offset, uint64_t(needed)), path, offset};
}

// The format allows neither overlaps nor bytes of no tensor.
void check_cover(const std::vector<StoredTensor>& tensors, const std::string& path, uint64_t data_start,
                 uint64_t size) {
  std::vector<const StoredTensor*> order;
  for (const StoredTensor& tensor : tensors) order.push_back(&tensor);
  std::ranges::sort(order, {}, [](const StoredTensor* t) { return std::pair(t->offset, t->bytes.size()); });
  uint64_t end = data_start;
  for (const StoredTensor* tensor : order) {
    require(tensor->offset == end, "{}: tensor {} must start at byte {}, where the one before ends, got {}", path,
            printable(tensor->name), end, tensor->offset);
    end += tensor->bytes.size();
  }
  require(end == size, "{}: the file must end with its last tensor at byte {}, got {} bytes", path, end, size);
}

void check_metadata(const json& metadata, const std::string& path) {
  require(metadata.is_object() && std::ranges::all_of(metadata, [](const json& value) { return value.is_string(); }),
          "{}: the header at byte 8: __metadata__ must be an object of texts", path);
}

bool is_there(const fs::path& path) {
  std::error_code ignored;  // what may not be looked at is not there
  return fs::exists(path, ignored);
}

// The name of a pickle in the folder, the first in the alphabet; empty if there is none.
std::string pickle_in(const std::string& folder) {
  std::set<std::string> names;
  std::error_code error;
  for (auto entry = fs::directory_iterator(folder, error); !error && entry != fs::directory_iterator();
       entry.increment(error)) {
    const fs::path& path = entry->path();
    for (const char* ending : {".bin", ".pt", ".pth", ".ckpt", ".pkl"})
      if (path.extension() == ending) names.insert(path.filename().string());
  }
  return names.empty() ? "" : *names.begin();
}

// tensor -> the file it stands in, a name in the same folder
std::map<std::string, std::string> read_index(const std::string& path) {
  const MappedFile mapped(path);
  require(mapped.bytes().size() <= kMostHeaderBytes, "{}: must have <= {} bytes, got {}", path, kMostHeaderBytes,
          mapped.bytes().size());
  const json index = parse_json(as_text(mapped.bytes()), path);
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  require(map != index.end() && map->is_object() && !map->empty(),
          "{}: weight_map must be an object of tensors and their files", path);
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : map->items()) {
    require(file.is_string(), "{}: the file of tensor {} must be text", path, printable(tensor));
    const auto& name = file.get_ref<const std::string&>();
    require(!name.empty() && name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos,
            "{}: the file of tensor {} must be a name in the same folder, got {}", path, printable(tensor),
            printable(name));
    files[tensor] = name;
  }
  return files;
}

}  // namespace

Safetensors Safetensors::open(const std::string& path) {
  Safetensors file;
  file.path_ = path;
  file.map_file(path);
  return file;
}

Safetensors Safetensors::parse(std::span<const std::byte> bytes, const std::string& name) {
  Safetensors file;
  file.path_ = name;
  file.read(bytes, name);
  return file;
}

void Safetensors::map_file(const std::string& path) {
  files_.push_back(std::make_shared<const MappedFile>(path));
  read(files_.back()->bytes(), path);
}

void Safetensors::read(std::span<const std::byte> bytes, const std::string& path) {
  ByteReader reader(bytes, path);
  const auto length = reader.number<uint64_t>("the header's length");
  require(length <= kMostHeaderBytes && length <= reader.left(),
          "{}: the header's length at byte 0 must be <= {} and fit the {} bytes left, got {}", path, kMostHeaderBytes,
          reader.left(), length);
  const std::string_view text = as_text(reader.take(length, "the header"));
  require(text.starts_with('{'), "{}: the header at byte 8 must start with '{{'", path);
  const json header = parse_json(text, path + ": the header at byte 8");
  std::vector<StoredTensor> tensors;
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__")
      check_metadata(value, path), metadata_ = value.get<std::map<std::string, std::string>>();
    else
      tensors.push_back(read_entry(path, name, value, bytes, reader.offset()));
  }
  check_cover(tensors, path, reader.offset(), bytes.size());
  for (const StoredTensor& tensor : tensors)
    require(tensors_.add(tensor), "{}: tensor {} must stand in one file", path, printable(tensor.name));
}

void write_safetensors(const std::string& path, std::span<const StoredTensor> tensors,
                       const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::vector<std::string_view> parts(1);
  size_t end = 0;
  for (const StoredTensor& tensor : tensors) {
    require(!header.contains(tensor.name), "{}: tensors must have different names, got {} twice", path,
            printable(tensor.name));
    header[tensor.name] = {
        {"dtype", type_name(tensor.type)}, {"shape", tensor.shape}, {"data_offsets", {end, end + tensor.bytes.size()}}};
    end += tensor.bytes.size();
    parts.push_back(as_text(tensor.bytes));
  }
  const std::string text = header.dump();
  const uint64_t length = text.size();
  std::string head(sizeof length, '\0');
  std::memcpy(head.data(), &length, sizeof length);  // the supported machines are little-endian, as the format is
  head += text;
  parts[0] = head;
  write_file_atomically(path, parts);
}

Safetensors Safetensors::open_folder(const std::string& folder) {
  const fs::path base(folder);
  if (is_there(base / "model.safetensors")) return open((base / "model.safetensors").string());
  const std::string index_path = (base / "model.safetensors.index.json").string();
  if (!is_there(index_path)) {
    const std::string pickle = pickle_in(folder);
    require(pickle.empty(), "{}: must have model.safetensors, has only {}: pickles are never executed, convert it",
            folder, printable(pickle));
    fail("{}: must be a folder with model.safetensors or model.safetensors.index.json", folder);
  }
  const std::map<std::string, std::string> files = read_index(index_path);
  Safetensors all;
  all.path_ = folder;
  std::set<std::string> names;
  for (const auto& [tensor, file] : files)
    if (names.insert(file).second) all.map_file((base / file).string());
  for (const auto& [tensor, file] : files) {
    const StoredTensor* found = all.find(tensor);
    require(found && found->file == (base / file).string(), "{}: tensor {} must be in {}, is {}", index_path,
            printable(tensor), printable(file), found ? "in " + found->file : "nowhere");
  }
  return all;
}

}  // namespace foveate::io
