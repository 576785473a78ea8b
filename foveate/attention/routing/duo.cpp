#include "foveate/attention/routing/duo.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "foveate/attention/dense.h"
#include "foveate/attention/routing/grouping.h"
#include "foveate/attention/routing/objectives.h"
#include "foveate/attention/window.h"
#include "foveate/base/spec.h"
#include "foveate/io/bytes.h"
#include "foveate/io/json.h"
#include "foveate/ops/quantise/quantise.h"

namespace foveate::attention {
namespace {

constexpr std::string_view kFullHeads = "duo: full_heads other than all or none";
constexpr std::string_view kFull = "full.", kStreaming = "streaming.";  // of saved parts

// Lines of numbers.
std::vector<std::vector<double>> parse_lines(const std::string& text, const std::string& source) {
  std::vector<std::vector<double>> layers;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    layers.emplace_back();
    std::istringstream numbers(line);
    for (std::string word; numbers >> word;) {
      double number = 0;
      const auto [end, status] = std::from_chars(word.data(), word.data() + word.size(), number);
      require(status == std::errc() && end == word.data() + word.size() && std::isfinite(number),
              "{} must have numbers, got {} in line {}", source, io::printable(word), layers.size());
      layers.back().push_back(number);
    }
  }
  return layers;
}

// Lines of numbers, or a JSON list of lists of numbers.
std::vector<std::vector<double>> read_pattern(const std::string& path) {
  const std::string source = "duo: pattern " + path;
  const io::MappedFile file(path);
  const std::string text(io::as_text(file.bytes()));
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first == std::string::npos || text[first] != '[') return parse_lines(text, source);
  std::vector<std::vector<double>> layers;
  for (const nlohmann::json& row : io::parse_json(text, source)) {
    layers.emplace_back();
    require(row.is_array(), "{} must be a JSON list of lists of numbers", source);
    for (const nlohmann::json& number : row) {
      require(number.is_number(), "{} must be a JSON list of lists of numbers", source);
      layers.back().push_back(number.get<double>());
    }
  }
  return layers;
}

std::vector<bool> at_or_above(const std::vector<double>& gates, double threshold) {
  std::vector<bool> full;
  for (const double gate : gates) full.push_back(gate >= threshold);
  return full;
}

std::vector<double> numbers_of(const at::Tensor& gates) {
  const at::Tensor flat = gates.detach().to(at::kDouble).contiguous();
  return {flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()};
}

std::string_view gate_name(Duo::Gate gate) { return gate == Duo::Gate::alpha ? "alpha" : "log_alpha"; }

Window window_of(const Duo& duo) { return {.size = duo.size, .sinks = duo.sinks}; }

// Which query heads stream, from the key heads that do not.
std::vector<bool> streaming_heads(const std::vector<bool>& full, int64_t heads) {
  std::vector<bool> streams;
  for (int64_t head = 0; head < heads; ++head) streams.push_back(!full[size_t(head / (heads / std::ssize(full)))]);
  return streams;
}

}  // namespace

double duo_threshold(std::vector<double> gates, double sparsity) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  require(!gates.empty() && std::ranges::all_of(gates, [](double g) { return std::isfinite(g); }),
          "duo: gates must be finite numbers, at least one, got {}", gates.size());
  if (sparsity <= 0) return -kInfinity;
  if (sparsity >= 1) return kInfinity;
  std::ranges::sort(gates);
  const double place = sparsity * double(gates.size() - 1);
  const size_t below = size_t(place), above = std::min(below + 1, gates.size() - 1);
  return gates[below] + (gates[above] - gates[below]) * (place - double(below));
}

at::Tensor duo_mix(const at::Tensor& full, const at::Tensor& streaming, const at::Tensor& z) {
  require(z.dim() == 1 && full.sizes() == streaming.sizes() && z.size(0) > 0 && full.size(1) % z.size(0) == 0,
          "duo: gates must be one for each key head of [{}], got {}",
          fmt::join(full.sizes().begin(), full.sizes().end(), ", "), z.numel());
  const at::Tensor by_head = z.repeat_interleave(full.size(1) / z.size(0)).view({1, -1, 1, 1});
  return (by_head * full + (1 - by_head) * streaming).to(full.scalar_type());
}

void Duo::validate() const {
  check_options(*this);
  require(full_heads.empty() || pattern.empty(), "duo: full_heads or pattern, got both");
  require(phase == Phase::deploy || (full_heads.empty() && pattern.empty()),
          "duo: phase=train learns the gates, so full_heads and pattern must be empty");
  if (!full_heads.empty() && full_heads != "all" && full_heads != "none") parse_ranges(full_heads, kFullHeads);
}

