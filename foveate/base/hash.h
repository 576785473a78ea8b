// A number that tells contents apart: FNV-1a, 64 bits.  Not against malice.
#pragma once

#include <cstddef>
#include <cstdint>

namespace foveate {

class Hash {
 public:
  void add(const void* data, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) value_ = (value_ ^ static_cast<const uint8_t*>(data)[i]) * 0x100000001b3;
  }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0xcbf29ce484222325;
};

}  // namespace foveate
