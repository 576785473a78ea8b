// The tensors of a file in its order, found by name.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "foveate/base/error.h"
#include "foveate/io/bytes.h"

namespace foveate::io {

template <class Tensor>  // has a name
class TensorList {
 public:
  // Whether its name is new; else it is not kept.
  bool add(Tensor tensor) {
    if (!index_.emplace(tensor.name, tensors_.size()).second) return false;
    tensors_.push_back(std::move(tensor));
    return true;
  }

  const std::vector<Tensor>& all() const { return tensors_; }
  std::vector<Tensor>& all() { return tensors_; }  // names must stay

  const Tensor* find(std::string_view name) const {  // null if absent
    const auto found = index_.find(name);
    return found == index_.end() ? nullptr : &tensors_[found->second];
  }
  const Tensor& get(std::string_view name, const std::string& path) const {  // throws Error, with the path, if absent
    const Tensor* found = find(name);
    require(found != nullptr, "{}: tensor {} is missing", path, printable(name));
    return *found;
  }

 private:
  std::vector<Tensor> tensors_;
  std::map<std::string, size_t, std::less<>> index_;  // name -> place
};

}  // namespace foveate::io
