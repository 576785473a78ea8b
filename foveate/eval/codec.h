// What a task generator needs of a tokenizer, and no more: generators stay independent of models and files.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace foveate::eval {

struct Codec {
  std::function<std::vector<int32_t>(std::string_view)> encode;  // text alone: adds no BOS, parses no special token
  std::function<std::string(std::span<const int32_t>)> decode;   // the inverse
  std::optional<int32_t> bos;                                    // put before every prompt when the model wants it
};

}  // namespace foveate::eval