std::vector<bool> Duo::is_full(const Inputs& in) const {
  const int64_t kv_heads = in.k.size(1), layer = in.layer;
  if (full_heads == "all" || full_heads == "none") return std::vector<bool>(size_t(kv_heads), full_heads == "all");
  if (!full_heads.empty()) {
    std::vector<bool> full(size_t(kv_heads), false);
    for (const auto [first, last] : parse_ranges(full_heads, kFullHeads)) {
      require(last < kv_heads, "duo: full_heads must be key heads 0 .. {}, got {}", kv_heads - 1, last);
      std::fill(full.begin() + first, full.begin() + last + 1, true);
    }
    return full;
  }
  if (!pattern.empty()) {
    const auto layers = read_pattern(pattern);
    require(layer >= 0 && layer < std::ssize(layers) && std::ssize(layers[size_t(layer)]) == kv_heads,
            "duo: pattern must have {} numbers for layer {}, got {} layers and {} numbers", kv_heads, layer,
            layers.size(), layer >= 0 && layer < std::ssize(layers) ? layers[size_t(layer)].size() : 0);
    std::vector<double> all;
    for (const auto& row : layers) all.insert(all.end(), row.begin(), row.end());
    return at_or_above(layers[size_t(layer)], duo_threshold(all, sparsity));
  }
  const std::vector<double> gates = numbers_of(learned(in, name, gate_name(gate)));
  require(std::ssize(gates) == kv_heads, "duo: {} must have {} numbers, got {}", gate_name(gate), kv_heads,
          gates.size());
  return at_or_above(gates, duo_threshold(gates, sparsity));
}

std::vector<LearnedPart> Duo::learned_parts(const LayerShape& shape) const {
  if (!full_heads.empty() || !pattern.empty()) return {};
  if (gate == Gate::alpha) return {{"alpha", {shape.kv_heads}, {.kind = Init::Kind::ones}}};
  return {{"log_alpha", {shape.kv_heads}, {.kind = Init::Kind::normal, .scale = 0.01, .mean = 4.5}}};
}

Attended Duo::attend(const Inputs& in) const {
  validate();
  require(!in.rule.head_window && in.rule.sinks == 0,
          "duo: the model's rule must have no sinks or head_window of its own");
  if (phase == Phase::deploy) return attend_window(window_of(*this), in, streaming_heads(is_full(in), in.q.size(1)));
  at::Tensor z = learned(in, name, gate_name(gate));
  if (gate == Gate::hard_concrete) z = hard_concrete(z, uniform(z.sizes(), uint64_t(seed), uint64_t(in.layer)));
  const at::Tensor full = ops::attend(in.q, in.k, in.v, in.rule, in.score).out;
  const at::Tensor streaming = attend_window(window_of(*this), in).out;
  return {duo_mix(full, streaming, z), std::nullopt, {{0, in.q.size(2), in.rule}}};
}

namespace {

// Two memories: of full heads, which grow, and of streaming heads, which do not.
class DuoState final : public State {
 public:
  DuoState(const Duo& duo, const StateOptions& options)
      : duo_(duo), full_(Dense{}.make_state(options)), streaming_(window_of(duo).make_state(options)) {}

  Attended prefill(const Inputs& in) override {
    return run(in, [](State& state, const Inputs& part) { return state.prefill(part); });
  }
  Attended decode(const Inputs& in) override {
    return run(in, [](State& state, const Inputs& part) { return state.decode(part); });
  }

  void truncate(int64_t length) override {
    require(length >= 0 && length <= this->length(), "truncate: length must be 0 .. {}, got {}", this->length(),
            length);
    if (streams()) streaming_->truncate(length);  // may refuse
    if (!streams() || fills()) full_->truncate(length);
  }

  // The tensors of each group that there is behind "full." and "streaming.", and which heads are full.
  Snapshot save() const override {
    if (is_full_.empty()) return {};
    Snapshot all;
    for (auto& [part, tensor] : full_->save()) all[std::string(kFull) + part] = tensor;
    for (auto& [part, tensor] : streaming_->save()) all[std::string(kStreaming) + part] = tensor;
    all["full_heads"] = at::tensor(std::vector<int64_t>(is_full_.begin(), is_full_.end()), at::kLong);
    return all;
  }

