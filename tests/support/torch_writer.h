// Writes files of torch.save for tests: zip archives, and pickles of any operations.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tests/support/files.h"

namespace foveate::test {

struct ZipItem {
  std::string name, bytes;
  uint16_t method = 0, flags = 0x808;  // torch's: UTF-8 names, sizes in a data descriptor
  // What the directory and the local header say instead of the truth.
  std::optional<uint32_t> size, packed, header;
  std::optional<std::string> local_name;
  std::string extra = {};
};

// An archive with these items; `with_zip64` adds the zip64 end record that torch always writes.
inline std::string zip_file(const std::vector<ZipItem>& items, bool with_zip64 = true) {
  ByteWriter file, directory;
  for (const ZipItem& item : items) {
    const auto start = uint32_t(file.data().size());
    const std::string local = item.local_name.value_or(item.name);
    file.raw("PK\3\4").put(uint16_t(0)).put(item.flags).put(item.method).raw(std::string(16, '\0'));
    file.put(uint16_t(local.size())).put(uint16_t(3)).raw(local).raw("pad").raw(item.bytes);
    const auto size = item.size.value_or(uint32_t(item.bytes.size()));
    directory.raw("PK\1\2").put(uint32_t(0)).put(item.flags).put(item.method).raw(std::string(8, '\0'));
    directory.put(item.packed.value_or(size)).put(size).put(uint16_t(item.name.size()));
    directory.put(uint16_t(item.extra.size())).raw(std::string(10, '\0')).put(item.header.value_or(start));
    directory.raw(item.name).raw(item.extra);
  }
  const uint64_t start = file.data().size(), size = directory.data().size(), count = items.size();
  file.raw(directory.data());
  if (with_zip64) {
    const uint64_t end = file.data().size();
    file.raw("PK\6\6").put(uint64_t(44)).raw(std::string(12, '\0')).put(count).put(count).put(size).put(start);
    file.raw("PK\6\7").put(uint32_t(0)).put(end).put(uint32_t(1));
  }
  file.raw("PK\5\6").put(uint32_t(0)).put(uint16_t(count)).put(uint16_t(count)).put(uint32_t(size));
  return file.put(uint32_t(start)).put(uint16_t(0)).data();
}

// A storage's bytes, entry data/`key`.
struct Storage {
  std::string key, bytes;
};

inline std::vector<ZipItem> torch_items(std::string_view pickle, const std::vector<Storage>& storages = {}) {
  std::vector<ZipItem> items = {{"m/data.pkl", std::string(pickle)}, {"m/byteorder", "little"}, {"m/version", "3\n"}};
  for (const Storage& storage : storages) items.push_back({"m/data/" + storage.key, storage.bytes});
  return items;
}

inline std::string torch_file(std::string_view pickle, const std::vector<Storage>& storages = {}) {
  return zip_file(torch_items(pickle, storages));
}

// Operations of a pickle of protocol 2; each pushes one value, where nothing else is said.
class PickleWriter {
 public:
  explicit PickleWriter(char protocol = 2) { writer_.raw("\x80").put(protocol); }

  PickleWriter& raw(std::string_view operations) {
    writer_.raw(operations);
    return *this;
  }
  PickleWriter& text(std::string_view text) {
    writer_.raw("X").put(uint32_t(text.size())).raw(text);
    return *this;
  }
  PickleWriter& integer(int64_t value) {
    writer_.raw("\x8a\x08").put(value);
    return *this;
  }
  PickleWriter& global(std::string_view module, std::string_view name) {
    return raw("c").raw(module).raw("\n").raw(name).raw("\n");
  }
  PickleWriter& integers(const std::vector<int64_t>& values) {  // a tuple
    raw("(");
    for (const int64_t value : values) integer(value);
    return raw("t");
  }
  PickleWriter& storage(std::string_view type, std::string_view key, int64_t count, std::string_view module = "torch") {
    return raw("(").text("storage").global(module, type).text(key).text("cpu").integer(count).raw("tQ");
  }
  // The rest of a tensor whose function and storage are on the stack above a mark.
  PickleWriter& view(int64_t offset, const std::vector<int64_t>& shape, const std::vector<int64_t>& strides) {
    return integer(offset).integers(shape).integers(strides).raw("\x89").global("collections", "OrderedDict").raw(")R");
  }
  PickleWriter& tensor(std::string_view key, int64_t count, int64_t offset, const std::vector<int64_t>& shape,
                       const std::vector<int64_t>& strides, std::string_view type = "FloatStorage") {
    global("torch._utils", "_rebuild_tensor_v2").raw("(").storage(type, key, count);
    return view(offset, shape, strides).raw("tR");
  }

  std::string end() const { return writer_.data() + "."; }

 private:
  ByteWriter writer_;
};

}  // namespace foveate::test
