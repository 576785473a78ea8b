// safetensors files and folders of them: tensors, memory-mapped.  Files are untrusted: every length is checked before
// use.  Source: the format's README (github.com/huggingface/safetensors).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "foveate/io/bytes.h"
#include "foveate/io/stored_tensor.h"
#include "foveate/io/tensor_list.h"

namespace foveate::io {

// Tensors are contiguous and at any alignment.  As the format demands, they cover the data without gaps or overlaps.
class Safetensors {
 public:
  // A folder with model.safetensors, or model.safetensors.index.json and the files it names, which may hold tensors
  // that it does not name.  Throws Error: neither (names pickles that are there instead, which are never executed), a
  // tensor that is not where the index says or stands in two files, whatever is wrong with a file.
  static Safetensors open_folder(const std::string& folder);
  // Throws Error: whatever is wrong with the file, with its path, the tensor and the byte offset.
  static Safetensors open(const std::string& path);
  // The bytes must outlive the object and its copies; `name` stands for the path in messages.
  static Safetensors parse(std::span<const std::byte> bytes, const std::string& name);

  const std::string& path() const { return path_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }  // of a single file
  const std::vector<StoredTensor>& tensors() const { return tensors_.all(); }       // file by file, in each by name
  const StoredTensor* find(std::string_view name) const { return tensors_.find(name); }  // null if absent
  const StoredTensor& tensor(std::string_view name) const {
    return tensors_.get(name, path_);
  }  // throws Error if absent

 private:
  void read(std::span<const std::byte> bytes, const std::string& path);
  void map_file(const std::string& path);

  std::string path_;
  std::vector<std::shared_ptr<const MappedFile>> files_;  // none after parse()
  std::map<std::string, std::string> metadata_;
  TensorList<StoredTensor> tensors_;
};

// Writes tensors (contiguous; `file` and `offset` do not matter) and metadata to a file, whole or not at all.
// Throws Error: two tensors of one name, a path that is not writable.
void write_safetensors(const std::string& path, std::span<const StoredTensor> tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace foveate::io
