// Two small tokenizers for the generators' tests: one token per byte, and one per word.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "foveate/eval/codec.h"

namespace foveate::eval {

inline constexpr int32_t kToyBos = 100000;

inline Codec byte_codec() {
  Codec codec;
  codec.encode = [](std::string_view text) {
    std::vector<int32_t> tokens;
    for (const char c : text) tokens.push_back(uint8_t(c));
    return tokens;
  };
  codec.decode = [](std::span<const int32_t> tokens) {
    std::string text;
    for (const int32_t token : tokens)
      if (token < 256) text += char(token);
    return text;
  };
  return codec;
}

// A token is a run of letters with the space before it, or one other byte.  Ids are given in order of appearance.
inline Codec word_codec() {
  struct Vocabulary {
    std::map<std::string, int32_t> ids;
    std::vector<std::string> pieces;
  };
  const auto vocabulary = std::make_shared<Vocabulary>();
  const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  Codec codec;
  codec.encode = [=](std::string_view text) {
    std::vector<int32_t> tokens;
    for (size_t i = 0; i < text.size();) {
      size_t end = i + 1;
      if (is_letter(text[i]) || (text[i] == ' ' && end < text.size() && is_letter(text[end])))
        while (end < text.size() && is_letter(text[end])) ++end;
      const auto [entry, is_new] =
          vocabulary->ids.try_emplace(std::string(text.substr(i, end - i)), int32_t(vocabulary->pieces.size()));
      if (is_new) vocabulary->pieces.push_back(entry->first);
      tokens.push_back(entry->second);
      i = end;
    }
    return tokens;
  };
  codec.decode = [=](std::span<const int32_t> tokens) {
    std::string text;
    for (const int32_t token : tokens)
      if (token != kToyBos) text += vocabulary->pieces.at(size_t(token));
    return text;
  };
  codec.bos = kToyBos;
  return codec;
}

// FNV-1a, the same on every platform.
inline uint64_t hash_of(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (const char c : text) hash = (hash ^ uint8_t(c)) * 0x100000001b3ull;
  return hash;
}

}  // namespace foveate::eval
