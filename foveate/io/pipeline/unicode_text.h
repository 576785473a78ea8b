// Unicode as the `tokenizers` package knows it: its parts carry tables of several versions, and token ids depend on
// them.  utf8proc (Unicode 15) has the properties, unicode_tables.h the differences.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace foveate::io {

enum class NormalForm { nfc, nfd, nfkc, nfkd };

// Bytes that belong to no character stay and separate what they stand between.
std::string normalised(std::string_view text, NormalForm form);

void append_lower_case(uint32_t code_point, std::string& text);  // the full mapping, without regard to neighbours

bool is_white_space(uint32_t code_point);  // White_Space
bool is_number(uint32_t code_point);       // Unicode 17
bool is_word(uint32_t code_point);         // \w of Rust's patterns, Unicode 16
bool is_mark(uint32_t code_point);         // for StripAccents, Unicode 9

// For BERT's normalizer and pre-tokenizer, Unicode 8.
bool is_bert_punctuation(uint32_t code_point);
bool is_bert_control(uint32_t code_point);
bool is_bert_accent(uint32_t code_point);  // non-spacing marks

// Whether a grapheme ends between two neighbouring code points; `state` is 0 at the start of a text.
bool breaks_grapheme(uint32_t before, uint32_t after, int32_t& state);

}  // namespace foveate::io
