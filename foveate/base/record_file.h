// A file of records of one size for what need not be in memory: written once each, read in any order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

namespace foveate {

class RecordFile {
 public:
  // Makes a file in `directory` that has no name and is gone with this object.  Throws Error: not a folder that can be
  // written to, with the system's reason.
  RecordFile(const std::filesystem::path& directory, size_t record_bytes);
  ~RecordFile();
  RecordFile(RecordFile&& other) noexcept;
  RecordFile& operator=(RecordFile&& other) noexcept;

  // Writes a record anywhere.  Throws Error where the disk takes no more; all records but this one stay as they are.
  void write(int64_t record, std::span<const std::byte> data);
  // Throws Error where a record is not what was written: cut off, changed, or unreadable.
  void read(int64_t record, std::span<std::byte> to) const;

  size_t record_bytes() const { return record_bytes_; }
  int descriptor() const { return descriptor_; }  // for tests that damage the file

 private:
  std::filesystem::path directory_;
  size_t record_bytes_;
  int descriptor_ = -1;
  std::vector<uint64_t> sums_;  // of each record; 0: never written
};

}  // namespace foveate
