// Landmark tokens around a language model (Mohtashami and Jaggi, 2305.16300): put into texts, left out of logits, read
// in the same step as the token before.  The mechanisms `landmark` and `landmark:mode=grouped` do the rest.
#pragma once

#include <string_view>

#include "foveate/io/tokenizer.h"
#include "foveate/models/language/session.h"

namespace foveate::models {

// A landmark at the end of every `block` tokens, itself among them, counted from the start of the text.
struct Landmarks {
  int32_t token = 0;
  int64_t block = 64;  // as the mechanism's
  // Whose logits say what comes after a block: those of the token before the landmark, where training left landmarks
  // out of the loss, or the landmark's own (the release's recipe for LLaMA).
  enum class Logits { before, own } logits = Logits::before;
};

// Tokens with landmarks; `read` tokens, landmarks among them, stand before them.  A block that tokens fill gets its
// landmark at once.  Throws Error: block < 2, a landmark among the tokens.
std::vector<int32_t> with_landmarks(std::span<const int32_t> tokens, const Landmarks& landmarks, int64_t read = 0);

// What each of these tokens, landmarks among them, is to predict; kNoTarget: nothing.  Logits::before: the next token
// that is no landmark, landmarks nothing; Logits::own: the next token.
constexpr int64_t kNoTarget = -100;  // as torch's cross entropy ignores
std::vector<int64_t> landmark_targets(std::span<const int32_t> tokens, const Landmarks& landmarks);

// The id of the landmark token that the model's vocabulary holds.  Throws Error: none of this text.
int32_t find_landmark(const io::Tokenizer& tokenizer, std::string_view text = "<landmark>");

// The decoder with one token more, the last: its embedding and its row of the head are the means of all others.
// Throws Error: packed weights, which cannot grow.
Decoder add_landmark(const Decoder& decoder);

// A session that reads landmarks by itself.
class LandmarkSession {
 public:
  // The session must outlive this; nothing but landmarks' texts may have been read with it.  Throws Error: a token
  // that is not in the model's vocabulary, a mechanism `landmark` of other blocks.
  LandmarkSession(Session& session, const Landmarks& landmarks);

  // As the session's; tokens and hidden [1, n, width] are without landmarks.  Where logits are the landmark's own, the
  // last token of a block has the hidden state of the landmark behind it.
  at::Tensor prefill(std::span<const int32_t> tokens, bool ends_prompt = true);
  at::Tensor decode(std::span<const int32_t> tokens);
  // hidden [..., width] -> logits [..., vocabulary] fp32, the landmark's -inf: it is never chosen.
  at::Tensor logits(const at::Tensor& hidden) const;
  Session& session() const { return session_; }

 private:
  at::Tensor run(std::span<const int32_t> tokens, bool is_prompt, bool ends_prompt);
  Session& session_;
  Landmarks landmarks_;
};

}  // namespace foveate::models
