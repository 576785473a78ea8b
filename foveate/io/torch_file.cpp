#include "foveate/io/torch_file.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <set>

#include "foveate/io/pickle.h"
#include "foveate/io/unicode.h"
#include "foveate/io/zip.h"

namespace foveate::io {
namespace {

using Kind = PickleValue::Kind;
using Bytes = std::span<const std::byte>;

constexpr std::string_view kTensor = "torch._utils._rebuild_tensor_v2";
constexpr std::string_view kTensorOfType = "torch._utils._rebuild_tensor_v3";  // types without a storage class
constexpr std::string_view kParameter = "torch._utils._rebuild_parameter";
constexpr std::string_view kParameterWithState = "torch._utils._rebuild_parameter_with_state";
constexpr std::string_view kParameterClass = "torch.nn.parameter.Parameter";
constexpr std::string_view kTensorWithState = "torch._tensor._rebuild_from_type_v2";
constexpr std::string_view kTensorClass = "torch.Tensor";
constexpr std::string_view kUntypedStorage = "torch.storage.UntypedStorage";

std::optional<DType> dtype_of(std::string_view global) {
  return global.starts_with("torch.") ? type_of_torch_dtype(global.substr(6)) : std::nullopt;
}
std::optional<DType> storage_type_of(std::string_view global) {
  return global.starts_with("torch.") ? type_of_torch_storage(global.substr(6)) : std::nullopt;
}

// Everything a pickle may name.  None of it is ever called here.
bool is_allowed(std::string_view global) {
  constexpr std::string_view kAllowed[] = {kTensor,
                                           kTensorOfType,
                                           kParameter,
                                           kParameterWithState,
                                           kParameterClass,
                                           kTensorWithState,
                                           kTensorClass,
                                           kUntypedStorage,
                                           "collections.OrderedDict",
                                           "torch.Size",
                                           "torch.device",
                                           "_codecs.encode",
                                           "__builtin__.set",
                                           "builtins.set",
                                           "__builtin__.complex",
                                           "builtins.complex"};
  return std::ranges::count(kAllowed, global) > 0 || dtype_of(global) || storage_type_of(global);
}

// One line of advice where the file is of another kind.
void check_kind(Bytes bytes, const std::string& path) {
  constexpr std::string_view kLegacy = "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
  const std::string_view text = as_text(bytes);
  require(!text.starts_with(kLegacy),
          "{}: must be a zip file, is in the format of torch < 1.6: load it in torch and torch.save it again", path);
  require(!text.starts_with('\x80'), "{}: must be a zip file, is a plain pickle: pickles are never executed", path);
  require(text.starts_with("PK\x03\x04"), "{}: must be a zip file of torch.save: bytes 0 .. 3 must be 'PK\\x03\\x04'",
          path);
}

// A file of torch.save: the entries of one folder.
class Archive {
 public:
  Archive(Bytes bytes, const std::string& path) : zip_(bytes, path), path_(path), file_bytes_(bytes.size()) {
    require(!zip_.entries().empty(), "{}: must have an entry data.pkl, is empty", path);
    const std::string& first = zip_.entries().front().name;
    folder_ = first.substr(0, first.find('/')) + "/";
    require(!zip_.find(folder_ + "constants.pkl"), "{}: must be a file of torch.save, is TorchScript, a program", path);
    require(find("data.pkl") != nullptr, "{}: must have an entry {}", path, printable(folder_ + "data.pkl"));
    if (const ZipEntry* order = find("byteorder"))
      require(as_text(order->bytes) == "little", "{}: byteorder at byte {} must be 'little', got {}", path,
              order->offset, printable(as_text(order->bytes)));
    check_version("version", 1, 10);  // what torch 2.13 reads, which writes 3
    if (find(".format_version")) check_version(".format_version", 1, 1);
  }

  const ZipEntry* find(std::string_view name) const {
    const ZipEntry* entry = zip_.find(fmt::format("{}{}", folder_, name));
    require(!entry || entry->compression == 0, "{}: entry {} must be stored, got compression method {}", path_,
            printable(folder_ + std::string(name)), entry ? entry->compression : 0);
    return entry;
  }
  const std::string& path() const { return path_; }
  uint64_t file_bytes() const { return file_bytes_; }

