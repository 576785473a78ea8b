// The shape of a decoder-only language model, read from the config.json of a Hugging Face folder.
#pragma once

#include <string>

#include "foveate/models/language/config.h"
#include "foveate/models/language/hf_fields.h"

namespace foveate::models {

// Throws Error: an unsupported model_type (names the supported ones), a setting that the decoder has no form of, a key
// that is missing or contradicts another (names it).
DecoderConfig read_hf_config(const std::string& folder);

// Throws Error: no known activation.
Activation read_activation(const HfFields& fields, const std::string& key, const std::string& otherwise);

}  // namespace foveate::models
