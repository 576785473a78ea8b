#include "foveate/attention/summaries.h"

#include <ATen/ops/constant_pad_nd.h>

#include <algorithm>

namespace foveate::attention {

at::Tensor ChunkSummaries::of(const at::Tensor& k) {
  const int64_t keys = k.size(2), chunks = (keys + chunk_ - 1) / chunk_;
  if (full_ < chunks) {
    const at::Tensor fresh = summarise_(k.narrow(2, full_ * chunk_, keys - full_ * chunk_));
    if (!store_.defined() || store_.size(2) < chunks) {
      const int64_t room = chunks + chunks / 2 + 1;  // grows by half: amortised as the cache
      const at::Tensor old = store_.defined() ? store_ : fresh.narrow(2, 0, 0);
      store_ = at::constant_pad_nd(old, {0, 0, 0, room - old.size(2)});
    }
    store_.narrow(2, full_, chunks - full_).copy_(fresh);
    full_ = keys / chunk_;
  }
  return store_.defined() ? store_.narrow(2, 0, chunks) : summarise_(k);
}

void ChunkSummaries::truncate(int64_t length) { full_ = std::min(full_, length / chunk_); }

void ChunkSummaries::clear() { store_ = at::Tensor(), full_ = 0; }

int64_t ChunkSummaries::bytes() const { return store_.defined() ? int64_t(store_.nbytes()) : 0; }

int64_t ChunkSummaries::chunk_bytes() const { return store_.defined() ? bytes() / store_.size(2) : 0; }

SummarisedState::SummarisedState(int64_t chunk, ChunkSummaries::Summarise summarise, const StateOptions& options)
    : CachedState(std::nullopt, options), summaries_(chunk, std::move(summarise)), chunk_(chunk) {}

void SummarisedState::truncate(int64_t length) {
  CachedState::truncate(length);
  summaries_.truncate(length);
}

void SummarisedState::load(const Snapshot& snapshot) {
  CachedState::load(snapshot);
  summaries_.clear();
}

int64_t SummarisedState::bytes_of_row(int64_t kept) const {
  return std::min(seen(), kept) * cache_.token_bytes() + chunks() * summaries_.chunk_bytes();
}

}  // namespace foveate::attention
