// Reads every tensor of an accepted file in every way; what a reader accepts must be readable.
#pragma once

#include "foveate/io/stored_tensor.h"
#include "tests/fuzz/file_fuzz.h"

namespace foveate::test {

template <class File>
void read_stored(const File& file) {
  constexpr int64_t kMostBytes = int64_t(1) << 20;
  for (const io::StoredTensor& tensor : file.tensors()) {
    if (file.find(tensor.name) != &tensor) std::abort();
    const int64_t elements = tensor.elements(), bytes = elements * io::type_bytes(tensor.type);
    if (elements < 0 || bytes > kMostBytes) std::abort();  // no file here is as large
    std::vector<std::byte> raw(static_cast<size_t>(bytes));
    if (!succeeds([&] { copy_elements(tensor, raw); })) std::abort();
    std::vector<float> values(static_cast<size_t>(elements));
    const bool has_floats = tensor.type == io::DType::f64 || tensor.type == io::DType::f32 ||
                            tensor.type == io::DType::f16 || tensor.type == io::DType::bf16;
    if (succeeds([&] { to_floats(tensor, values); }) != has_floats) std::abort();
  }
}

}  // namespace foveate::test
