#include "foveate/models/language/session.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>

#include <numeric>

#include "foveate/base/error.h"
#include "foveate/base/timer.h"

namespace foveate::models {

Session::Session(const Decoder& decoder, const std::vector<attention::Mechanism>& mechanisms, SessionOptions options)
    : decoder_(decoder), options_(std::move(options)), mechanisms_(mechanisms) {
  require(std::ssize(mechanisms) == decoder.layers(), "session: one mechanism per layer, got {} for {} layers",
          mechanisms.size(), decoder.layers());
  for (int64_t layer = 0; layer < decoder.layers(); ++layer) {
    states_.push_back(mechanisms[layer].make_state({decoder.rule_of(layer), options_.rollback, options_.cache}));
    attention_ += (layer > 0 ? ";" : "") + mechanisms[layer].spec().text();
    chunk_multiple_ = std::lcm(chunk_multiple_, mechanisms[layer].chunk_multiple());
  }
}

at::Tensor Session::prefill(std::span<const int32_t> tokens, bool ends_prompt) {
  return run(tokens, true, ends_prompt);
}

at::Tensor Session::decode(std::span<const int32_t> tokens) { return run(tokens, false, true); }

at::Tensor Session::run(std::span<const int32_t> tokens, bool is_prompt, bool ends_prompt) {
  require(!tokens.empty(), "session: at least one token is needed, got 0");
  const at::NoGradGuard no_grad;
  const std::vector<int64_t> wide(tokens.begin(), tokens.end());
  const at::Tensor ids = at::tensor(wide, at::kLong).unsqueeze(0);
  const int64_t before = length();
  const auto attend = [&](attention::Inputs in) {
    in.ends_prompt = ends_prompt;
    in.learned = mechanisms_[size_t(in.layer)].learned();
    attention::State& state = *states_[in.layer];
    const Timer timer;
    attention::Attended attended = is_prompt ? state.prefill(in) : state.decode(in);
    attention_seconds_ += timer.seconds();
    if (options_.observe) options_.observe(in, attended);
    return attended;
  };
  try {
    const at::Tensor hidden = decoder_.forward(ids, before, attend);
    tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
    return hidden;
  } catch (...) {
    go_back(before, is_prompt);
    throw;
  }
}

void Session::go_back(int64_t length, bool from_prompt) {
  const auto plans = [](const attention::Mechanism& m) { return m.kind() == attention::Kind::prompt; };
  try {
    require(!from_prompt || std::ranges::none_of(mechanisms_, plans),
            "session: what a prompt decided can not be undone");
    for (const auto& state : states_)
      if (state->length() > length) state->truncate(length);
  } catch (...) {
    for (const auto& state : states_) state->load({});
    tokens_.clear();
  }
}

void Session::truncate(int64_t length) {
  for (const auto& state : states_) state->truncate(length);
  tokens_.resize(size_t(length));
}

int64_t Session::bytes() const {
  int64_t sum = 0;
  for (const auto& state : states_) sum += state->bytes();
  return sum;
}

int64_t Session::read_bytes() const {
  int64_t sum = 0;
  for (const auto& state : states_) sum += state->read_bytes();
  return sum;
}

}  // namespace foveate::models