 private:
  void check_version(const char* name, int least, int most) const {
    const ZipEntry* entry = find(name);
    require(entry != nullptr, "{}: must have an entry {}", path_, printable(folder_ + name));
    std::string_view text = as_text(entry->bytes);
    if (text.ends_with('\n')) text.remove_suffix(1);
    int version = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), version);
    require(error == std::errc() && end == text.data() + text.size() && version >= least && version <= most,
            "{}: {} at byte {} must be {} .. {}, got {}", path_, name, entry->offset, least, most,
            printable(as_text(entry->bytes)));
  }

  Zip zip_;
  std::string path_, folder_;
  uint64_t file_bytes_;
};

// Makes tensors of the calls that would rebuild them.
class Rebuilder {
 public:
  Rebuilder(const Archive& archive, const Pickle& pickle) : archive_(archive), pickle_(pickle) {}

  // Whether a value is a tensor, in whatever wrapping.
  bool is_tensor(const PickleValue& value) const {
    if (value.kind != Kind::call) return false;
    const std::string_view name = pickle_[value.items[0]].text;
    return name.starts_with("torch._utils.") || name == kParameterClass || name == kTensorWithState;
  }

  StoredTensor rebuild(const PickleValue& value, const std::string& name) const {
    const std::string what = fmt::format("{}: tensor {} at byte {}", archive_.path(), printable(name), value.offset);
    std::string_view callee = pickle_[value.items[0]].text;
    const PickleValue* arguments = &pickle_[value.items[1]];
    constexpr int kMostWrappings = 8;  // torch makes one; a reference to many costs them anew at each place
    for (int wrappings = 0; callee != kTensor && callee != kTensorOfType; ++wrappings) {
      require(wrappings < kMostWrappings, "{}: must stand in <= {} wrappings", what, kMostWrappings);
      const bool is_named = callee == kTensorWithState;
      const auto& items = arguments->items;
      require(items.size() >= (is_named ? 4u : 1u), "{}: {} must have more arguments, got {}", what, callee,
              items.size());
      if (is_named) {
        callee = pickle_[items[0]].text;
        arguments = &pickle_[items[2]];
        const std::string_view type = pickle_[items[1]].text;
        require(callee == kTensor || callee == kTensorOfType, "{}: must be made by {}, got {}", what, kTensor,
                printable(callee));
        require(type == kTensorClass || type == kParameterClass, "{}: must be a plain tensor, got {}", what,
                printable(type));
        require(arguments->kind == Kind::tuple, "{}: arguments must be a tuple", what);
      } else {
        const PickleValue& inner = pickle_[items[0]];
        require(is_tensor(inner), "{}: {} must be of a tensor", what, callee);
        callee = pickle_[inner.items[0]].text;
        arguments = &pickle_[inner.items[1]];
      }
    }
    return rebuild_plain(callee == kTensorOfType, arguments->items, what, name);
  }

 private:
  struct Storage {
    const ZipEntry* entry;
    std::optional<DType> type;
    int64_t count;  // elements, of an untyped one bytes
  };

  const PickleValue& expect(uint32_t place, Kind kind, const std::string& what, const char* role) const {
    require(pickle_[place].kind == kind, "{}: {} must be of the kind that torch writes", what, role);
    return pickle_[place];
  }

  std::vector<int64_t> sizes(uint32_t place, const std::string& what, const char* role) const {
    constexpr size_t kMostDimensions = 64;  // torch's limit
    const std::vector<uint32_t>& items = expect(place, Kind::tuple, what, role).items;
    require(items.size() <= kMostDimensions, "{}: {} must have <= {} sizes, got {}", what, role, kMostDimensions,
            items.size());
    std::vector<int64_t> list;
    for (const uint32_t item : items) {
      list.push_back(expect(item, Kind::integer, what, role).integer);
      require(list.back() >= 0, "{}: {} must be >= 0, got {}", what, role, list.back());
    }
    return list;
  }

