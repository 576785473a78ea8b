#include "foveate/attention/routing/duo.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "foveate/attention/dense.h"
#include "foveate/attention/routing/grouping.h"
#include "foveate/attention/routing/objectives.h"
#include "foveate/attention/window.h"
#include "foveate/ops/quantise/quantise.h"

namespace foveate::attention {
namespace {

constexpr int64_t kMostHeads = 1 << 16;  // a head number above is a slip, and would take the memory of a list

int64_t head_number(std::string_view text, std::string_view list) {
  int64_t head = -1;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), head);
  require(status == std::errc() && end == text.data() + text.size() && head >= 0 && head < kMostHeads,
          "duo: full_heads must be numbers or ranges like (0-1,5), all or none, got '{}'", list);
  return head;
}

std::vector<int64_t> head_list(std::string_view list) {
  std::vector<int64_t> heads;
  for (size_t start = 0; start <= list.size();) {
    const size_t comma = std::min(list.find(',', start), list.size());
    const std::string_view range = list.substr(start, comma - start);
    const size_t dash = range.find('-');
    const int64_t first = head_number(range.substr(0, dash), list);
    const int64_t last = dash == std::string_view::npos ? first : head_number(range.substr(dash + 1), list);
    for (int64_t head = first; head <= last; ++head) heads.push_back(head);
    start = comma + 1;
  }
  return heads;
}

// Lines of numbers, or a JSON list of lists of numbers.
std::vector<std::vector<double>> read_pattern(const std::string& path) {
  std::ifstream file(path);
  require(file.good(), "duo: pattern must be a file that can be read, got '{}'", path);
  std::stringstream all;
  all << file.rdbuf();
  const std::string text = all.str();
  std::vector<std::vector<double>> layers;
  if (const size_t first = text.find_first_not_of(" \t\r\n"); first != std::string::npos && text[first] == '[') {
    const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
    require(json.is_array(), "duo: pattern '{}' must be a JSON list of lists of numbers", path);
    for (const auto& row : json) {
      layers.emplace_back();
      require(row.is_array(), "duo: pattern '{}' must be a JSON list of lists of numbers", path);
      for (const auto& number : row) {
        require(number.is_number(), "duo: pattern '{}' must be a JSON list of lists of numbers", path);
        layers.back().push_back(number.get<double>());
      }
    }
    return layers;
  }
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    layers.emplace_back();
    std::istringstream numbers(line);
    for (std::string word; numbers >> word;) {
      double number = 0;
      const auto [end, status] = std::from_chars(word.data(), word.data() + word.size(), number);
      require(status == std::errc() && end == word.data() + word.size() && std::isfinite(number),
              "duo: pattern '{}' must have numbers, got '{}' in line {}", path, word, layers.size());
      layers.back().push_back(number);
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
  if (!full_heads.empty() && full_heads != "all" && full_heads != "none") head_list(full_heads);
}

std::vector<bool> Duo::is_full(const Inputs& in) const {
  const int64_t kv_heads = in.k.size(1), layer = in.layer;
  if (full_heads == "all" || full_heads == "none") return std::vector<bool>(size_t(kv_heads), full_heads == "all");
  if (!full_heads.empty()) {
    std::vector<bool> full(size_t(kv_heads), false);
    for (const int64_t head : head_list(full_heads)) {
      require(head < kv_heads, "duo: full_heads must be key heads 0 .. {}, got {}", kv_heads - 1, head);
      full[size_t(head)] = true;
    }
    return full;
  }
  if (!pattern.empty()) {
    const auto layers = read_pattern(pattern);
    require(layer < std::ssize(layers) && std::ssize(layers[size_t(layer)]) == kv_heads,
            "duo: pattern must have {} numbers for layer {}, got {} layers and {} numbers", kv_heads, layer,
            layers.size(), layer < std::ssize(layers) ? layers[size_t(layer)].size() : 0);
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

  // The tensors of the first group that there is by their own names, those of streaming heads beside full ones behind
  // "streaming.".
  Snapshot save() const override {
    if (is_full_.empty()) return {};
    if (!streams() || !fills()) return with_heads((streams() ? streaming_ : full_)->save());
    Snapshot all = with_heads(full_->save());
    for (auto& [part, tensor] : streaming_->save()) all["streaming." + part] = tensor;
    return all;
  }

  void load(const Snapshot& snapshot) override {
    is_full_.clear();
    full_->load({});
    streaming_->load({});
    if (snapshot.empty()) return;
    Snapshot first, second;
    for (const auto& [part, tensor] : snapshot) {
      if (part == "full_heads") continue;
      if (part.starts_with("streaming."))
        second[part.substr(10)] = tensor;
      else
        first[part] = tensor;
    }
    const auto heads = snapshot.find("full_heads");
    require(heads != snapshot.end() && heads->second.scalar_type() == at::kBool && heads->second.dim() == 1,
            "duo: a saved state must have full_heads, bool, got none");
    std::vector<bool> is_full;
    for (const double full : numbers_of(heads->second)) is_full.push_back(full != 0);
    try {
      use(is_full);
      require(!first.empty() && (!fills() || !streams() || !second.empty()), "duo: a saved state must have keys");
      if (fills()) full_->load(first);
      if (streams()) streaming_->load(fills() ? second : first);
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

  Snapshot with_heads(Snapshot snapshot) const {
    std::vector<int64_t> heads(is_full_.begin(), is_full_.end());
    snapshot["full_heads"] = at::tensor(heads, at::kLong).to(at::kBool);
    return snapshot;
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
