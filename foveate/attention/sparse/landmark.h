// Blocks of keys fetched by the score of the landmark token that closes each of them: Landmark attention (Mohtashami
// and Jaggi, 2305.16300).
#pragma once

#include <array>
#include <string>
#include <string_view>

#include "foveate/attention/mechanism.h"
#include "foveate/base/options.h"

namespace foveate::attention {

// A text holds a landmark token at the end of every `block` tokens (models/language/landmarks.h puts them there).  A
// row's own section and the landmarks of earlier blocks share one softmax; a block shares what its landmark gets by a
// softmax of its own (ops::Score::landmarks).
//   landmark    inference: rows of a chunk (text positions [c * chunk, (c + 1) * chunk)) attend to the chunk, to the
//               unfinished block before it, and to the top_k blocks before that whose landmarks score highest, all in
//               one such softmax.  At most top_k blocks before a chunk: all of them.
//   grouped     training: the same with all blocks
//   nomem       baseline: a plain softmax over all tokens, landmarks among them
//   ignore_mem  baseline: a plain softmax over all tokens but landmarks
// positions=stingy moves fetched blocks, by age, into the top_k + 1 blocks of positions before the chunk's: blocks that
// are not among the latest top_k to the left, those to the right; all landmarks but the latest top_k are scored at the
// first of these places.  So a model sees no distance that it was not trained on.  Where fewer are visible, the first
// places stay empty.  (All landmarks have one embedding: in a first layer those at one place score alike but for
// rounding, which then chooses.)
// q [B, Hq, Lq, D]; k, v [B, Hkv, Lk, D].  The choice has no gradient; everything else has, through the fetched keys.
// Inputs::score.landmarks names other places of landmarks; mode=landmark needs regular ones.  Attended::lse is absent
// but in the baselines.  A model's own window, padding and documents hide keys as everywhere, by positions in the text.
// Throws Error: a train_context too short for a chunk, stingy positions without rotary embedding, score terms other
// than scale, soft cap and sink where blocks are fetched, rules that are not causal, documents in pieces; in a state
// that drops keys or keeps them on disk, padding and documents.
// Deviations from the release: any number of blocks (there 16 or 64), equal heads need not be (there heads = key
// heads).  Its context-miss token, and its dropout of groups and jumps of positions in training, are not here; the
// cache of Transformer-XL that it compares with is window:block=.
struct Landmark {
  static constexpr std::string_view name = "landmark";
  static constexpr std::string_view summary = "blocks fetched by the score of the landmark token that closes each";
  static constexpr Kind kind = Kind::row;

  enum class Mode { landmark, grouped, nomem, ignore_mem };
  friend constexpr auto enum_names(Mode) {
    return std::array<std::string_view, 4>{"landmark", "grouped", "nomem", "ignore_mem"};
  }
  enum class Select { per_head_token, max_over_heads, max_over_tokens };
  friend constexpr auto enum_names(Select) {
    return std::array<std::string_view, 3>{"per_head_token", "max_over_heads", "max_over_tokens"};
  }
  enum class Positions { stingy, text };
  friend constexpr auto enum_names(Positions) { return std::array<std::string_view, 2>{"stingy", "text"}; }

  int64_t block = 64, top_k = 4, train_context = 512, chunk = 0, max_blocks = 0;
  Mode mode = Mode::landmark;
  Select select = Select::per_head_token;
  bool share_in_group = false;
  Positions positions = Positions::stingy;
  std::string offload;

  static void fields(auto& self, auto&& visit) {
    visit("block", self.block, at_least(2), "tokens of a block, the landmark that closes it among them");
    visit("top_k", self.top_k, at_least(1), "blocks fetched for each head and query (published: 2 to 5)");
    visit("mode", self.mode, any(), "fetch blocks, attend to all blocks (training), or one of two plain baselines");
    visit("select", self.select, any(),
          "who chooses: each head and query, each query for all heads, each head for all queries of a chunk");
    visit("share_in_group", self.share_in_group, any(), "heads that share a key head choose together");
    visit("positions", self.positions, any(),
          "where fetched blocks seem to be: right before the chunk, or in the text");
    visit("train_context", self.train_context, at_least(1),
          "tokens the model was trained with; sets chunk = the whole blocks of it, less top_k + 1");
    visit("chunk", self.chunk, at_least(0), "rows that fetch from the blocks before them; 0: by train_context");
    visit("max_blocks", self.max_blocks, at_least(0), "latest blocks that can be fetched, older are dropped; 0: all");
    visit("offload", self.offload, any(), "folder for whole blocks on disk while generating; none: memory");
  }
  void validate() const;

  Attended attend(const Inputs& in) const;
  std::unique_ptr<State> make_state(const StateOptions& options) const;
  int64_t chunk_multiple() const;
  Kind own_kind() const;  // select=max_over_tokens chooses for a chunk's rows together: block

  int64_t chunk_length() const;                   // chunk, or what train_context gives
  int64_t blocks_before(int64_t position) const;  // whole blocks before the chunk of this position
  int64_t candidates(int64_t before) const;       // of so many blocks before a chunk, those that can be fetched
  int64_t local_start(int64_t position) const;    // what a row there sees without fetching begins at this position
  // Throws Error unless blocks can be fetched for a call whose keys end before position `end`.
  void check_retrieval(const Inputs& in, int64_t end) const;
};

// [1, length] bool: tokens at positions first, first + 1, .. of a text with a landmark at the end of every `block`.
at::Tensor regular_landmarks(int64_t first, int64_t length, int64_t block);

}  // namespace foveate::attention
