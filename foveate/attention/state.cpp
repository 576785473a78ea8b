#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>

#include <algorithm>

#include "foveate/attention/mechanism.h"
#include "foveate/base/error.h"
#include "foveate/ops/quantise/quantise.h"

namespace foveate::attention {
namespace {

constexpr int64_t kStep = 64;  // capacities are multiples of so many tokens

// The first keys of all in rule and score that goes by key.
void narrow_keys(Inputs& in, int64_t keys) {
  const auto by_key = [&](std::optional<at::Tensor>& t, int64_t axis) {
    if (t && t->size(axis) != 1) t = t->narrow(axis, 0, keys);
  };
  by_key(in.rule.key_documents, 1);
  by_key(in.score.bias, 3);
  by_key(in.score.landmarks, 1);
  if (in.score.relative) in.score.relative->keys = in.score.relative->keys.narrow(1, 0, keys);
}

}  // namespace

const at::Tensor& saved_part(const State::Snapshot& snapshot, std::string_view owner, const std::string& name,
                             at::IntArrayRef sizes) {
  const auto found = snapshot.find(name);
  require(found != snapshot.end(), "{}: a saved state must have {}, got none", owner, name);
  const at::Tensor& t = found->second;
  require(t.sizes() == sizes && t.is_floating_point(), "{}: a saved {} must be floating point [{}], got {} [{}]", owner,
          name, fmt::join(sizes, ", "), c10::toString(t.scalar_type()),
          fmt::join(t.sizes().begin(), t.sizes().end(), ", "));
  return t;
}

void KvCache::append(const at::Tensor& new_k, const at::Tensor& new_v) {
  const bool quantises = type_ == CacheType::q8;
  const at::Tensor k = quantises ? ops::quantise_rows(new_k) : new_k, v = quantises ? ops::quantise_rows(new_v) : new_v;
  const int64_t added = k.size(2), needed = held_ + added;
  if (!k_.defined() || needed > k_.size(2)) {
    // A prompt is stored exactly; what comes after it grows by half, so that n appends copy O(n) tokens.
    const int64_t wanted = k_.defined() ? std::max(needed, held_ + held_ / 2) : needed;
    const int64_t capacity = (wanted + kStep - 1) / kStep * kStep;
    const auto grow = [&](at::Tensor& store, const at::Tensor& like) {
      const at::Tensor larger = at::empty({like.size(0), like.size(1), capacity, like.size(3)}, like.options());
      if (store.defined()) larger.narrow(2, 0, held_).copy_(store.narrow(2, 0, held_));
      store = larger;
    };
    grow(k_, k);
    grow(v_, v);
  }
  k_.narrow(2, held_, added).copy_(k);
  v_.narrow(2, held_, added).copy_(v);
  held_ = needed;
  length_ += added;
}

int64_t KvCache::bytes() const { return k_.defined() ? int64_t(k_.nbytes() + v_.nbytes()) : 0; }

int64_t KvCache::token_bytes() const { return k_.defined() ? bytes() / k_.size(2) : 0; }

void KvCache::keep(int64_t head, int64_t tail) {
  if (held_ <= head + tail) return;
  // A long prompt leaves much more room than a window needs: the rest is given back.
  const int64_t room = head + 2 * tail + kStep;
  const auto drop = [&](at::Tensor& store) {
    const at::Tensor latest = store.narrow(2, held_ - tail, tail).clone();  // source and target may overlap
    if (store.size(2) > 2 * room) {
      const at::Tensor smaller = at::empty({store.size(0), store.size(1), room, store.size(3)}, store.options());
      smaller.narrow(2, 0, head).copy_(store.narrow(2, 0, head));
      store = smaller;
    }
    store.narrow(2, head, tail).copy_(latest);
  };
  drop(k_);
  drop(v_);
  held_ = head + tail;
  head_ = head;
}

void KvCache::truncate(int64_t length, int64_t tail) {
  require(length >= 0 && length <= length_, "truncate: length must be 0 .. {}, got {}", length_, length);
  const int64_t evicted = length_ - held_, latest = held_ - head_ - (length_ - length);
  require(evicted == 0 || latest >= tail,
          "truncate: the {} tokens before {} must still be held, got {}; ask for rollback when the state is made", tail,
          length, std::max<int64_t>(latest, 0));
  held_ -= length_ - length;
  length_ = length;
}

State::Snapshot KvCache::save() const {
  if (!k_.defined()) return {};
  return {{"k", k()}, {"v", v()}, {"counts", at::tensor({length_, held_, head_}, at::kLong)}};
}

void KvCache::load(const State::Snapshot& snapshot) {
  *this = KvCache(type_);
  if (snapshot.empty()) return;
  const auto part = [&](const char* name) {
    const auto found = snapshot.find(name);
    require(found != snapshot.end(), "cache: a saved cache must have k, v and counts, got none named {}", name);
    return found->second;
  };
  const at::Tensor k = part("k"), v = part("v"), counts = part("counts").contiguous();
  require(counts.scalar_type() == at::kLong && counts.numel() == 3, "cache: counts must be 3 int64, got {} {}",
          counts.numel(), c10::toString(counts.scalar_type()));
  const int64_t* numbers = counts.const_data_ptr<int64_t>();
  const int64_t length = numbers[0], held = numbers[1], head = numbers[2];
  require(0 <= head && head <= held && held <= length && k.dim() == 4 && v.dim() == 4 && k.size(2) == held &&
              v.size(2) == held && ops::is_quantised(k) == (type_ == CacheType::q8) &&
              ops::is_quantised(v) == (type_ == CacheType::q8),
          "cache: k and v must hold the {} of {} tokens that counts says, in {}, got {} and {} in {}", held, length,
          type_ == CacheType::q8 ? "8 bits" : "the model's dtype", k.dim() == 4 ? k.size(2) : -1,
          v.dim() == 4 ? v.size(2) : -1, c10::toString(k.scalar_type()));
  require(k.size(0) == v.size(0) && k.size(1) == v.size(1),
          "cache: k and v must have the same batch and heads, got [{}, {}] and [{}, {}]", k.size(0), k.size(1),
          v.size(0), v.size(1));
  k_ = k.clone(), v_ = v.clone();
  length_ = length, held_ = held, head_ = head;
}

CachedState::CachedState(std::optional<Bound> bound, const StateOptions& options)
    : cache_(options.cache), bound_(bound), shown_(bound_of(options.rule)), rollback_(options.rollback) {}

Inputs CachedState::appended(const Inputs& in) {
  Inputs all = in;
  all.first_position = cache_.length();
  cache_.append(in.k, in.v);
  all.k = cache_.k();
  all.v = cache_.v();
  return all;
}

Attended CachedState::by_row(const Inputs& in, const std::function<Attended(const Inputs&)>& attend_row) {
  Attended all{.out = {}, .lse = {}, .plans = {}};
  std::vector<at::Tensor> outs, lses;
  for (int64_t row = 0; row < in.q.size(2); ++row) {
    Inputs one = narrow_rows(in, row, 1);
    one.rule.query_start.reset();  // the last of the keys held by then
    one.k = in.k.narrow(2, row, 1), one.v = in.v.narrow(2, row, 1);
    narrow_keys(one, cache_.held() + 1);
    Attended part = attend_row(appended(one));
    outs.push_back(part.out);
    if (part.lse) lses.push_back(*part.lse);
    for (PlannedRows& planned : part.plans) {
      planned.first_row += row;
      all.plans.push_back(std::move(planned));
    }
  }
  all.out = outs.size() == 1 ? outs[0] : at::cat(outs, 2);
  if (lses.size() == outs.size()) all.lse = lses.size() == 1 ? lses[0] : at::cat(lses, 2);
  return all;
}

void CachedState::load(const Snapshot& snapshot) {
  cache_.load(snapshot);
  const int64_t held = cache_.held(), length = cache_.length();
  if (held == length || (bound_ && cache_.head() == bound_->head && held >= bound_->head + bound_->tail)) return;
  cache_.load({});
  fail("cache: later tokens see {} of the {} saved ones, got {}",
       bound_ ? fmt::format("the first {} and the latest {}", bound_->head, bound_->tail) : "all", length, held);
}

void CachedState::evict() {
  if (!bound_) return;
  // Twice the window is held before the older half is dropped, so that dropping costs O(1) per token.
  const int64_t tail = bound_->tail + rollback_;
  if (cache_.held() > bound_->head + 2 * tail) cache_.keep(bound_->head, tail);
}

void CachedState::truncate(int64_t length) { cache_.truncate(length, bound_ ? bound_->tail : 0); }

int64_t CachedState::seen() const {
  const std::optional<Bound>& bound = bound_ ? bound_ : shown_;
  return bound ? std::min(cache_.held(), bound->head + bound->tail) : cache_.held();
}

int64_t CachedState::read_bytes() const { return seen() * cache_.token_bytes(); }

std::optional<CachedState::Bound> bound_of(const Rule& rule) {
  if (!rule.window_left) return std::nullopt;
  return CachedState::Bound{.head = rule.sinks, .tail = *rule.window_left + 1};
}

}  // namespace foveate::attention
