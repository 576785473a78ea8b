#include "foveate/eval/perplexity.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "foveate/base/error.h"

namespace foveate::eval {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kLn2 = 0.69314718055994530942;

}  // namespace

std::vector<Window> sliding_windows(int64_t tokens, int64_t window, int64_t stride) {
  require(tokens >= 2, "sliding_windows: needs at least 2 tokens, got {}", tokens);
  require(window >= 2, "sliding_windows: window must be >= 2, got {}", window);
  require(stride >= 1 && stride <= window, "sliding_windows: stride must be in 1..{}, got {}", window, stride);
  std::vector<Window> windows;
  for (int64_t begin = 0, done = 0; done < tokens; begin += stride) {
    const int64_t end = std::min(tokens, begin + window), score_from = std::max(done, begin + 1);
    if (score_from < end) windows.push_back({begin, end, score_from});
    done = end;
  }
  return windows;
}

std::vector<Window> block_windows(int64_t tokens, int64_t block, BlockStart start) {
  require(block >= 2, "block_windows: block must be >= 2, got {}", block);
  const int64_t unscored = start == BlockStart::kUnscored ? 1 : 0;
  require(tokens > unscored, "block_windows: needs at least {} tokens, got {}", unscored + 1, tokens);
  std::vector<Window> windows;
  for (int64_t begin = 0; begin + unscored < tokens; begin += block)
    windows.push_back({begin, std::min(tokens, begin + block), begin + unscored});
  return windows;
}

std::vector<int64_t> bucket_edges(int64_t length, int64_t buckets) {
  require(buckets >= 1 && buckets <= length, "bucket_edges: buckets must be in 1..{}, got {}", length, buckets);
  std::vector<int64_t> edges;
  for (int64_t i = 0; i <= buckets; ++i) edges.push_back(length / buckets * i + length % buckets * i / buckets);
  return edges;
}

NllSum::NllSum(std::vector<int64_t> edges) : edges_(std::move(edges)) {
  require(edges_.size() != 1, "nll: buckets need at least 2 edges, got 1");
  for (size_t i = 1; i < edges_.size(); ++i)
    require(edges_[i - 1] < edges_[i], "nll: bucket edges must ascend, got {} before {}", edges_[i - 1], edges_[i]);
  const size_t buckets = edges_.empty() ? 0 : edges_.size() - 1;
  bucket_counts_.resize(buckets);
  bucket_sums_.resize(buckets);
}

void NllSum::add(int64_t position, double nll) {
  sum_ += nll;
  ++count_;
  const auto above = std::upper_bound(edges_.begin(), edges_.end(), position);
  if (above == edges_.begin() || above == edges_.end()) return;
  const size_t bucket = size_t(above - edges_.begin()) - 1;
  bucket_sums_[bucket] += nll;
  ++bucket_counts_[bucket];
}

void NllSum::add(int64_t first_position, std::span<const float> nll) {
  for (size_t i = 0; i < nll.size(); ++i) add(first_position + int64_t(i), double(nll[i]));
}

void NllSum::merge(const NllSum& other) {
  require(edges_ == other.edges_, "nll: only sums over the same buckets can be merged, got {} and {} edges",
          edges_.size(), other.edges_.size());
  sum_ += other.sum_;
  count_ += other.count_;
  for (size_t i = 0; i < bucket_sums_.size(); ++i) {
    bucket_sums_[i] += other.bucket_sums_[i];
    bucket_counts_[i] += other.bucket_counts_[i];
  }
}

double NllSum::mean() const { return count_ > 0 ? sum_ / double(count_) : kNaN; }

double NllSum::perplexity() const { return std::exp(mean()); }

double NllSum::bits_per_byte(int64_t bytes) const {
  require(bytes >= 1, "bits_per_byte: bytes must be >= 1, got {}", bytes);
  return sum_ / (kLn2 * double(bytes));
}

std::vector<double> NllSum::bucket_means() const {
  std::vector<double> means;
  for (size_t i = 0; i < bucket_sums_.size(); ++i)
    means.push_back(bucket_counts_[i] > 0 ? bucket_sums_[i] / double(bucket_counts_[i]) : kNaN);
  return means;
}

double perplexity_of_window_means(std::span<const double> window_means) {
  require(!window_means.empty(), "perplexity: needs at least one window, got none");
  double sum = 0;
  for (const double mean : window_means) sum += mean;
  return std::exp(sum / double(window_means.size()));
}

std::optional<Interval> document_interval(std::span<const NllSum> documents, uint64_t seed) {
  std::vector<double> sums, counts;
  for (const NllSum& document : documents) {
    if (document.count() == 0) continue;
    sums.push_back(document.sum());
    counts.push_back(double(document.count()));
  }
  if (sums.size() < 2) return std::nullopt;
  return ratio_interval(sums, counts, seed);
}

}  // namespace foveate::eval
