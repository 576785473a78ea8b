#include "foveate/ops/attend/storage.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "foveate/base/error.h"
#include "foveate/ops/quantise/quantise.h"

namespace foveate::ops {

using at::Tensor;

Problem shaped(const Problem& p) {
  if (!p.pages && !is_quantised(p.k) && !is_quantised(p.v)) return p;
  Problem shapes = p;
  shapes.pages.reset();
  const auto shape = [&](const Tensor& t) {
    const int64_t batch = p.pages ? p.pages->size(0) : t.size(0),
                  keys = p.pages ? p.pages->size(1) * t.size(2) : t.size(2);
    return at::empty({1, 1, 1, 1}, t.options().dtype(is_quantised(t) ? p.q.scalar_type() : t.scalar_type()))
        .expand({batch, t.size(1), keys, row_dim(t)});
  };
  shapes.k = shape(p.k), shapes.v = shape(p.v);
  return shapes;
}

Problem whole(const Problem& p) {
  Problem plain = p;
  plain.pages.reset();
  for (Tensor* t : {&plain.k, &plain.v}) {
    if (p.pages) {
      const Tensor pages = p.pages->clamp(0, std::max<int64_t>(t->size(0) - 1, 0)).flatten();
      *t = t->index_select(0, pages).unflatten(0, p.pages->sizes()).transpose(1, 2).flatten(2, 3);
    }
    *t = widened(*t, p.q.scalar_type());
  }
  return plain;
}

namespace {

void check_pages(const Problem& p) {
  if (!p.pages) return;
  const Tensor& t = *p.pages;
  require(t.scalar_type() == at::kInt && t.dim() == 2 && t.size(0) == p.q.size(0),
          "attend: pages must be int32 [{}, pages], got {} [{}]", p.q.size(0), c10::toString(t.scalar_type()),
          fmt::join(t.sizes().begin(), t.sizes().end(), ", "));
  const int64_t count = p.k.size(0), size = p.k.size(2);
  require(p.v.size(0) == count && p.v.size(2) == size && size >= 1,
          "attend: pages of k [P, Hkv, S, D] and v [P, Hkv, S, Dv] must agree, got {} of {} and {} of {} keys", count,
          size, p.v.size(0), p.v.size(2));
  const Tensor flat = t.contiguous();
  const auto& lengths = rule_of(p.plan).key_lengths;
  const Tensor ends = lengths ? lengths->to(at::kLong).contiguous() : Tensor();
  for (int64_t b = 0; b < t.size(0); ++b)
    for (int64_t i = 0; i < t.size(1); ++i) {
      if (ends.defined() && b < ends.numel() && i * size >= ends.const_data_ptr<int64_t>()[b]) break;
      const int32_t page = flat.const_data_ptr<int32_t>()[b * t.size(1) + i];
      require(page >= 0 && page < count, "attend: pages that hold keys must be 0 .. {}, got {}", count - 1, page);
    }
}

void check_quantised(const Problem& p) {
  if (!is_quantised(p.k) && !is_quantised(p.v)) return;
  require(is_quantised(p.k) && is_quantised(p.v), "attend: k and v must both be 8-bit rows or neither, got {} and {}",
          c10::toString(p.k.scalar_type()), c10::toString(p.v.scalar_type()));
  require(p.q.scalar_type() != at::kDouble, "attend: q of 8-bit keys must be fp32, bf16 or fp16, got Double");
  for (const Tensor& t : {p.k, p.v}) {
    const int64_t dim = row_dim(t);
    require(dim >= 1 && quantised_bytes(dim) == t.size(3),
            "attend: 8-bit rows must have D + 2 * ceil(D / 32) bytes, got {}", t.size(3));
  }
}

}  // namespace

void check_storage(const Problem& p) {
  check_pages(p);
  check_quantised(p);
}

}  // namespace foveate::ops
