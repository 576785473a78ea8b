// Distant groups of tokens as one core token each, the latest tokens as they are, in one softmax: Core Context Aware
// Attention (2412.12465).
#pragma once

#include <array>
#include <string_view>

#include "foveate/attention/mechanism.h"
#include "foveate/base/options.h"

namespace foveate::attention {

// Group c holds tokens [c g, (c + 1) g).  Its core token is the mean of its keys and of its values, weighted by the
// softmax, inside the group, of what the query of the group's last token scores them.  A query that sees n tokens reads
// cores 0 .. j - 1 and tokens j g .. n - 1 as they are, j = max(0, floor((n - window) / g)): every token once.
// q [B, Hq, Lq, D]; k, v [B, Hkv, Lk, D].  Everything is differentiable, also through the cores.  Causal only.  Keys of
// a row must begin where those of its batch element do (padding on the left moves the groups); of a layer with a window
// of its own, wider than `window`, only groups wholly inside it are seen.  plans: the keys seen as they are.
// Without a state, rows in front of which groups lack their queries can not be attended (pool=cca).
// Deviations, as options: log_count_bias, sink_groups (neither is published).
// Throws Error: a rule that seen_keys() does not take, sinks; bias by key, slopes, relative logits or landmarks, as a
// core has no place; pool_stage=pre_rope without rotary embedding.
struct Cca {
  static constexpr std::string_view name = "cca";
  static constexpr std::string_view summary = "distant groups as weighted core tokens, latest tokens exact (CCA)";
  static constexpr Kind kind = Kind::row;

  enum class Pool { cca, mean, max, last };
  friend constexpr auto enum_names(Pool) { return std::array<std::string_view, 4>{"cca", "mean", "max", "last"}; }
  enum class PoolStage { post_rope, pre_rope };
  friend constexpr auto enum_names(PoolStage) { return std::array<std::string_view, 2>{"post_rope", "pre_rope"}; }
  enum class CorePosition { last, centre };
  friend constexpr auto enum_names(CorePosition) { return std::array<std::string_view, 2>{"last", "centre"}; }
  enum class GqaPool { per_query_head, per_kv_head };
  friend constexpr auto enum_names(GqaPool) { return std::array<std::string_view, 2>{"per_query_head", "per_kv_head"}; }

  int64_t group = 16, window = 1024, sink_groups = 0;
  Pool pool = Pool::cca;
  PoolStage pool_stage = PoolStage::post_rope;
  CorePosition core_position = CorePosition::last;
  GqaPool gqa_pool = GqaPool::per_query_head;
  bool log_count_bias = false, weight_gradient = true, keep_raw = false;

  static void fields(auto& self, auto&& visit) {
    visit("group", self.group, at_least(1), "tokens that one core token stands for; 1 is dense");
    visit("window", self.window, at_least(1), "latest tokens seen as they are, and up to group - 1 more");
    visit("sink_groups", self.sink_groups, at_least(0), "first groups that stay tokens (an extension)");
    visit("pool", self.pool, any(), "how a group is summed up: weighted by its last query, mean, maximum, last token");
    visit("pool_stage", self.pool_stage, any(), "keys are pooled rotated, or before rotation");
    visit("core_position", self.core_position, any(), "with pre_rope: where in its group a core token sits");
    visit("gqa_pool", self.gqa_pool, any(),
          "weights, and so cores, of each query head; or of each key head, by the mean of its query heads");
    visit("log_count_bias", self.log_count_bias, any(), "adds log(group) to the logits of cores: equal tokens count");
    visit("weight_gradient", self.weight_gradient, any(), "gradients also flow through the weights of a group");
    visit("keep_raw", self.keep_raw, any(), "the cache keeps all tokens and queries, so that `group` may change");
  }
  void validate() const { check_options(*this); }

  Attended attend(const Inputs& in) const;
  std::unique_ptr<State> make_state(const StateOptions& options) const;

  // Cores that a query reads which sees `tokens` tokens.
  int64_t cores_of(int64_t tokens) const { return tokens < window ? 0 : (tokens - window) / group; }
};

struct CcaCores {
  at::Tensor k, v;     // [B, Hq|Hkv, groups, D], dtype of q
  at::Tensor weights;  // [B, Hq|Hkv, groups, g] fp32 (fp64 for fp64); undefined unless pool=cca
};
// The cores of whole groups: q [B, Hq, groups, D], the query of each group's last token; k, v [B, Hkv, groups * g, D],
// perhaps 8-bit rows; the first key sits at `first_position` of the text.  scale: of the logits.  Differentiable.
CcaCores cca_pool(const Cca& cca, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                  const ops::Rotary* rotary = nullptr, int64_t first_position = 0);

// Makes a state of cca go on with other groups and another window; what it holds is pooled anew.  Throws Error: not a
// state of cca, tokens that were dropped, or queries that were not kept (keep_raw keeps both).
void change_granularity(State& state, int64_t group, int64_t window);

}  // namespace foveate::attention
