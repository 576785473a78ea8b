#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/upsample_bicubic2d.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <map>

#include "foveate/base/error.h"
#include "foveate/models/stored.h"
#include "foveate/models/vision/nat.h"
#include "foveate/models/vision/state_dict.h"

namespace foveate::models {
namespace {

using at::Tensor;
using Tensors = std::map<std::string, Tensor>;

bool replace(std::string& text, std::string_view from, std::string_view to) {
  const size_t at = text.find(from);
  if (at == text.npos) return false;
  text.replace(at, from.size(), to);
  return true;
}

// Hugging Face's name of a tensor as the published checkpoints have it.
std::string published_name(std::string name) {
  for (const std::string_view model : {"dinat.", "nat."})
    if (name.starts_with(model)) name.erase(0, model.size());
  static constexpr std::pair<std::string_view, std::string_view> kNames[] = {
      {"embeddings.patch_embeddings.projection", "patch_embed.proj"},
      {"embeddings.norm", "patch_embed.norm"},
      {"encoder.levels", "levels"},
      {".layers.", ".blocks."},
      {"layernorm_before", "norm1"},
      {"layernorm_after", "norm2"},
      {"attention.self.", "attn."},
      {"attention.output.dense", "attn.proj"},
      {"intermediate.dense", "mlp.fc1"},
      {"output.dense", "mlp.fc2"},
      {"layernorm", "norm"},
      {"classifier", "head"},
      {"hidden_states_norms.stage", "norm"}};
  bool is_output = false;
  for (const auto& [from, to] : kNames) is_output = replace(name, from, to) && from.starts_with("hidden");
  if (is_output) name[4] = char(name[4] - 1);  // stages count from 1
  return name;
}

// Queries, keys and values stand apart there, and both factors of the branches together.
Tensors from_hugging_face(const Tensors& given) {
  Tensors all;
  for (const auto& [theirs, tensor] : given) {
    std::string name = published_name(theirs);
    if (name.ends_with("layer_scale_parameters")) {
      const std::string layer = name.substr(0, name.rfind('.'));
      all[layer + ".gamma1"] = tensor[0], all[layer + ".gamma2"] = tensor[1];
    } else if (replace(name, "attn.query.", "attn.qkv.")) {
      const auto part = [&](std::string_view which) {
        std::string other = theirs;
        replace(other, ".query.", which);
        const auto found = given.find(other);
        require(found != given.end(), "nat: a checkpoint with {} must have {} too", theirs, other);
        return found->second;
      };
      all[name] = at::cat({tensor, part(".key."), part(".value.")});
    } else if (name.find("attn.key.") == name.npos && name.find("attn.value.") == name.npos) {
      all[name] = tensor;
    }
  }
  return all;
}

// What a classifier's checkpoint has more and less than a backbone.
void fit_backbone(const NatConfig& config, Tensors& tensors) {
  if (config.classes == 0)
    for (const char* name : {"norm.weight", "norm.bias", "head.weight", "head.bias"}) tensors.erase(name);
  const auto is_there = [&](int64_t level) { return tensors.contains(fmt::format("norm{}.weight", level)); };
  if (std::ranges::any_of(config.outputs, is_there)) return;  // a backbone's own
  for (const int64_t level : config.outputs) {
    tensors[fmt::format("norm{}.weight", level)] = at::ones({config.channels(size_t(level))});
    tensors[fmt::format("norm{}.bias", level)] = at::zeros({config.channels(size_t(level))});
  }
}

}  // namespace

void load_nat(NatImpl& nat, const std::string& path) {
  Tensors tensors;
  bool is_hugging_face = false;
  for (auto& [name, tensor] : read_tensors(path)) {
    is_hugging_face = is_hugging_face || name.find("embeddings.patch_embeddings") != name.npos;
    if (!name.ends_with("relative_position_index")) tensors[name] = tensor;  // of dense attention: computed
  }
  if (is_hugging_face) tensors = from_hugging_face(tensors);
  fit_backbone(nat.config(), tensors);
  const int64_t size = 2 * nat.config().window() - 1;
  for (auto& [name, tensor] : tensors)
    if (name.ends_with(".rpb") && tensor.dim() == 3 && tensor.size(1) == tensor.size(2) && tensor.size(1) != size)
      tensor = at::upsample_bicubic2d(tensor.to(at::kFloat).unsqueeze(0), {size, size}, false).squeeze(0);
  std::vector<io::StoredTensor> stored;
  for (auto& [name, tensor] : tensors) {
    tensor = tensor.contiguous();
    stored.push_back(store(name, tensor));
  }
  load_state_dict(nat, stored, path);
}

}  // namespace foveate::models
