// The arithmetic of perplexity: which tokens are scored in which window, and how their losses are averaged.  No model
// here.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "foveate/eval/interval.h"

namespace foveate::eval {

// The model reads tokens [begin, end); of these, tokens [score_from, end) are scored, each from those before it.
struct Window {
  int64_t begin = 0, end = 0, score_from = 0;
  bool operator==(const Window&) const = default;
};

// Windows that start every `stride` tokens; every token is scored once, in the first window that holds it, except a
// token with nothing before it in that window: the very first one, and with stride == window the first of each block.
// The last window may be shorter.  Throws Error: tokens < 2, window < 2, stride outside 1..window.
std::vector<Window> sliding_windows(int64_t tokens, int64_t window, int64_t stride);

enum class BlockStart {
  kUnscored,  // the first token of a block has no context and is not scored
  kAfterBos,  // the caller puts a BOS before each block, so that its first token is scored too
};

// Blocks of `block` tokens that do not overlap; the last may be shorter, and is dropped when nothing in it can be
// scored. Throws Error: block < 2, or no token to score.
std::vector<Window> block_windows(int64_t tokens, int64_t block, BlockStart start = BlockStart::kUnscored);

// Edges 0 = e[0] < ... < e[buckets] = length, as even as whole tokens allow.  Throws Error: not 1 <= buckets <= length.
std::vector<int64_t> bucket_edges(int64_t length, int64_t buckets);

// Sum of negative log-likelihoods in nats, overall and by position.
class NllSum {
 public:
  NllSum() = default;
  // Bucket i takes positions [edges[i], edges[i + 1]).  Throws Error: edges not ascending.
  explicit NllSum(std::vector<int64_t> edges);

  // position: how many tokens stood before the scored one in its window.  Outside all buckets it counts in the total
  // only.
  void add(int64_t position, double nll);
  void add(int64_t first_position, std::span<const float> nll);  // consecutive positions
  void merge(const NllSum& other);                               // Throws Error: other buckets

  double sum() const { return sum_; }
  int64_t count() const { return count_; }
  double mean() const;                        // nats per token; NaN when nothing was scored
  double perplexity() const;                  // exp(mean)
  double bits_per_byte(int64_t bytes) const;  // bytes: of the scored text, >= 1
  std::vector<double> bucket_means() const;   // NaN where a bucket is empty
  std::vector<int64_t> bucket_counts() const { return bucket_counts_; }

 private:
  double sum_ = 0;
  int64_t count_ = 0;
  std::vector<int64_t> edges_, bucket_counts_;
  std::vector<double> bucket_sums_;
};

// exp of the unweighted mean of each window's own mean: what YaRN's published evaluation computes.  A short window
// weighs as much as a full one, so it differs from NllSum::perplexity.  Throws Error: no windows.
double perplexity_of_window_means(std::span<const double> window_means);

// 95 % bootstrap interval of the mean nats per token when whole documents are resampled; none for fewer than two
// documents with scored tokens.
std::optional<Interval> document_interval(std::span<const NllSum> documents, uint64_t seed);

}  // namespace foveate::eval
