// Summaries of a cache's chunks, kept beside it, so that a decoded token need not read all keys to choose some.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

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

}  // namespace foveate::attention
