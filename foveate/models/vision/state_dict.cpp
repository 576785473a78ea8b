#include "foveate/models/vision/state_dict.h"

#include <ATen/core/grad_mode.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <string_view>
#include <vector>

#include "foveate/base/error.h"
#include "foveate/io/bytes.h"
#include "foveate/io/safetensors.h"
#include "foveate/io/torch_file.h"
#include "foveate/models/stored.h"

namespace foveate::models {
namespace {

using at::Tensor;

std::vector<std::pair<std::string, Tensor>> tensors_of(const torch::nn::Module& module) {
  std::vector<std::pair<std::string, Tensor>> all;
  for (const auto& item : module.named_parameters()) all.emplace_back(item.key(), item.value());
  for (const auto& item : module.named_buffers()) all.emplace_back(item.key(), item.value());
  return all;
}

// What does not fit, of one kind.
struct Faults {
  std::string_view kind;
  std::vector<std::string> names = {};

  std::string text() const {
    constexpr size_t kMost = 10;
    const size_t shown = std::min(names.size(), kMost);
    const std::string more = names.size() > shown ? fmt::format(" and {} more", names.size() - shown) : "";
    return fmt::format("{} {}{}", kind, fmt::join(names.begin(), names.begin() + std::ptrdiff_t(shown), ", "), more);
  }
};

}  // namespace

void load_state_dict(torch::nn::Module& module, std::span<const io::StoredTensor> tensors, const std::string& file,
                     const Rename& rename) {
  std::map<std::string, const io::StoredTensor*> given;
  Faults missing{"missing"}, unexpected{"unexpected"}, shapes{"of another shape"}, twice{"given twice"};
  for (const io::StoredTensor& tensor : tensors) {
    const std::string name = rename ? rename(tensor.name) : tensor.name;
    if (!name.empty() && !given.emplace(name, &tensor).second) twice.names.push_back(io::printable(name));
  }
  const auto wanted = tensors_of(module);
  for (const auto& [name, tensor] : wanted) {
    const auto found = given.find(name);
    if (found == given.end()) {
      missing.names.push_back(name);
    } else if (const auto& shape = found->second->shape; !std::ranges::equal(shape, tensor.sizes())) {
      shapes.names.push_back(
          fmt::format("{} [{}] for [{}]", name, fmt::join(shape, ", "), fmt::join(tensor.sizes(), ", ")));
    }
  }
  for (const auto& [name, tensor] : given)
    if (std::ranges::find(wanted, name, &std::pair<std::string, Tensor>::first) == wanted.end())
      unexpected.names.push_back(io::printable(name));
  std::vector<std::string> faults;
  for (const Faults* f : {&missing, &unexpected, &shapes, &twice})
    if (!f->names.empty()) faults.push_back(f->text());
  require(faults.empty(), "{}: the tensors must be those of the model, got {}", file, fmt::join(faults, "; "));

  std::vector<std::pair<Tensor, Tensor>> read;  // all of them before the first is set: a file may hold wrong types
  for (const auto& [name, tensor] : wanted) read.emplace_back(tensor, restore(*given.at(name)));
  const at::NoGradGuard no_gradients;
  for (auto& [to, from] : read) to.copy_(from);
}

void with_tensors(const std::string& path,
                  const std::function<void(std::span<const io::StoredTensor>, const Metadata&)>& use) {
  const auto ends_with = [&](std::string_view end) { return path.ends_with(end); };
  if (ends_with(".pt") || ends_with(".pth") || ends_with(".bin") || ends_with(".ckpt"))
    return use(io::TorchFile::open(path).tensors(), {});
  const io::Safetensors file = io::Safetensors::open(path);
  use(file.tensors(), file.metadata());
}

void load_state_dict(torch::nn::Module& module, const std::string& path, const Rename& rename) {
  with_tensors(path, [&](std::span<const io::StoredTensor> tensors, const Metadata&) {
    load_state_dict(module, tensors, path, rename);
  });
}

std::vector<std::pair<std::string, Tensor>> read_tensors(const std::string& path) {
  std::vector<std::pair<std::string, Tensor>> all;
  with_tensors(path, [&](std::span<const io::StoredTensor> tensors, const Metadata&) {
    for (const io::StoredTensor& tensor : tensors) all.emplace_back(tensor.name, restore(tensor));
  });
  return all;
}

void save_state_dict(const torch::nn::Module& module, const std::string& path, const Metadata& metadata) {
  std::vector<Tensor> held;
  std::vector<io::StoredTensor> stored;
  for (const auto& [name, tensor] : tensors_of(module)) {
    held.push_back(tensor.detach().contiguous());
    stored.push_back(store(name, held.back()));
  }
  io::write_safetensors(path, stored, metadata);
}

int64_t count_parameters(const torch::nn::Module& module) {
  int64_t count = 0;
  for (const Tensor& parameter : module.parameters()) count += parameter.numel();
  return count;
}

}  // namespace foveate::models
