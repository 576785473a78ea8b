#include "foveate/models/language/generate.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/log_softmax.h>

#include <algorithm>

#include "foveate/base/error.h"

namespace foveate::models {
namespace {

// Bytes at the end of `text` that may be the start of a longer UTF-8 character.
size_t open_bytes(std::string_view text) {
  for (size_t back = 1; back <= std::min<size_t>(4, text.size()); ++back) {
    const auto byte = static_cast<unsigned char>(text[text.size() - back]);
    if ((byte & 0xC0) == 0x80) continue;  // inside a character
    const size_t length = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC0 ? 2 : 1;
    return length > back ? back : 0;
  }
  return 0;
}

// Bytes at the end of `text` that may be the start of a stop string.
size_t open_stop(std::string_view text, const std::vector<std::string>& stops) {
  size_t open = 0;
  for (const std::string& stop : stops)
    for (size_t n = std::min(stop.size() - 1, text.size()); n > open; --n)
      if (text.ends_with(std::string_view(stop).substr(0, n))) open = n;
  return open;
}

using Show = std::function<bool(std::string_view)>;

// A session of either kind.
template <class Reader, class Logits>
Generated continue_text(Reader& session, const Logits& logits_of, const io::Tokenizer& tokenizer, at::Tensor hidden,
                        const GenerateOptions& options, const Show& show) {
  options.sampling.validate();
  for (const std::string& stop : options.stop) require(!stop.empty(), "generate: a stop string must not be empty");
  const at::NoGradGuard no_grad;
  Generated result;
  Random random(options.seed);
  size_t shown = 0;
  const auto pass_on = [&](size_t end) {
    const bool goes_on = end <= shown || !show || show(std::string_view(result.text).substr(shown, end - shown));
    shown = std::max(shown, end);
    return goes_on;
  };
  while (std::ssize(result.tokens) < options.max_tokens) {
    const at::Tensor logits = logits_of(hidden).contiguous();
    const int32_t token = sample({logits.const_data_ptr<float>(), size_t(logits.numel())}, options.sampling, random);
    if (tokenizer.is_end(token)) {
      result.reason = Generated::Reason::end_token;
      break;
    }
    result.tokens.push_back(token);
    result.text += tokenizer.piece(token);
    size_t stop = std::string::npos;
    for (const std::string& text : options.stop) stop = std::min(stop, result.text.find(text));
    if (stop != std::string::npos) {
      result.text.resize(stop);
      result.reason = Generated::Reason::stop_string;
      break;
    }
    if (!pass_on(result.text.size() - std::max(open_bytes(result.text), open_stop(result.text, options.stop)))) {
      result.reason = Generated::Reason::cancelled;
      return result;
    }
    hidden = session.decode({&token, 1}).select(1, 0).squeeze(0);
  }
  pass_on(result.text.size());
  return result;
}

}  // namespace

at::Tensor log_probabilities(const Decoder& decoder, const at::Tensor& hidden) {
  const at::NoGradGuard no_grad;
  return at::log_softmax(decoder.logits(hidden), -1);
}

Generated generate(Session& session, const io::Tokenizer& tokenizer, at::Tensor hidden, const GenerateOptions& options,
                   const Show& show) {
  const auto logits = [&](const at::Tensor& h) { return session.decoder().logits(h); };
  return continue_text(session, logits, tokenizer, std::move(hidden), options, show);
}

Generated generate(LandmarkSession& session, const io::Tokenizer& tokenizer, at::Tensor hidden,
                   const GenerateOptions& options, const Show& show) {
  const auto logits = [&](const at::Tensor& h) { return session.logits(h); };
  return continue_text(session, logits, tokenizer, std::move(hidden), options, show);
}

}  // namespace foveate::models
