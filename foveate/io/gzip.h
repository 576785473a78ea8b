// Files that gzip has packed.  They are untrusted.  Source: RFC 1952.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace foveate::io {

bool is_gzip(std::span<const std::byte> bytes);

// What the one member of the file holds, its checksum compared.  Throws Error, with the path: cut short, damaged, more
// than `most` bytes, something behind the member.
std::vector<std::byte> inflate_gzip(std::span<const std::byte> bytes, const std::string& path, uint64_t most);

}  // namespace foveate::io
