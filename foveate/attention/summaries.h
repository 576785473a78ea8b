// Summaries of a cache's chunks, kept beside it, so that a decoded token need not read all keys to choose some.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "foveate/attention/mechanism.h"

namespace foveate::attention {

class ChunkSummaries {
 public:
  // keys [B, Hkv, n, D] (perhaps 8-bit rows) of chunks from the first key on, the last one perhaps shorter
  // -> [B, H, chunks, width]
  using Summarise = std::function<at::Tensor(const at::Tensor& keys)>;
  ChunkSummaries(int64_t chunk, Summarise summarise) : chunk_(chunk), summarise_(std::move(summarise)) {}

  // Of all chunks of k [B, Hkv, Lk, D], which only grew since the last call: full chunks are summed up once, the open
  // one anew.  A view that the next call may overwrite.
  at::Tensor of(const at::Tensor& k);

  void truncate(int64_t length);  // keys from `length` on are others from now on
  void clear();
  int64_t bytes() const;        // allocated
  int64_t chunk_bytes() const;  // of one summary

 private:
  int64_t chunk_;
  Summarise summarise_;
  at::Tensor store_;  // [B, H, capacity, width]
  int64_t full_ = 0;  // chunks that need not be looked at again
};

// A state that keeps them for all chunks of its cache.
class SummarisedState : public CachedState {
 public:
  SummarisedState(int64_t chunk, ChunkSummaries::Summarise summarise, const StateOptions& options);
  void truncate(int64_t length) override;
  void load(const Snapshot& snapshot) override;
  int64_t bytes() const override { return CachedState::bytes() + summaries_.bytes(); }

 protected:
  int64_t chunks() const { return (length() + chunk_ - 1) / chunk_; }
  // What a row reads that looks at every summary and at `kept` keys.
  int64_t bytes_of_row(int64_t kept) const;

  ChunkSummaries summaries_;

 private:
  int64_t chunk_;
};

}  // namespace foveate::attention