  Storage storage(uint32_t place, const std::string& what) const {
    const std::vector<uint32_t>& reference = expect(place, Kind::reference, what, "the storage").items;
    const std::vector<uint32_t>& id = expect(reference[0], Kind::tuple, what, "the storage's id").items;
    require(id.size() == 5 && expect(id[0], Kind::text, what, "the storage's id").text == "storage",
            "{}: the storage's id must be ('storage', type, key, place, size)", what);
    const std::string_view type = expect(id[1], Kind::global, what, "the storage's type").text;
    const std::string_view key = expect(id[2], Kind::text, what, "the storage's key").text;
    Storage storage{archive_.find(fmt::format("data/{}", key)), storage_type_of(type),
                    expect(id[4], Kind::integer, what, "the storage's size").integer};
    require(storage.type || type == kUntypedStorage, "{}: the storage's type must be a storage, got {}", what, type);
    require(storage.entry != nullptr, "{}: entry {} of its bytes is missing", what,
            printable(fmt::format("data/{}", key)));
    const int64_t unit = storage.type ? type_bytes(*storage.type) : 1, bytes = std::ssize(storage.entry->bytes);
    require(storage.count >= 0 && bytes % unit == 0 && storage.count == bytes / unit,
            "{}: its storage of {} elements of {} bytes must be all of entry {}, got {} bytes", what, storage.count,
            unit, printable(storage.entry->name), bytes);
    return storage;
  }

  StoredTensor rebuild_plain(bool has_type, const std::vector<uint32_t>& arguments, const std::string& what,
                             const std::string& name) const {
    const size_t least = has_type ? 7 : 6;
    require(arguments.size() == least || arguments.size() == least + 1, "{}: must have {} or {} arguments, got {}",
            what, least, least + 1, arguments.size());
    // Metadata marks conjugates and negatives that were never computed.
    require(arguments.size() == least || expect(arguments[least], Kind::dict, what, "metadata").items.empty(),
            "{}: must be a plain tensor, got one to be conjugated or negated", what);
    const Storage from = storage(arguments[0], what);
    const std::optional<DType> type =
        has_type ? dtype_of(expect(arguments[6], Kind::global, what, "the type").text) : from.type;
    require(type.has_value() && has_type != from.type.has_value(), "{}: must have one type", what);
    StoredTensor tensor{name, sizes(arguments[2], what, "shape"), sizes(arguments[3], what, "strides"), *type};
    tensor.file = archive_.path();
    require(tensor.shape.size() == tensor.strides.size(), "{}: shape {} and strides {} must be as long", what,
            print_sizes(tensor.shape), print_sizes(tensor.strides));
    place(tensor, from, expect(arguments[1], Kind::integer, what, "the offset").integer, what);
    return tensor;
  }

  // Finds the bytes from the first to the last element, all of which must lie in the storage.
  void place(StoredTensor& tensor, const Storage& from, int64_t first, const std::string& what) const {
    const int64_t unit = type_bytes(tensor.type), count = std::ssize(from.entry->bytes) / unit;
    require(first >= 0, "{}: the offset must be >= 0, got {}", what, first);
    // Strides of 0 repeat elements: no more than a file of this size could hold.
    int64_t most = int64_t(archive_.file_bytes()) / unit, last = first;
    tensor.offset = from.entry->offset;
    if (std::ranges::count(tensor.shape, 0) > 0) return;  // the offset may then be anywhere
    for (size_t axis = 0; axis < tensor.shape.size(); ++axis) {
      const int64_t size = tensor.shape[axis], stride = tensor.strides[axis];
      require(size <= most, "{}: shape {} must have <= {} elements, as many as fit the file", what,
              print_sizes(tensor.shape), archive_.file_bytes() / uint64_t(unit));
      most /= size;
      const bool fits = last < count && (stride == 0 || size - 1 <= (count - 1 - last) / stride);
      require(fits, "{}: shape {}, strides {} and offset {} must stay in the {} elements of its storage", what,
              print_sizes(tensor.shape), print_sizes(tensor.strides), first, count);
      last += (size - 1) * stride;
      if (size == 1) tensor.strides[axis] = 0;  // of one element it means nothing, and may be anything
    }
    require(last < count, "{}: offset {} must be in the {} elements of its storage", what, first, count);
    tensor.offset += uint64_t(first * unit);
    tensor.bytes = from.entry->bytes.subspan(size_t(first * unit), size_t((last - first + 1) * unit));
  }

