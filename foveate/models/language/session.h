// Generation with a decoder: one state per layer, a prompt, then tokens.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "foveate/models/language/decoder.h"

namespace foveate::models {

struct SessionOptions {
  int64_t rollback = 0;  // truncate() may go back at least so many tokens
  attention::CacheType cache = attention::CacheType::model;
  // Sees every layer's call, e.g. to count visited keys.
  std::function<void(const attention::Inputs&, const attention::Attended&)> observe;
};

class Session {
 public:
  // The decoder must outlive the session.  Throws Error: not one mechanism per layer.
  Session(const Decoder& decoder, const std::vector<attention::Mechanism>& mechanisms, SessionOptions options = {});

  // Tokens of the prompt -> hidden [1, n, width] of all of them.  A prompt may come in several calls, all but the last
  // of a multiple of chunk_multiple() tokens and with ends_prompt = false.
  at::Tensor prefill(std::span<const int32_t> tokens, bool ends_prompt = true);
  // Generated tokens, by the decode rule -> hidden [1, n, width].
  at::Tensor decode(std::span<const int32_t> tokens);
  // Where a layer throws (a mechanism's disk is full), no layer has read anything of the call.  The session is empty
  // where one of them has dropped what going back takes, or where mechanisms of class prompt were reading one.

  // Forgets all tokens from `length` on.  Throws Error where a state has evicted what it needs.
  void truncate(int64_t length);
  int64_t length() const { return states_.front()->length(); }
  const std::vector<int32_t>& tokens() const { return tokens_; }  // read so far
  // Writes what it takes to go on later: a safetensors file.  Throws Error: a path that is not writable.
  void save(const std::string& path) const;
  // Goes on where a saved session stopped; this one must be empty.  Throws Error: a file that is damaged or no session,
  // or is of another model, other mechanisms, another dtype or cache type.
  void load(const std::string& path);
  double attention_seconds() const { return attention_seconds_; }  // spent in the states so far
  int64_t bytes() const;                                           // of all states, allocated
  int64_t read_bytes() const;                                      // that the next decoded token reads of them
  int64_t chunk_multiple() const { return chunk_multiple_; }
  const Decoder& decoder() const { return decoder_; }
  const std::vector<attention::Mechanism>& mechanisms() const { return mechanisms_; }

 private:
  at::Tensor run(std::span<const int32_t> tokens, bool is_prompt, bool ends_prompt);
  void go_back(int64_t length, bool from_prompt);

  const Decoder& decoder_;
  SessionOptions options_;
  std::vector<attention::Mechanism> mechanisms_;
  std::string attention_;  // the mechanisms as text, layer by layer
  std::vector<std::unique_ptr<attention::State>> states_;
  std::vector<int32_t> tokens_;
  int64_t chunk_multiple_ = 1;
  double attention_seconds_ = 0;
};

}  // namespace foveate::models
