#include "foveate/models/language/adapter.h"

#include <charconv>
#include <string_view>

#include "foveate/base/error.h"
#include "foveate/base/hash.h"
#include "foveate/io/safetensors.h"
#include "foveate/models/stored.h"

namespace foveate::models {
namespace {

constexpr std::string_view kFormat = "adapter 1", kPrefix = "layers.";

struct PartName {
  int64_t layer;
  std::string mechanism, part;
};

PartName parse_name(const io::StoredTensor& t) {
  const std::string_view name = t.name;
  PartName parsed{-1, {}, {}};
  if (name.starts_with(kPrefix)) {
    const char* first = name.data() + kPrefix.size();
    const auto [end, status] = std::from_chars(first, name.data() + name.size(), parsed.layer);
    const std::string_view rest = name.substr(size_t(end - name.data()));
    const size_t dot = rest.find('.', 1);
    if (status == std::errc() && rest.starts_with('.') && dot != std::string_view::npos) {
      parsed.mechanism = rest.substr(1, dot - 1);
      parsed.part = rest.substr(dot + 1);
    }
  }
  require(!parsed.mechanism.empty() && !parsed.part.empty(),
          "{}: tensors of an adapter must be named layers.LAYER.MECHANISM.PART, got {}", t.file, io::printable(t.name));
  return parsed;
}

}  // namespace

attention::LayerShape layer_shape(const DecoderConfig& config) {
  return {config.width, config.heads, config.kv_heads, config.head_dim, config.value_dim};
}

Adapter Adapter::load(std::span<const std::string> paths, const Decoder& decoder) {
  Adapter adapter;
  for (const std::string& path : paths) {
    const io::Safetensors file = io::Safetensors::open(path);
    const auto expect = [&](const std::string& key, std::string_view wanted, std::string_view hint) {
      const auto found = file.metadata().find(key);
      require(found != file.metadata().end() && found->second == wanted, "{}: {} must be '{}', got {}: {}", path, key,
              wanted, found == file.metadata().end() ? "none" : io::printable(found->second), hint);
    };
    expect("foveate", kFormat, "this is no adapter");
    expect("model", decoder.fingerprint(), "the adapter is of another model");
    for (const io::StoredTensor& t : file.tensors()) {
      const PartName name = parse_name(t);
      require(0 <= name.layer && name.layer < decoder.layers(), "{}: layers must be 0 .. {}, got {}", path,
              decoder.layers() - 1, name.layer);
      const bool is_new = adapter.parts_[{name.layer, name.mechanism}].emplace(name.part, restore(t)).second;
      require(is_new, "{}: {} is in an earlier adapter too; give one of them", path, io::printable(t.name));
    }
  }
  return adapter;
}

void Adapter::save(const std::string& path, const Decoder& decoder,
                   const std::vector<attention::Mechanism>& mechanisms) {
  std::vector<at::Tensor> kept;
  std::vector<io::StoredTensor> stored;
  for (size_t layer = 0; layer < mechanisms.size(); ++layer) {
    if (!mechanisms[layer].learned()) continue;
    for (const auto& [name, tensor] : *mechanisms[layer].learned())
      stored.push_back(store(fmt::format("{}{}.{}.{}", kPrefix, layer, mechanisms[layer].spec().name, name),
                             kept.emplace_back(tensor.detach().contiguous())));
  }
  io::write_safetensors(path, stored, {{"foveate", std::string(kFormat)}, {"model", decoder.fingerprint()}});
}

std::vector<attention::Mechanism> Adapter::equip(std::vector<attention::Mechanism> mechanisms,
                                                 const Decoder& decoder) const {
  const attention::LayerShape shape = layer_shape(decoder.config());
  for (size_t layer = 0; layer < mechanisms.size(); ++layer) {
    attention::Mechanism& m = mechanisms[layer];
    if (m.learned_parts(shape).empty()) continue;
    const auto found = parts_.find({int64_t(layer), m.spec().name});
    require(found != parts_.end(), "{}: has learned parts, got no adapter with them for layer {}; give --adapter FILE",
            m.spec().name, layer);
    m = m.with(found->second, shape);
  }
  return mechanisms;
}

std::string adapter_fingerprint(const std::vector<attention::Mechanism>& mechanisms) {
  Hash hash;
  bool has_any = false;
  for (const attention::Mechanism& m : mechanisms) {
    if (!m.learned()) continue;
    has_any = true;
    for (const auto& [name, part] : *m.learned()) {
      const at::Tensor values = part.detach().to(at::kFloat).contiguous();
      hash.add(values.const_data_ptr(), values.nbytes());
    }
  }
  return has_any ? fmt::format("{:016x}", hash.value()) : "none";
}

std::vector<attention::Mechanism> equip_anew(std::vector<attention::Mechanism> mechanisms, const Decoder& decoder,
                                             uint64_t seed) {
  const attention::LayerShape shape = layer_shape(decoder.config());
  for (attention::Mechanism& m : mechanisms)
    if (const auto parts = m.learned_parts(shape); !parts.empty())
      m = m.with(attention::make_learned(parts, seed++), shape);
  return mechanisms;
}

}  // namespace foveate::models
