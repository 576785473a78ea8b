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

}  // namespace foveate::attention
