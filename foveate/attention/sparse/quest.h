// Generated rows attend to the pages of keys whose products may be largest: Quest (Tang et al., 2406.10774).
#pragma once

#include <array>
#include <string_view>

#include "foveate/attention/mechanism.h"
#include "foveate/base/options.h"

namespace foveate::attention {

// A page is `page` keys, its summary their largest and smallest value M_c, m_c of each channel; for a query it scores
// sum over c of max(q_c M_c, q_c m_c), at least the product with any of its keys.  A row takes the max(least_pages,
// budget / page) best pages of those it sees, its own (which ends with its key) in any case, and attends to their keys
// under the exact causal mask.  Equal scores: the lower page.
// Prompts are dense and generated rows go by pages (rows=prompt); a call without a state is a prompt, unless it is one
// new row behind other keys.  With rows=each every row of every call goes by pages, as if it were generated: for
// training, and to see what decoding would lose.
// q [B, Hq, Lq, D]; k, v [B, Hkv, Lk, D].  Selection has no gradient; q, k, v have theirs through the kept pages.
// Pages of which a row sees no key (the layer's own window, padding, documents) are no candidates.
// Published: page=16, budget 512 to 4096, the first two layers dense: dense@0-1;quest@2-29.
// Deviation from the release: force_latest=false lets the row's own page compete as any other, as released.
// Throws Error: options out of range, a rule that BlockGrid does not take or more queries than keys, where pages are
// chosen.
struct Quest {
  static constexpr std::string_view name = "quest";
  static constexpr std::string_view summary =
      "generated rows attend to the pages with the largest bounds of products (Quest); prompts dense";
  static constexpr Kind kind = Kind::block;

  enum class Share { head, group };
  friend constexpr auto enum_names(Share) { return std::array<std::string_view, 2>{"head", "group"}; }
  enum class Rows { prompt, each };
  friend constexpr auto enum_names(Rows) { return std::array<std::string_view, 2>{"prompt", "each"}; }

  int64_t page = 16, budget = 1024, least_pages = 3;
  Share share = Share::head;
  bool force_latest = true;
  Rows rows = Rows::prompt;

  static void fields(auto& self, auto&& visit) {
    visit("page", self.page, at_least(1), "keys of a page");
    visit("budget", self.budget, at_least(0), "keys kept for a row, in whole pages; at or above the length: dense");
    visit("least_pages", self.least_pages, at_least(1), "pages kept at least");
    visit("share", self.share, any(),
          "who chooses: each query head, or those of a key head by the sum of their scores");
    visit("force_latest", self.force_latest, any(), "always keep the page of the row's own key; false: as released");
    visit("rows", self.rows, any(), "prompt: prompts are dense; each: every row goes by pages");
  }
  void validate() const { check_options(*this); }

  Attended attend(const Inputs& in) const;
  std::unique_ptr<State> make_state(const StateOptions& options) const;

  int64_t pages() const;  // kept for a row
  // [B, Hkv, pages, 2 * D] fp32 (fp64 for fp64): largest values, then smallest.
  at::Tensor summaries(const at::Tensor& k) const;
  // Every row by pages, given the summaries of k.
  Attended attend_pages(const Inputs& in, const at::Tensor& summaries) const;
};

}  // namespace foveate::attention