  const Archive& archive_;
  const Pickle& pickle_;
};

bool is_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const size_t length = utf8_length(text, at);
    if (length == 0) return false;
    at += length;
  }
  return true;
}

// Walks the containers.  A container may stand in many places, so what a walk can cost is bounded by itself.
class Walker {
 public:
  using Found = std::function<void(const std::string& name, const PickleValue& value)>;
  Walker(const Pickle& pickle, uint64_t pickle_bytes, const std::string& path, Found found)
      : pickle_(pickle),
        path_(path),
        found_(std::move(found)),
        most_bytes_(std::min(kLeastBytes + 128 * pickle_bytes, kMostBytes)) {}

  void walk(uint32_t place, const std::string& name, int level) {
    constexpr int kMostLevels = 64;
    constexpr size_t kMostNameBytes = 4096;
    const PickleValue& value = pickle_[place];
    used_bytes_ += name.size() + 64;
    require(level <= kMostLevels, "{}: pickle: containers at byte {} must have <= {} levels", path_, value.offset,
            kMostLevels);
    require(name.size() <= kMostNameBytes, "{}: pickle: the path of the value at byte {} must have <= {} bytes", path_,
            value.offset, kMostNameBytes);
    require(used_bytes_ <= most_bytes_,
            "{}: pickle: containers must not stand in so many places that their values "
            "take > {} bytes",
            path_, most_bytes_);
    const auto join = [&](std::string_view key) {
      return level == 0 ? std::string(key) : fmt::format("{}.{}", name, key);
    };
    if (value.kind == Kind::dict) {
      std::set<std::string> keys;
      for (size_t i = 0; i < value.items.size(); i += 2) {
        const std::string key = key_of(pickle_[value.items[i]]);
        require(keys.insert(key).second, "{}: pickle: key {} of the dict at byte {} must stand once", path_,
                printable(key), value.offset);
        walk(value.items[i + 1], join(key), level + 1);
      }
    } else if (value.kind == Kind::list || value.kind == Kind::tuple || value.kind == Kind::set) {
      for (size_t i = 0; i < value.items.size(); ++i) walk(value.items[i], join(std::to_string(i)), level + 1);
    } else {
      found_(name, value);
    }
  }

 private:
  static constexpr uint64_t kLeastBytes = 1 << 20, kMostBytes = 1 << 27;

  std::string key_of(const PickleValue& key) const {
    if (key.kind == Kind::integer) return std::to_string(key.integer);
    require(key.kind == Kind::text && is_utf8(key.text),
            "{}: pickle: a key at byte {} must be an integer or text in UTF-8", path_, key.offset);
    return std::string(key.text);
  }

  const Pickle& pickle_;
  std::string path_;
  Found found_;
  uint64_t most_bytes_, used_bytes_ = 0;
};

}  // namespace

TorchFile TorchFile::open(const std::string& path) {
  TorchFile file;
  file.path_ = path;
  file.file_ = std::make_shared<const MappedFile>(path);
  file.read(file.file_->bytes());
  return file;
}

TorchFile TorchFile::parse(Bytes bytes, const std::string& name) {
  TorchFile file;
  file.path_ = name;
  file.read(bytes);
  return file;
}

void TorchFile::read(Bytes bytes) {
  check_kind(bytes, path_);
  const Archive archive(bytes, path_);
  const ZipEntry& data = *archive.find("data.pkl");
  const Pickle pickle(data.bytes, path_, data.offset, is_allowed);
  const Rebuilder rebuilder(archive, pickle);
  const auto keep = [&](const std::string& name, const PickleValue& value) {
    if (!rebuilder.is_tensor(value)) return others_.push_back(name);
    require(tensors_.add(rebuilder.rebuild(value, name)), "{}: tensor {} must stand once", path_, printable(name));
  };
  Walker(pickle, data.bytes.size(), path_, keep).walk(pickle.root(), "", 0);
}

}  // namespace foveate::io
