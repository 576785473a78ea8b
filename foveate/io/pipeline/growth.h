// The stages of an untrusted file may make a long text of a short one, and each the more of what the one before made.
#pragma once

#include <cstddef>

#include "foveate/base/error.h"

namespace foveate::io {

// Throws Error: `made` bytes of `given` are more than any normal form or spelling makes.
inline void check_growth(size_t given, size_t made) {
  constexpr size_t kTimes = 32, kMore = size_t{1} << 20;
  require(made <= kTimes * given + kMore, "tokenizer: stages must make <= {} times the text and {} bytes, got {} of {}",
          kTimes, kMore, made, given);
}

}  // namespace foveate::io