  void load(const Snapshot& snapshot) override {
    use({});
    full_->load({});
    streaming_->load({});
    if (snapshot.empty()) return;
    const auto heads = snapshot.find("full_heads");
    require(heads != snapshot.end() && heads->second.scalar_type() == at::kLong && heads->second.dim() == 1,
            "duo: a saved state must have full_heads, int64, got none");
    std::vector<bool> is_full;
    for (const double full : numbers_of(heads->second)) is_full.push_back(full != 0);
    try {
      use(is_full);
      load_group(*full_, snapshot, kFull, full_heads_.numel());
      load_group(*streaming_, snapshot, kStreaming, streaming_heads_.numel());
      check_pair(snapshot);
      require(!fills() || !streams() || full_->length() == streaming_->length(),
              "duo: full and streaming heads must have the same tokens, got {} and {}", full_->length(),
              streaming_->length());
    } catch (const Error&) {
      load({});
      throw;
    }
  }

  int64_t length() const override { return fills() ? full_->length() : streaming_->length(); }
  int64_t bytes() const override { return full_->bytes() + streaming_->bytes(); }
  int64_t read_bytes() const override { return full_->read_bytes() + streaming_->read_bytes(); }

 private:
  bool fills() const { return full_heads_.defined() && full_heads_.numel() > 0; }
  bool streams() const { return streaming_heads_.defined() && streaming_heads_.numel() > 0; }

  void use(const std::vector<bool>& is_full) {
    is_full_ = is_full;
    std::vector<int64_t> full, streaming;
    for (int64_t head = 0; head < std::ssize(is_full); ++head)
      (is_full[size_t(head)] ? full : streaming).push_back(head);
    full_heads_ = at::tensor(full, at::kLong), streaming_heads_ = at::tensor(streaming, at::kLong);
  }

  // Both groups must be of one batch and of one dim.
  void check_pair(const Snapshot& snapshot) const {
    if (!fills() || !streams()) return;
    for (const char* part : {"k", "v"}) {
      const at::Tensor &a = snapshot.at(std::string(kFull) + part), &b = snapshot.at(std::string(kStreaming) + part);
      require(a.size(0) == b.size(0) && a.size(3) == b.size(3) && a.scalar_type() == b.scalar_type(),
              "duo: {} of full and streaming heads must have the same batch, dim and dtype, got [{}] and [{}]", part,
              fmt::join(a.sizes().begin(), a.sizes().end(), ", "), fmt::join(b.sizes().begin(), b.sizes().end(), ", "));
    }
  }

  static void load_group(State& state, const Snapshot& snapshot, std::string_view prefix, int64_t heads) {
    Snapshot own;
    for (const auto& [part, tensor] : snapshot)
      if (part.starts_with(prefix)) own[part.substr(prefix.size())] = tensor;
    require(own.empty() == (heads == 0), "duo: a saved state must have keys of its {} {} heads, got {}", heads,
            prefix.substr(0, prefix.size() - 1), own.empty() ? "none" : "some");
    for (const char* part : {"k", "v"})
      if (const auto found = own.find(part); found != own.end())
        require(found->second.dim() == 4 && found->second.size(1) == heads,
                "duo: {}{} must be of {} heads, got {} axes and {}", prefix, part, heads, found->second.dim(),
                found->second.dim() == 4 ? found->second.size(1) : 0);
    state.load(own);
  }

  template <class Run>
  Attended run(const Inputs& in, Run&& attend_group) {
    if (is_full_.empty()) use(duo_.is_full(in));
    if (!streams()) return attend_group(*full_, in);
    if (!fills()) return attend_group(*streaming_, in);
    Attended all{
        .out = at::empty({in.q.size(0), in.q.size(1), in.q.size(2), ops::row_dim(in.v)}, in.q.options()),
        .lse = at::empty({in.q.size(0), in.q.size(1), in.q.size(2)}, in.q.options().dtype(lse_type(in.q))),
        .plans = {{0, in.q.size(2), window_rule(window_of(duo_), in, streaming_heads(is_full_, in.q.size(1)))}}};
    for (const auto& [state, heads] : {std::pair{full_.get(), full_heads_}, {streaming_.get(), streaming_heads_}}) {
      const Attended part = attend_group(*state, select_heads(in, heads));
      const at::Tensor readers = readers_of(heads, in.q.size(1) / in.k.size(1));
      all.out.index_copy_(1, readers, part.out);
      all.lse->index_copy_(1, readers, *part.lse);
    }
    return all;
  }
  static at::ScalarType lse_type(const at::Tensor& q) {
    return q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  }

  Duo duo_;
  std::vector<bool> is_full_;                // empty: no token yet
  at::Tensor full_heads_, streaming_heads_;  // int64
  std::unique_ptr<State> full_, streaming_;
};

}  // namespace

std::unique_ptr<State> Duo::make_state(const StateOptions& options) const {
  validate();
  require(phase == Phase::deploy, "duo: generation needs phase=deploy, got train");
  return std::make_unique<DuoState>(*this, options);
}

}  // namespace foveate::attention
