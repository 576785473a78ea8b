// The entries of a zip archive.  Nothing is decompressed: torch.save stores its entries.  Files are untrusted: every
// length is checked before use.  Source: PKWARE's APPNOTE.TXT 6.3.
#pragma once

#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "foveate/io/bytes.h"

namespace foveate::io {

struct ZipEntry {
  std::string name;
  std::span<const std::byte> bytes;  // as they lie in the file
  uint64_t offset;                   // of the bytes in the file
  uint16_t compression;              // 0: none
};

// With zip64 and data descriptors.  Checksums are not compared: torch does not either, can leave them out, and a
// mapped file would have to be read whole.
class Zip {
 public:
  // The bytes must outlive the object; `path` stands in messages.  Throws Error, with the entry and the byte offset:
  // not a zip archive, an entry that is encrypted, lies outside of the file or in another's place, or whose name stands
  // twice, several disks.
  Zip(std::span<const std::byte> bytes, const std::string& path);

  const std::vector<ZipEntry>& entries() const { return entries_; }  // in the order of the directory
  const ZipEntry* find(std::string_view name) const;                 // null if absent

 private:
  std::vector<ZipEntry> entries_;
  std::map<std::string, size_t, std::less<>> index_;  // name -> place in entries_
};

}  // namespace foveate::io
