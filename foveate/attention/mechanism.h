// The contract of a mechanism: what it is given, what it gives back, what it keeps during generation.
// A mechanism is an options struct (see dense.h for the smallest) with
//   name, summary, kind                 what `foveate list` shows
//   fields(self, visit), validate()     its options (base/options.h) and the rules between them
//   Attended attend(const Inputs&)      prefill and training: all rows of a segment at once, with gradients
//   make_state(const StateOptions&)     generation
// and, where it needs them, chunk_multiple(): prompts are cut at multiples of so many tokens; own_kind(): the class
// where options decide it; learned_parts(LayerShape): what an adapter must give (learned.h).  list.h lists them all.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "foveate/attention/learned.h"
#include "foveate/ops/attend/attend.h"
#include "foveate/ops/rotary.h"
#include "foveate/plan/plan.h"

namespace foveate::attention {

// What must agree between one prefill, a prefill in chunks, and decoding (the generic tests follow it):
//   row     each row depends on its own past alone: all three give the same rows
//   block   the selection of a block of queries may use the block's later rows: chunked prefill agrees at multiples of
//           chunk_multiple(); decode has a rule of its own
//   prompt  the plan is fixed when the prompt ends; decode has a rule of its own
// So prefill rows of block and prompt mechanisms may leak later tokens into their selection; quality is therefore also
// scored on a continuation that runs through decode.
enum class Kind { row, block, prompt };
constexpr auto enum_names(Kind) { return std::array<std::string_view, 3>{"row", "block", "prompt"}; }

// What earlier layers of the same forward pass have decided and later ones may go by, by name.
using Shared = std::map<std::string, std::vector<at::Tensor>, std::less<>>;

// One layer's attention problem.  Query i sits at key index Lk - Lq + i unless rule.query_start says otherwise.
struct Inputs {
  at::Tensor q, k, v;  // [B, Hq, Lq, D], [B, Hkv, Lk, D], [B, Hkv, Lk, Dv], rotated; k and v perhaps 8-bit rows
  Rule rule;           // what the model itself demands: causality, a layer's own window, padding, documents
  ops::Score score;    // the model's scale and soft cap
  int64_t layer = 0;
  const ops::Rotary* rotary = nullptr;    // how q and k were rotated; null where the model does not rotate
  std::optional<int64_t> first_position;  // position of query 0 in the text; unset: its key index.  Differs from it
                                          // where a state has evicted keys.
  bool ends_prompt = true;                // false for the chunks of a prompt before its last
  std::optional<at::Tensor> hidden;       // [B, Lq, width]: what the layer's projections read of these rows
  const Learned* learned = nullptr;       // this layer's learned parts; null: none were given
  Shared* shared = nullptr;               // of the forward pass; null: layers are called one by one
};

// A learned part by name.  Throws Error, which names `owner`: there is none.
const at::Tensor& learned(const Inputs& in, std::string_view owner, std::string_view name);

// Whether a call without a state is taken for a generated row: it is one row, behind other keys.
inline bool is_generated_row(const Inputs& in) { return in.q.size(2) == 1 && in.k.size(2) > 1; }

// Rows [first, first + count) of a call: of q and of all in rule and score that goes by query; keys and values stay.
// The rule must not order queries.
Inputs narrow_rows(const Inputs& in, int64_t first, int64_t count);

// Keys [start, end) that each query sees, each [B|1, Lq] int64 with 0 <= start <= end <= keys.
struct SeenKeys {
  at::Tensor start, end;
};
// What a rule shows at most, for mechanisms that need a range of keys for each query, the same for all heads.  Throws
// Error, which names `owner`: a rule that orders queries, goes by head, has sinks beside a window or shows later keys.
SeenKeys shown_keys(const Rule& rule, int64_t queries, int64_t keys, std::string_view owner);
// The same where a query sees all keys of its range, and where not `causal` perhaps later ones.  Throws Error for
// documents in pieces too.
SeenKeys seen_keys(const Rule& rule, int64_t queries, int64_t keys, std::string_view owner, bool causal = true);
// The rule were there no windows: a query sees its text from its first key on.
Rule without_windows(Rule rule);

// The key at which the first query of a call stands.  Throws Error, which names `owner`: a query that stands at no key.
int64_t first_query_key(const Inputs& in, std::string_view owner);

// in.k with zeros for keys that no query of the call sees because of padding, documents or ranges: what blocks of keys
// are summed up from, so that hidden numbers decide nothing.  The keys themselves where all may be seen.
at::Tensor keys_in_sight(const Inputs& in);

// Where the queries of a call stand in their texts, [B|1, Lq] int64: from first_position on; where row_start or
// documents are given, counted from the first key that they leave, whatever first_position says.  Throws Error as
// seen_keys().
at::Tensor text_positions(const Inputs& in, std::string_view owner);

// The plan that served rows [first_row, first_row + rows) of a call.
struct PlannedRows {
  int64_t first_row, rows;
  Plan plan;
};

struct Attended {
  at::Tensor out;                  // [B, Hq, Lq, Dv]
  std::optional<at::Tensor> lse;   // [B, Hq, Lq] over the model's own logits; absent where logits were changed
  std::vector<PlannedRows> plans;  // together: every row; a row sees what all of its plans show
};

// What a cache holds: keys and values as the model computes them, or in 8 bits (ops::quantise_rows): half the memory of
// bf16 and of its bandwidth.  Prompts read the cache too: a row is the same whether it was prefilled or decoded.
enum class CacheType { model, q8 };
constexpr auto enum_names(CacheType) { return std::array<std::string_view, 2>{"model", "q8"}; }

struct StateOptions {
  Rule rule;             // the layer's own rule: its window bounds what must be kept
  int64_t rollback = 0;  // truncate() may go back at least so many tokens
  CacheType cache = CacheType::model;
};

// One layer's memory during generation.  Not differentiable: call it under at::NoGradGuard.
class State {
 public:
  virtual ~State() = default;
  // Both append in.k, in.v [B, Hkv, n, D] and attend in.q [B, Hq, n, D]: as rows of the prompt, or as generated rows
  // by the decode rule (n rows at once give what n single calls would).
  virtual Attended prefill(const Inputs& in) = 0;
  virtual Attended decode(const Inputs& in) = 0;
  // Forgets all tokens from `length` on.  Throws Error where they are needed and were evicted.
  virtual void truncate(int64_t length) = 0;
  // What it would take to go on elsewhere, by name; load() of an empty state like it throws Error where they do not
  // fit.
  using Snapshot = std::map<std::string, at::Tensor>;
  virtual Snapshot save() const = 0;
  virtual void load(const Snapshot& snapshot) = 0;
  virtual int64_t length() const = 0;      // tokens appended and not truncated
  virtual int64_t bytes() const = 0;       // allocated
  virtual int64_t read_bytes() const = 0;  // keys, values and summaries that the next decoded token will read
};

// A part of a snapshot that must be floating point of these sizes.  Throws Error, which names `owner`: it is not.
const at::Tensor& saved_part(const State::Snapshot& snapshot, std::string_view owner, const std::string& name,
                             at::IntArrayRef sizes);

// Keys and values of one layer in order, grown in amortised steps.  May keep only the first and the latest tokens.
class KvCache {
 public:
  explicit KvCache(CacheType type) : type_(type) {}
  void append(const at::Tensor& k, const at::Tensor& v);
  at::Tensor k() const { return k_.narrow(2, 0, held_); }
  at::Tensor v() const { return v_.narrow(2, 0, held_); }
  int64_t length() const { return length_; }  // tokens seen
  int64_t held() const { return held_; }      // tokens kept
  int64_t head() const { return head_; }      // of them, the first ones that stay
  int64_t bytes() const;
  int64_t token_bytes() const;  // of one token's keys and values
  // Drops all but the first `head` and the latest `tail` tokens.
  void keep(int64_t head, int64_t tail);
  State::Snapshot save() const;
  void load(const State::Snapshot& snapshot);
  // Forgets tokens from `length` on; the latest `tail` of what is left must still be held (after eviction).
  void truncate(int64_t length, int64_t tail);

