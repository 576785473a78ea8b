// The models of tokenizer.json: BPE, Unigram, WordPiece, WordLevel.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "foveate/io/pipeline/json_place.h"
#include "foveate/io/pipeline/token_model.h"

namespace foveate::io {

// The model at `place`, its tokens by id and its unknown token.  Throws Error: a type or option that is not known, ids
// that are not 0 .. n-1, a name that is no token.
std::unique_ptr<TokenModel> read_model(const JsonPlace& place, TokenTexts& tokens, std::optional<int32_t>& unknown);

}  // namespace foveate::io
