// Every stage of tokenizer.json on small files; tests/python/test_tokenizer_json.py holds them against the package.
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>

#include "foveate/base/error.h"
#include "foveate/base/random.h"
#include "foveate/io/open_tokenizer.h"
#include "tests/io/tiny_tokenizer_json.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/mixed_text.h"

namespace foveate {
namespace {

using test::json;
using Ids = std::vector<int32_t>;
using Texts = std::vector<std::string>;

constexpr io::EncodeOptions kPlain{.add_special = false};

// The pieces that a normalizer and a pre-tokenizer make of a text: those that WordLevel looks up, by a vocabulary that
// spells bytes.
Texts pieces(const json& normalizer, const json& pre_tokenizer, std::string_view text) {
  Texts tokens = {"<unk>"};
  for (int b = 0; b < 256; ++b) tokens.push_back(fmt::format("<0x{:02X}>", b));
  json file;
  file["normalizer"] = normalizer;
  file["pre_tokenizer"] = pre_tokenizer;
  file["model"] = {{"type", "BPE"},        {"vocab", test::numbered(tokens)}, {"merges", json::array()},
                   {"unk_token", "<unk>"}, {"byte_fallback", true},           {"continuing_subword_prefix", "\x01"}};
  std::string spelled;
  for (const int32_t id : test::open(file)->encode(text)) spelled += char(id - 1);
  // Characters that continue a piece have the prefix.
  Texts found;
  for (size_t at = 0; at < spelled.size();) {
    const bool continues = spelled[at] == '\x01';
    if (continues) ++at;
    if (!continues) found.emplace_back();
    do found.back() += spelled[at++];
    while (at < spelled.size() && (uint8_t(spelled[at]) & 0xC0) == 0x80);
  }
  return found;
}

std::string normalised(const json& normalizer, std::string_view text) {
  const Texts found = pieces(normalizer, nullptr, text);
  return found.empty() ? "" : found.size() == 1 ? found[0] : "several pieces";
}

Texts split(const json& pre_tokenizer, std::string_view text) { return pieces(nullptr, pre_tokenizer, text); }

TEST(Normalizer, composes_and_decomposes) {
  EXPECT_EQ(normalised({{"type", "NFC"}}, "e\u0301\uFB01"), "\u00E9\uFB01");
  EXPECT_EQ(normalised({{"type", "NFD"}}, "\u00E9\uAC01"), "e\u0301\u1100\u1161\u11A8");
  EXPECT_EQ(normalised({{"type", "NFKC"}}, "e\u0301\uFB01"), "\u00E9fi");
  EXPECT_EQ(normalised({{"type", "NFKD"}}, "\u00E9\u2460"), "e\u03011");
  EXPECT_EQ(normalised({{"type", "NFD"}}, "a\u0301\u0323"), "a\u0323\u0301");  // marks in canonical order
}

TEST(Normalizer, knows_no_more_unicode_than_the_package) {
  EXPECT_EQ(normalised({{"type", "NFKC"}}, "\u32FF"), "\u32FF");       // of Unicode 12.1
  EXPECT_EQ(normalised({{"type", "Lowercase"}}, "\u1C89"), "\u1C8A");  // of Unicode 16
}

TEST(Normalizer, keeps_bytes_that_are_no_text) {
  EXPECT_EQ(normalised({{"type", "NFC"}}, "e\xFF\xCC\x81"), "e\xFF\xCC\x81");
}

TEST(Normalizer, lower_case_is_that_of_single_characters) {
  EXPECT_EQ(normalised({{"type", "Lowercase"}}, "A\u0130\u03A3\u1E9E"), "ai\u0307\u03C3\u00DF");
}

TEST(Normalizer, bert_cleans_isolates_ideographs_and_drops_accents) {
  const json bert = test::tiny_word_piece()["normalizer"];
  EXPECT_EQ(normalised(bert, "\u00C9\tx\u0001\uFFFD\u4E2Dy"), "e x \u4E2D y");
  json cased = bert;
  cased["lowercase"] = false;  // strip_accents null follows lowercase
  EXPECT_EQ(normalised(cased, "\u00C9"), "\u00C9");
  cased["strip_accents"] = true;
  EXPECT_EQ(normalised(cased, "\u00C9"), "E");
}

TEST(Normalizer, replaces_prepends_and_strips) {
  EXPECT_EQ(normalised({{"type", "Replace"}, {"pattern", {{"String", "."}}}, {"content", "-"}}, "a.b"), "a-b");
  EXPECT_EQ(normalised({{"type", "Replace"}, {"pattern", {{"Regex", " {2,}"}}}, {"content", "_"}}, "a   b c"), "a_b c");
  EXPECT_EQ(normalised({{"type", "Prepend"}, {"prepend", "_"}}, "a"), "_a");
  EXPECT_EQ(normalised({{"type", "Prepend"}, {"prepend", "_"}}, ""), "");
  EXPECT_EQ(normalised({{"type", "Strip"}, {"strip_left", true}, {"strip_right", false}}, "\u3000 a "), "a ");
  EXPECT_EQ(normalised({{"type", "Strip"}, {"strip_left", false}, {"strip_right", true}}, " a \u3000"), " a");
  EXPECT_EQ(normalised({{"type", "StripAccents"}}, "e\u0301"), "e");
  EXPECT_EQ(normalised({{"type", "Nmt"}}, "a\u200Bb\x01"), "a b");
  EXPECT_EQ(normalised({{"type", "Sequence"},
                        {"normalizers", {{{"type", "Lowercase"}}, {{"type", "Prepend"}, {"prepend", "X"}}}}},
                       "A"),
            "Xa");
}

TEST(PreTokenizer, splits_by_text_and_pattern_in_every_behavior) {
  const auto by = [](const char* behavior, bool invert) {
    return split({{"type", "Split"}, {"pattern", {{"String", "-"}}}, {"behavior", behavior}, {"invert", invert}},
                 "a--b-c");
  };
  EXPECT_EQ(by("Removed", false), (Texts{"a", "b", "c"}));
  EXPECT_EQ(by("Isolated", false), (Texts{"a", "-", "-", "b", "-", "c"}));
  EXPECT_EQ(by("MergedWithPrevious", false), (Texts{"a-", "-", "b-", "c"}));
  EXPECT_EQ(by("MergedWithNext", false), (Texts{"a", "-", "-b", "-c"}));
  EXPECT_EQ(by("Contiguous", false), (Texts{"a", "--", "b", "-", "c"}));
  EXPECT_EQ(by("Removed", true), (Texts{"-", "-", "-"}));
}

TEST(PreTokenizer, takes_patterns_in_rubys_syntax) {
  const auto by = [](const char* pattern, std::string_view text) {
    return split({{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}},
                 text);
  };
  EXPECT_EQ(by("\\h+", "xAFx"), (Texts{"x", "AF", "x"}));              // hexadecimal digits
  EXPECT_EQ(by("(?m:a.)", "a\nb"), (Texts{"a\n", "b"}));               // m lets . match line breaks
  EXPECT_EQ(by("^b", "a\nb"), (Texts{"a\n", "b"}));                    // ^ at lines
  EXPECT_EQ(by("[^(\\s|[.,])]+", "ab. c"), (Texts{"ab", ". ", "c"}));  // a class in a class
  EXPECT_EQ(by("a{,2}b", "aaab"), (Texts{"a", "aab"}));
  EXPECT_EQ(by("[-\\h]+|[x\\s-]", "f-xg"), (Texts{"f-", "x", "g"}));               // hyphens that are themselves
  EXPECT_EQ(by("(?i:b)[\\p{Lu}]|(?i:s)", "BCbcS"), (Texts{"BC", "bc", "S"}));      // case counts outside of the group
  EXPECT_EQ(by("\\bab\\b|\\bcd\\b|\\bef\\b", "ab cd"), (Texts{"ab", " ", "cd"}));  // short here, long in PCRE2
  EXPECT_EQ(by("\\w+", "\u180E\u00B2_-"), (Texts{"\u180E", "\u00B2_", "-"}));
  EXPECT_EQ(by("\\s", "a\u180E\u0085"), (Texts{"a\u180E", "\u0085"}));
}

TEST(PreTokenizer, splits_by_kind_of_character) {
  EXPECT_EQ(split({{"type", "Whitespace"}}, "it's  so"), (Texts{"it", "'", "s", "so"}));
  EXPECT_EQ(split({{"type", "WhitespaceSplit"}}, " it's\u3000so"), (Texts{"it's", "so"}));
  EXPECT_EQ(split({{"type", "Digits"}, {"individual_digits", false}}, "a12\u0664"), (Texts{"a", "12\u0664"}));
  EXPECT_EQ(split({{"type", "Digits"}, {"individual_digits", true}}, "a12"), (Texts{"a", "1", "2"}));
  EXPECT_EQ(split({{"type", "Punctuation"}, {"behavior", "Removed"}}, "a.b$\u00BFc"), (Texts{"a", "b", "c"}));
  EXPECT_EQ(split({{"type", "BertPreTokenizer"}}, "a. b"), (Texts{"a", ".", "b"}));
  EXPECT_EQ(split({{"type", "CharDelimiterSplit"}, {"delimiter", "\u00E9"}}, "a\u00E9b"), (Texts{"a", "b"}));
}

TEST(PreTokenizer, byte_level_spells_bytes_and_may_put_a_space_first) {
  const auto by = [](bool prefix, bool pattern) {
    return split({{"type", "ByteLevel"}, {"add_prefix_space", prefix}, {"trim_offsets", true}, {"use_regex", pattern}},
                 "a \u00E9");
  };
  EXPECT_EQ(by(true, true), (Texts{"\u0120a", "\u0120\u00C3\u00A9"}));
  EXPECT_EQ(by(false, false), (Texts{"a\u0120\u00C3\u00A9"}));
}

TEST(PreTokenizer, metaspace_prepends_as_its_scheme_says) {
  const auto by = [](const char* scheme, std::string_view text) {
    return split(
        {{"type", "Sequence"},
         {"pretokenizers",
          {{{"type", "WhitespaceSplit"}}, {{"type", "Metaspace"}, {"replacement", "_"}, {"prepend_scheme", scheme}}}}},
        text);
  };
  EXPECT_EQ(by("always", "a b"), (Texts{"_a", "_b"}));
  EXPECT_EQ(by("first", "a b"), (Texts{"_a", "b"}));
  EXPECT_EQ(by("first", " a b"), (Texts{"a", "b"}));  // the first piece does not begin the text
  EXPECT_EQ(by("never", "a b"), (Texts{"a", "b"}));
  EXPECT_EQ(split({{"type", "Metaspace"}, {"replacement", "_"}, {"split", false}}, "a b"), (Texts{"_a_b"}));
  EXPECT_EQ(split({{"type", "Metaspace"}, {"replacement", "_"}, {"add_prefix_space", false}}, "a b"),
            (Texts{"a", "_b"}));
}

TEST(TokenModel, bpe_merges_falls_back_to_bytes_and_fuses_what_is_unknown) {
  const auto tokenizer = test::open(test::tiny_bpe());
  EXPECT_EQ(tokenizer->encode("abc a", kPlain), (Ids{5, 7}));
  EXPECT_EQ(tokenizer->encode("\u00E9", kPlain), (Ids{8, 9}));
  EXPECT_EQ(tokenizer->encode("xyz", kPlain), Ids{0});
  json file = test::tiny_bpe();
  file["model"]["fuse_unk"] = false;
  EXPECT_EQ(test::open(file)->encode("xy", kPlain), (Ids{0, 0}));
  file["model"]["unk_token"] = nullptr;
  EXPECT_EQ(test::open(file)->encode("xay", kPlain), Ids{1});
  file["model"]["ignore_merges"] = true;
  file["model"]["merges"] = json::array();
  EXPECT_EQ(test::open(file)->encode("abc", kPlain), Ids{5});
}

TEST(TokenModel, bpe_marks_characters_that_continue_and_end_a_word) {
  json file;
  file["model"] = {{"type", "BPE"},
                   {"continuing_subword_prefix", "##"},
                   {"end_of_word_suffix", "</w>"},
                   {"vocab", test::numbered({"a", "##b", "##c</w>", "ab", "abc</w>", "c</w>"})},
                   {"merges", json::parse(R"([["a", "##b"], ["ab", "##c</w>"]])")}};
  EXPECT_EQ(test::open(file)->encode("abc"), Ids{4});
  EXPECT_EQ(test::open(file)->encode("c"), Ids{5});
}

TEST(TokenModel, word_piece_takes_the_longest_token_or_gives_the_word_up) {
  const auto tokenizer = test::open(test::tiny_word_piece());
  EXPECT_EQ(tokenizer->encode("Unaffable.", kPlain), (Ids{4, 5, 6, 9}));
  EXPECT_EQ(tokenizer->encode("unaffx a", kPlain), (Ids{1, 7}));
  EXPECT_EQ(tokenizer->encode("aaaaaaaaaa", kPlain).size(), 10U);
  EXPECT_EQ(tokenizer->encode("aaaaaaaaaaa", kPlain), Ids{1});  // longer than max_input_chars_per_word
  EXPECT_EQ(tokenizer->encode("a"), (Ids{2, 7, 3}));
}

TEST(TokenModel, unigram_takes_the_best_sum_and_fuses_what_is_unknown) {
  const auto tokenizer = test::open(test::tiny_unigram());
  EXPECT_EQ(tokenizer->encode("ab"), (Ids{1, 4}));      // -2 - 5.5 is more than -9.5, and than -2 - 3 - 3
  EXPECT_EQ(tokenizer->encode("bbb"), (Ids{1, 3, 6}));  // as good as bb b, and found first
  EXPECT_EQ(tokenizer->encode("axyb"), (Ids{1, 2, 0, 3}));
}

TEST(TokenModel, word_level_knows_whole_pieces_only) {
  EXPECT_EQ(test::open(test::tiny_word_level())->encode("one three two"), (Ids{1, 0, 2}));
}

TEST(AddedTokens, are_cut_out_of_raw_and_of_normalised_text) {
  json file = test::tiny_word_piece();
  file["added_tokens"].push_back({{"id", 10}, {"content", "Tag"}, {"special", false}, {"normalized", true}});
  file["added_tokens"].push_back({{"id", 11}, {"content", "Raw"}, {"special", false}, {"normalized", false}});
  const auto tokenizer = test::open(file);
  EXPECT_EQ(tokenizer->encode("aTAGa", kPlain), (Ids{7, 10, 7}));
  EXPECT_EQ(tokenizer->encode("aRawa", kPlain), (Ids{7, 11, 7}));
  EXPECT_EQ(tokenizer->encode("rawa", kPlain), Ids{1});
}

TEST(AddedTokens, may_take_white_space_along_or_stand_alone) {
  json file = test::tiny_bpe();
  file["added_tokens"][3]["lstrip"] = true;
  EXPECT_EQ(test::open(file)->encode("a <tag> a", kPlain), (Ids{1, 12, 7}));
  file["added_tokens"][3]["rstrip"] = true;
  EXPECT_EQ(test::open(file)->encode("a <tag> a", kPlain), (Ids{1, 12, 1}));
  file["added_tokens"][3]["content"] = "tag";
  file["added_tokens"][3]["single_word"] = true;
  EXPECT_EQ(test::open(file)->encode("a tag", kPlain), (Ids{1, 12}));
  EXPECT_EQ(test::open(file)->encode("atag", kPlain), (Ids{1, 0, 1, 0}));
}

TEST(AddedTokens, special_ones_are_text_unless_they_are_asked_for) {
  const auto tokenizer = test::open(test::tiny_bpe());
  EXPECT_EQ(tokenizer->encode("a</s>", {.add_special = false, .parse_special = true}), (Ids{1, 11}));
  EXPECT_EQ(tokenizer->encode("a</s>", kPlain), (Ids{1, 0}));
  EXPECT_EQ(tokenizer->encode("a<tag>", kPlain), (Ids{1, 12}));
}

TEST(Decoder, gives_back_text_with_and_without_special_tokens) {
  const auto tokenizer = test::open(test::tiny_bpe());
  const Ids ids = tokenizer->encode("abc a\u00E9<tag>");
  EXPECT_EQ(ids, (Ids{10, 5, 7, 8, 9, 12}));
  EXPECT_EQ(tokenizer->decode(ids), "abc a\u00E9<tag>");
  EXPECT_EQ(tokenizer->decode(ids, true), "<s>abc a\u00E9<tag>");
  EXPECT_EQ(tokenizer->piece(7), " a");
  EXPECT_EQ(tokenizer->piece(8), "\xC3");
  EXPECT_EQ(tokenizer->piece(10), "");
  EXPECT_EQ(test::open(test::tiny_word_piece())->decode(Ids{2, 4, 5, 9, 7}), "unaff. a");
  EXPECT_EQ(test::open(test::tiny_word_piece())->piece(7), " a");
  EXPECT_EQ(test::open(test::tiny_unigram())->decode(Ids{5, 1, 2}), "ab a");
  EXPECT_EQ(test::open(test::tiny_word_level())->decode(Ids{1, 2}), "one two");  // no decoder
}

TEST(Decoder, strips_and_ends_words) {
  json file = test::tiny_bpe();
  file["decoder"]["decoders"].push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  EXPECT_EQ(test::open(file)->decode(Ids{7, 7}), "a a");
  file["decoder"] = {{"type", "BPEDecoder"}, {"suffix", "c"}};
  EXPECT_EQ(test::open(file)->decode(Ids{5, 5}), "ab ab");
  file["decoder"] = {{"type", "ByteLevel"}};
  EXPECT_EQ(test::open(file)->decode(Ids{1, 6}), "a\u2581");  // a token outside the alphabet is itself
  file["decoder"] = {
      {"type", "Sequence"},
      {"decoders", {{{"type", "ByteLevel"}}, {{"type", "Strip"}, {"content", "a"}, {"start", 1}, {"stop", 0}}}}};
  EXPECT_EQ(test::open(file)->decode(Ids{1, 2, 1}), "ba");  // one text for what comes behind ByteLevel
}

TEST(Decoder, pieces_are_what_tokens_give_between_others) {
  json file = test::tiny_bpe();
  file["decoder"] = {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", ""}};
  EXPECT_EQ(test::open(file)->piece(2), "b");
  EXPECT_EQ(test::open(file)->piece(1), "");
}

TEST(TokenizerJson, refuses_ids_outside_its_range) {
  const auto tokenizer = test::open(test::tiny_bpe());
  EXPECT_EQ(tokenizer->size(), 13);
  EXPECT_THROW(tokenizer->decode(Ids{13}), Error);
  EXPECT_THROW(tokenizer->piece(-1), Error);
}

TEST(TokenizerJson, takes_names_ends_and_templates_from_the_files_beside_it) {
  io::TokenizerFiles files{.config = R"({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": true,
                                         "chat_template": [{"name": "tool", "template": "T"},
                                                           {"name": "default", "template": "D"}]})",
                           .generation_config = R"({"eos_token_id": [11, 12]})"};
  json file = test::tiny_bpe();
  const auto tokenizer = test::open(file, files);
  EXPECT_EQ(tokenizer->bos(), 10);
  EXPECT_EQ(tokenizer->eos(), 11);
  EXPECT_TRUE(tokenizer->is_end(11) && tokenizer->is_end(12));
  EXPECT_EQ(tokenizer->chat_template(), "D");
  EXPECT_EQ(tokenizer->encode("a"), (Ids{10, 1}));  // once: the post-processor has it already
  file["post_processor"] = nullptr;
  EXPECT_EQ(test::open(file, files)->encode("a"), (Ids{10, 1}));
  EXPECT_EQ(test::open(file)->encode("a"), Ids{1});
  files.chat_template = "{{ own }}";
  EXPECT_EQ(test::open(file, files)->chat_template(), "{{ own }}");
  EXPECT_EQ(test::open(file, {.special_tokens = R"({"eos_token": "</s>"})"})->eos(), 11);
}

TEST(TokenizerJson, is_opened_by_its_path_and_by_its_folder) {
  const std::filesystem::path folder = test::temporary_path("tokenizer-folder");
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "tokenizer.json") << test::tiny_bpe().dump();
  std::ofstream(folder / "tokenizer_config.json") << R"({"eos_token": "</s>"})";
  for (const auto& path : {folder, folder / "tokenizer.json"})
    EXPECT_EQ(io::open_tokenizer(path.string())->eos(), 11) << path;
  std::filesystem::remove_all(folder);
  EXPECT_THROW(io::open_tokenizer(folder.string()), Error);
}

TEST(TokenizerJson, takes_any_bytes) {
  Random random(21);
  for (const auto& file : {test::tiny_bpe(), test::tiny_word_piece(), test::tiny_unigram(), test::tiny_word_level()}) {
    const auto tokenizer = test::open(file);
    for (int round = 0; round < 200; ++round) {
      const std::string text = test::random_bytes(random, 1 + random.below(60)) + "x";
      const Ids ids = tokenizer->encode(text, {.add_special = false, .parse_special = true});
      EXPECT_FALSE(ids.empty());
      for (const int32_t id : ids) EXPECT_TRUE(id >= 0 && id < tokenizer->size());
      EXPECT_FALSE(tokenizer->decode(ids, true).empty());
    }
  }
}

TEST(TokenizerJson, takes_long_texts_in_near_linear_time) {
  json marks = test::tiny_bpe();
  marks["normalizer"] = {{"type", "NFD"}};
  for (const auto& file : {test::tiny_bpe(), test::tiny_word_piece(), test::tiny_unigram(), marks}) {
    const auto tokenizer = test::open(file);
    for (const std::string unit : {"a", " ", "ab", "\u0301\u0323", "\xFF", "<"}) {
      std::string text;
      while (text.size() < 1'000'000) text += unit;
      const auto start = std::chrono::steady_clock::now();
      EXPECT_FALSE(tokenizer->encode(text).empty());
      const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
      EXPECT_LT(passed.count(), 20) << "unit " << unit;  // anything quadratic takes hours
    }
  }
}

}  // namespace
}  // namespace foveate
