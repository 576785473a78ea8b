// Writes safetensors files for tests: good ones, and from any header broken ones.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <string>
#include <string_view>
#include <vector>

#include "tests/support/files.h"

namespace foveate::test {

// A file with this header as it is and this data.
inline std::string safetensors_file(std::string_view header, std::string_view data = "") {
  return ByteWriter().put(header).raw(data).data();
}

class SafetensorsWriter {
 public:
  SafetensorsWriter& tensor(std::string_view name, std::string_view dtype, const std::vector<int64_t>& shape,
                            std::string_view bytes) {
    entry(fmt::format(R"("{}":{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", name, dtype,
                      fmt::join(shape, ","), data_.size(), data_.size() + bytes.size()));
    data_ += bytes;
    return *this;
  }
  // Any text in the place of an entry.
  SafetensorsWriter& entry(std::string_view json) {
    header_ += header_.empty() ? "" : ",";
    header_ += json;
    return *this;
  }

  std::string bytes() const { return safetensors_file("{" + header_ + "}", data_); }

 private:
  std::string header_, data_;
};

}  // namespace foveate::test
