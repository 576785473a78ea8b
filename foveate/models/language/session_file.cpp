// A session as a safetensors file: tokens, and the state of every layer under layer.N.
#include <algorithm>

#include "foveate/base/error.h"
#include "foveate/io/safetensors.h"
#include "foveate/models/language/adapter.h"
#include "foveate/models/language/session.h"
#include "foveate/models/stored.h"
#include "foveate/ops/quantise/quantise.h"

namespace foveate::models {
namespace {

// Throws Error unless the keys and values of a layer are such as the model makes: k and v, or where there are none
// those of groups of heads, GROUP.k and GROUP.v, which together are the model's.
void check_layer(const attention::State::Snapshot& snapshot, const DecoderConfig& config, at::ScalarType dtype,
                 const std::string& what) {
  for (const auto& [name, dim] : {std::pair("k", config.head_dim), {"v", config.value_dim}}) {
    int64_t heads = 0;
    const auto add = [&](const std::string& part) {
      const auto found = snapshot.find(part);
      if (found == snapshot.end()) return false;
      const at::Tensor& t = found->second;
      const bool fits = t.dim() == 4 && t.size(0) == 1 && (ops::is_quantised(t) || t.scalar_type() == dtype) &&
                        ops::row_dim(t) == dim;
      require(fits, "{}: {} must be {} or 8 bits [1, heads, tokens, {}], got {} [{}]", what, part, c10::toString(dtype),
              dim, c10::toString(t.scalar_type()), fmt::join(t.sizes().begin(), t.sizes().end(), ", "));
      heads += t.size(1);
      return true;
    };
    if (!add(name))
      for (const char* group : {"full.", "streaming."}) add(std::string(group) + name);
    require(heads == config.kv_heads || snapshot.empty(), "{}: {} must have {} heads, got {}", what, name,
            config.kv_heads, heads);
  }
}

}  // namespace

void Session::save(const std::string& path) const {
  std::vector<at::Tensor> kept;
  std::vector<io::StoredTensor> stored;
  for (size_t layer = 0; layer < states_.size(); ++layer)
    for (const auto& [name, tensor] : states_[layer]->save())
      stored.push_back(store(fmt::format("layer.{}.{}", layer, name), kept.emplace_back(tensor.contiguous())));
  const std::byte* ids = reinterpret_cast<const std::byte*>(tokens_.data());
  stored.push_back(
      {"tokens", {std::ssize(tokens_)}, {1}, io::DType::i32, {ids, tokens_.size() * sizeof(int32_t)}, {}, 0});
  io::write_safetensors(path, stored,
                        {{"foveate", "session 1"},
                         {"model", decoder_.fingerprint()},
                         {"dtype", c10::toString(decoder_.weights().dtype)},
                         {"attention", attention_},
                         {"adapter", adapter_fingerprint(mechanisms_)},
                         {"cache", std::string(enum_names(options_.cache)[size_t(options_.cache)])}});
}

void Session::load(const std::string& path) {
  require(length() == 0, "session: only an empty session can load one, got {} tokens", length());
  const io::Safetensors file = io::Safetensors::open(path);
  const auto expect = [&](const std::string& key, std::string_view wanted, std::string_view hint) {
    const auto found = file.metadata().find(key);
    const std::string got = found == file.metadata().end() ? "none" : io::printable(found->second);
    require(found != file.metadata().end() && found->second == wanted, "{}: {} must be '{}', got {}{}", path, key,
            wanted, got, hint);
  };
  expect("foveate", "session 1", ": this is no saved session");
  expect("model", decoder_.fingerprint(), ": the session is of another model");
  expect("dtype", c10::toString(decoder_.weights().dtype), ": choose the same --dtype");
  expect("attention", attention_, ": choose the same --attention");
  if (file.metadata().contains("adapter") || adapter_fingerprint(mechanisms_) != "none")  // older files had none
    expect("adapter", adapter_fingerprint(mechanisms_), ": choose the same --adapter");
  expect("cache", enum_names(options_.cache)[size_t(options_.cache)], ": choose the same --cache");
  std::vector<attention::State::Snapshot> snapshots(states_.size());
  for (size_t layer = 0; layer < states_.size(); ++layer) {
    const std::string prefix = fmt::format("layer.{}.", layer);
    for (const io::StoredTensor& t : file.tensors())
      if (t.name.starts_with(prefix)) snapshots[layer][t.name.substr(prefix.size())] = restore(t);
    check_layer(snapshots[layer], decoder_.config(), decoder_.weights().dtype, path + ": " + prefix);
  }
  const at::Tensor tokens = restore(file.tensor("tokens"));
  require(tokens.scalar_type() == at::kInt && tokens.dim() == 1, "{}: tokens must be int32 [n], got {} of {} axes",
          path, c10::toString(tokens.scalar_type()), tokens.dim());
  const int32_t* ids = tokens.const_data_ptr<int32_t>();
  try {
    for (size_t layer = 0; layer < states_.size(); ++layer) {
      states_[layer]->load(snapshots[layer]);
      require(states_[layer]->length() == tokens.numel(), "{}: layer {} must hold {} tokens, got {}", path, layer,
              tokens.numel(), states_[layer]->length());
    }
  } catch (const Error&) {
    for (const auto& state : states_) state->load({});
    throw;
  }
  tokens_.assign(ids, ids + tokens.numel());
}

}  // namespace foveate::models
