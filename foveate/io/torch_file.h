// Files of torch.save in zip form (torch >= 1.6): the tensors of a state dict or checkpoint, memory-mapped.  Files are
// untrusted: their pickle is read as data, nothing in it is executed, and a file that names anything but tensors and
// plain containers is refused.  Source: torch/serialization.py and torch/_utils.py.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "foveate/io/bytes.h"
#include "foveate/io/stored_tensor.h"
#include "foveate/io/tensor_list.h"

namespace foveate::io {

// A tensor's name is its path through the dicts and lists of the file, joined by dots: {"model": {"fc.weight": w}} has
// "model.fc.weight".  A file that is one bare tensor names it "".  Views keep their strides and may share bytes.
class TorchFile {
 public:
  // Throws Error: the older format and plain pickles, TorchScript, a name that is no tensor's or plain container's,
  // quantized or sparse tensors, whatever is wrong with the file; with its path, the tensor and the byte offset.
  static TorchFile open(const std::string& path);
  // The bytes must outlive the object and its copies; `name` stands for the path in messages.
  static TorchFile parse(std::span<const std::byte> bytes, const std::string& name);

  const std::string& path() const { return path_; }
  const std::vector<StoredTensor>& tensors() const { return tensors_.all(); }            // in the order of the file
  const StoredTensor* find(std::string_view name) const { return tensors_.find(name); }  // null if absent
  const StoredTensor& tensor(std::string_view name) const {
    return tensors_.get(name, path_);
  }  // throws Error if absent
  // The paths of what is neither a tensor nor a container, as "epoch".
  const std::vector<std::string>& others() const { return others_; }

 private:
  void read(std::span<const std::byte> bytes);

  std::string path_;
  std::shared_ptr<const MappedFile> file_;  // none after parse()
  TensorList<StoredTensor> tensors_;
  std::vector<std::string> others_;
};

}  // namespace foveate::io
