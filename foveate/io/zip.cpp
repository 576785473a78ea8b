#include "foveate/io/zip.h"

#include <algorithm>

namespace foveate::io {
namespace {

constexpr uint32_t kLocalHeader = 0x04034b50, kDirectoryEntry = 0x02014b50, kEnd = 0x06054b50;  // "PK" and two more
constexpr uint32_t kZip64End = 0x06064b50, kZip64Locator = 0x07064b50;
constexpr uint64_t kEndBytes = 22, kLocatorBytes = 20, kDirectoryEntryBytes = 46;
constexpr uint32_t kMoved16 = 0xFFFF, kMoved32 = 0xFFFFFFFF;  // "see the zip64 field"
constexpr uint16_t kEncrypted = 1 | 1 << 6 | 1 << 13;

struct Directory {
  uint64_t entries, size, offset;
  uint64_t end;  // where the records of the end start
};

struct DirectoryEntry {
  std::string name;
  uint64_t bytes, header;  // of the data in the file; where the local header stands
  uint16_t compression;
};

// A reader of everything before `end` that stands at `offset`.  Contract: offset <= end <= bytes.size().
ByteReader reader_at(std::span<const std::byte> bytes, const std::string& path, uint64_t offset, uint64_t end) {
  ByteReader reader(bytes.first(end), path);
  reader.take(offset, "the archive");
  return reader;
}

std::string read_name(ByteReader& reader, uint64_t length) {
  return std::string(as_text(reader.take(length, "an entry's name")));
}

void expect(ByteReader& reader, uint32_t signature, std::string_view what) {
  const uint64_t at = reader.offset();
  const auto got = reader.number<uint32_t>(what);
  require(got == signature, "{}: {} must stand at byte {}, got {:#010x}", reader.name(), what, at, got);
}

// The end record is the last one whose comment fills the file.
uint64_t find_end(std::span<const std::byte> bytes, const std::string& path) {
  constexpr uint64_t kMostComment = 0xFFFF;
  for (uint64_t comment = 0; comment <= kMostComment && comment + kEndBytes <= bytes.size(); ++comment) {
    const uint64_t at = bytes.size() - kEndBytes - comment;
    ByteReader reader = reader_at(bytes, path, at, bytes.size());
    if (reader.number<uint32_t>("the end record") != kEnd) continue;
    reader.take(kEndBytes - 6, "the end record");
    if (reader.number<uint16_t>("the end record") == comment) return at;
  }
  fail("{}: must be a zip archive, its end record is missing: is the file cut off?", path);
}

Directory read_zip64_end(std::span<const std::byte> bytes, const std::string& path, uint64_t locator) {
  constexpr std::string_view kWhat = "the zip64 end record";
  ByteReader place = reader_at(bytes, path, locator + 8, locator + kLocatorBytes);
  const auto at = place.number<uint64_t>(kWhat);
  require(at <= locator, "{}: the zip64 end record at byte {} must stand before its locator at byte {}", path, at,
          locator);
  ByteReader reader = reader_at(bytes, path, at, locator);
  expect(reader, kZip64End, kWhat);
  reader.take(8 + 2 + 2, kWhat);  // its size and versions
  const auto disk = reader.number<uint32_t>(kWhat), first_disk = reader.number<uint32_t>(kWhat);
  require(disk == 0 && first_disk == 0, "{}: must be an archive of one disk", path);
  reader.take(8, kWhat);  // entries of this disk
  Directory directory{};
  directory.entries = reader.number<uint64_t>(kWhat);
  directory.size = reader.number<uint64_t>(kWhat);
  directory.offset = reader.number<uint64_t>(kWhat);
  directory.end = at;
  return directory;
}

Directory find_directory(std::span<const std::byte> bytes, const std::string& path) {
  constexpr std::string_view kWhat = "the end record";
  const uint64_t at = find_end(bytes, path);
  ByteReader reader = reader_at(bytes, path, at + 4, bytes.size());
  const auto disk = reader.number<uint16_t>(kWhat), first_disk = reader.number<uint16_t>(kWhat);
  require((disk == 0 || disk == kMoved16) && (first_disk == 0 || first_disk == kMoved16),
          "{}: must be an archive of one disk", path);
  reader.take(2, kWhat);  // entries of this disk
  Directory directory{};
  directory.entries = reader.number<uint16_t>(kWhat);
  directory.size = reader.number<uint32_t>(kWhat);
  directory.offset = reader.number<uint32_t>(kWhat);
  directory.end = at;
  if (at >= kLocatorBytes && reader_at(bytes, path, at - kLocatorBytes, at).number<uint32_t>(kWhat) == kZip64Locator)
    directory = read_zip64_end(bytes, path, at - kLocatorBytes);
  require(directory.offset <= directory.end && directory.size == directory.end - directory.offset,
          "{}: the directory at byte {} must end where its end record starts, at byte {}, got {} bytes", path,
          directory.offset, directory.end, directory.size);
  require(directory.entries <= directory.size / kDirectoryEntryBytes,
          "{}: the directory at byte {}: entries must fit its {} bytes, got {}", path, directory.offset, directory.size,
          directory.entries);
  return directory;
}

// Sizes and offsets that do not fit 32 bits stand in the extra field, in this order and only those.
void read_zip64_sizes(ByteReader extra, uint64_t& size, uint64_t& packed, uint64_t& header) {
  constexpr std::string_view kWhat = "a zip64 field";
  while (extra.left() >= 4) {
    const auto kind = extra.number<uint16_t>(kWhat), length = extra.number<uint16_t>(kWhat);
    if (kind != 1) {
      extra.take(length, "an extra field");
      continue;
    }
    for (uint64_t* number : {&size, &packed, &header})
      if (*number == kMoved32) *number = extra.number<uint64_t>(kWhat);
    return;
  }
}

DirectoryEntry read_directory_entry(ByteReader& reader, std::span<const std::byte> bytes) {
  constexpr std::string_view kWhat = "the directory";
  const uint64_t start = reader.offset();
  expect(reader, kDirectoryEntry, "an entry of the directory");
  reader.take(4, kWhat);  // versions
  const auto flags = reader.number<uint16_t>(kWhat), method = reader.number<uint16_t>(kWhat);
  reader.take(8, kWhat);  // time, date, checksum
  uint64_t packed = reader.number<uint32_t>(kWhat), size = reader.number<uint32_t>(kWhat);
  const auto name_bytes = reader.number<uint16_t>(kWhat), extra_bytes = reader.number<uint16_t>(kWhat);
  const auto comment_bytes = reader.number<uint16_t>(kWhat), disk = reader.number<uint16_t>(kWhat);
  reader.take(6, kWhat);  // attributes
  uint64_t header = reader.number<uint32_t>(kWhat);
  const std::string name = read_name(reader, name_bytes);
  const uint64_t extra_end = reader.offset() + extra_bytes;
  require(reader.left() >= extra_bytes, "{}: file ends inside the extra field of {} at byte {}", reader.name(),
          printable(name), start);
  read_zip64_sizes(reader_at(bytes, reader.name(), reader.offset(), extra_end), size, packed, header);
  reader.take(extra_bytes, kWhat);
  reader.take(comment_bytes, kWhat);
  const std::string what = fmt::format("{}: entry {} at byte {}", reader.name(), printable(name), start);
  require(disk == 0 || disk == kMoved16, "{} must be on the first disk, got {}", what, disk);
  require((flags & kEncrypted) == 0, "{} must not be encrypted", what);
  require(method != 0 || packed == size, "{} must be as long as its data, got {} bytes of {}", what, packed, size);
  return {name, packed, header, method};
}

ZipEntry read_entry(std::span<const std::byte> bytes, const std::string& path, const DirectoryEntry& entry,
                    uint64_t data_end) {
  constexpr std::string_view kWhat = "a local header";
  require(entry.header <= data_end, "{}: the header of entry {} at byte {} must stand before the directory at byte {}",
          path, printable(entry.name), entry.header, data_end);
  ByteReader reader = reader_at(bytes, path, entry.header, data_end);
  expect(reader, kLocalHeader, kWhat);
  reader.take(2, kWhat);  // version
  const auto flags = reader.number<uint16_t>(kWhat), method = reader.number<uint16_t>(kWhat);
  reader.take(16, kWhat);  // time, date, checksum, sizes: with a data descriptor 0
  const auto name_bytes = reader.number<uint16_t>(kWhat), extra_bytes = reader.number<uint16_t>(kWhat);
  const std::string name = read_name(reader, name_bytes);
  require(name == entry.name && method == entry.compression && (flags & kEncrypted) == 0,
          "{}: the header at byte {} must be of entry {}, got {}, compression {}", path, entry.header,
          printable(entry.name), printable(name), method);
  reader.take(extra_bytes, kWhat);
  const uint64_t offset = reader.offset();
  require(entry.bytes <= reader.left(),
          "{}: entry {} at byte {} must end before the directory at byte {}, got {} bytes", path, printable(entry.name),
          offset, data_end, entry.bytes);
  return {entry.name, reader.take(entry.bytes, kWhat), offset, method};
}

struct Place {
  uint64_t start, end;  // from the local header to the data's end
  std::string_view name;
};

void check_overlaps(std::vector<Place>& places, const std::string& path) {
  std::ranges::sort(places, {}, &Place::start);
  for (size_t i = 1; i < places.size(); ++i)
    require(places[i - 1].end <= places[i].start,
            "{}: entries {} and {} must not overlap, got an end at byte {} and "
            "a start at byte {}",
            path, printable(places[i - 1].name), printable(places[i].name), places[i - 1].end, places[i].start);
}

}  // namespace

Zip::Zip(std::span<const std::byte> bytes, const std::string& path) {
  const Directory directory = find_directory(bytes, path);
  ByteReader reader = reader_at(bytes, path, directory.offset, directory.end);
  std::vector<Place> places;
  entries_.reserve(directory.entries);  // names in `places` lie in entries
  for (uint64_t i = 0; i < directory.entries; ++i) {
    const DirectoryEntry entry = read_directory_entry(reader, bytes);
    require(index_.emplace(entry.name, entries_.size()).second, "{}: entry {} must stand once", path,
            printable(entry.name));
    entries_.push_back(read_entry(bytes, path, entry, directory.offset));
    const ZipEntry& last = entries_.back();
    places.push_back({entry.header, last.offset + last.bytes.size(), last.name});
  }
  require(reader.left() == 0, "{}: the directory at byte {} must end with its last entry, got {} bytes more", path,
          directory.offset, reader.left());
  check_overlaps(places, path);
}

const ZipEntry* Zip::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &entries_[found->second];
}

}  // namespace foveate::io