 private:
  CacheType type_;
  at::Tensor k_, v_;  // [B, Hkv, capacity, D], or 8-bit rows of it
  int64_t length_ = 0, held_ = 0, head_ = 0;
};

// What every state shares: the cache, and a bound on it where a window makes older keys invisible for good.
class CachedState : public State {
 public:
  struct Bound {
    int64_t head, tail;  // the first and the latest tokens that may still be seen
  };
  CachedState(std::optional<Bound> bound, const StateOptions& options);

  void truncate(int64_t length) override;
  Snapshot save() const override { return cache_.save(); }
  void load(const Snapshot& snapshot) override;
  int64_t length() const override { return cache_.length(); }
  int64_t bytes() const override { return cache_.bytes(); }
  int64_t read_bytes() const override;

 protected:
  // Appends and returns the inputs of the new rows over everything held.
  Inputs appended(const Inputs& in);
  // To be called after attending: drops what no later row can see.
  void evict();
  // Appends the new rows one by one and attends each over everything held by then: decoding by what the cache says.
  Attended by_row(const Inputs& in, const std::function<Attended(const Inputs&)>& attend_row);
  int64_t seen() const;  // held tokens that the next row may see

  KvCache cache_;

 private:
  std::optional<Bound> bound_, shown_;  // of what is kept, and of what the model itself shows
  int64_t rollback_;
};

// The state of a mechanism whose new rows attend by the same rule whether prompt or generated.
template <class Mechanism>
class PlainState final : public CachedState {
 public:
  PlainState(Mechanism mechanism, std::optional<Bound> bound, const StateOptions& options)
      : CachedState(bound, options), mechanism_(std::move(mechanism)) {}
  Attended prefill(const Inputs& in) override {
    Attended attended = mechanism_.attend(appended(in));
    evict();
    return attended;
  }
  Attended decode(const Inputs& in) override { return prefill(in); }

 private:
  Mechanism mechanism_;
};

// The bound that a rule's own window sets, if any.
std::optional<CachedState::Bound> bound_of(const Rule& rule);

// The state of a mechanism for prompts alone: generated rows see all that the model itself shows.  Its attend() takes
// one new row behind other keys for a generated one (is_generated_row); attend_prompt() takes it for a prompt.
template <class Mechanism>
class PromptState final : public CachedState {
 public:
  PromptState(Mechanism mechanism, const StateOptions& options)
      : CachedState(bound_of(options.rule), options), mechanism_(std::move(mechanism)) {}
  // Nothing is dropped between the chunks of a prompt: their plans count blocks from its first token.
  Attended prefill(const Inputs& in) override {
    Attended attended = mechanism_.attend_prompt(appended(in));
    if (in.ends_prompt) evict();
    return attended;
  }
  Attended decode(const Inputs& in) override {
    const Inputs all = appended(in);
    const ops::Attended attended = ops::attend(all.q, all.k, all.v, all.rule, all.score);
    evict();
    return {attended.out, attended.lse, {{0, all.q.size(2), all.rule}}};
  }

 private:
  Mechanism mechanism_;
};

}  // namespace foveate::attention
