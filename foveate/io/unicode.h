// UTF-8 at the level that tokenizers need: where a character ends, what is no character, and GPT-2's printable bytes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace foveate::io {

// Bytes of the character that starts at text[at], or 0 if none does.  Strict (RFC 3629): overlong forms, surrogates,
// anything above U+10FFFF and cut sequences are no characters.  at < text.size().
size_t utf8_length(std::string_view text, size_t at);

struct Character {
  uint32_t code_point;  // U+FFFD for a byte that belongs to no character
  size_t length;        // bytes, >= 1
};

// The character that starts at text[at]; at < text.size().
Character character_at(std::string_view text, size_t at);

// The text with every byte that belongs to no character replaced by a control character: patterns accept it, and the
// offsets stay the same.
std::string matchable_text(std::string_view text);

// Where the last character of a text begins that is not empty; the last byte where it belongs to none.
size_t last_character(std::string_view text);

// The UTF-8 bytes of a code point up to U+10FFFF.
std::string to_utf8(uint32_t code_point);

// GPT-2 spells every byte with one printable character: itself where it is printable Latin-1, else U+0100 and up, in
// order.  Entry b is the UTF-8 text of byte b.
const std::array<std::string, 256>& printable_bytes();
std::string byte_spelling(std::string_view text);  // every byte so

// "<0x0A>" for 0x0A, the form of byte tokens.
std::string byte_token(uint8_t byte);

}  // namespace foveate::io
