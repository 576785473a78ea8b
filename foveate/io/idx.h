// IDX files, arrays of bytes: the form of MNIST and of the data sets made after it.  They are untrusted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace foveate::io {

struct IdxArray {
  std::vector<int64_t> shape;   // 1 .. 4 axes
  std::vector<uint8_t> values;  // row by row
};

// The array of unsigned bytes in a file that may be packed by gzip.  Throws Error, with the path: unreadable, damaged
// gzip, no IDX, numbers of another type, another size than the shape's, over 1 GiB.
IdxArray read_idx(const std::string& path);
// The same of bytes; `path` stands in messages.
IdxArray parse_idx(std::span<const std::byte> bytes, const std::string& path);

}  // namespace foveate::io
