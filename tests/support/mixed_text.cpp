#include "tests/support/mixed_text.h"

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "foveate/io/unicode.h"

namespace foveate::test {

namespace {

constexpr size_t kChunkBytes = 16384;
constexpr int kChunksPerKind = 4;

struct CodePoints {
  uint32_t first, last;
};

template <class T, size_t n>
const T& pick(Random& random, const std::array<T, n>& items) {
  return items[random.below(n)];
}

std::string pick_character(Random& random, std::span<const CodePoints> ranges) {
  const CodePoints range = ranges[random.below(ranges.size())];
  return io::to_utf8(uint32_t(range.first + random.below(range.last - range.first + 1)));
}

std::string repeat(std::string_view text, uint64_t times) {
  std::string result;
  for (uint64_t i = 0; i < times; ++i) result += text;
  return result;
}

// A word of 1 .. longest characters.
std::string pick_word(Random& random, std::span<const CodePoints> ranges, uint64_t longest) {
  std::string word;
  for (uint64_t left = 1 + random.below(longest); left > 0; --left) word += pick_character(random, ranges);
  return word;
}

constexpr auto kWords = std::to_array<std::string_view>({
    "the",
    "of",
    "and",
    "to",
    "in",
    "a",
    "is",
    "that",
    "attention",
    "for",
    "it",
    "was",
    "on",
    "are",
    "as",
    "with",
    "his",
    "they",
    "at",
    "be",
    "this",
    "from",
    "have",
    "or",
    "by",
    "one",
    "had",
    "not",
    "but",
    "what",
    "all",
    "were",
    "when",
    "we",
    "there",
    "can",
    "an",
    "your",
    "which",
    "their",
    "said",
    "if",
    "do",
    "will",
    "each",
    "about",
    "how",
    "up",
    "out",
    "harbour",
    "whale",
    "captain",
    "quietly",
    "unbelievable",
    "antidisestablishmentarianism",
    "naïve",
    "café",
    "Zürich",
    "co-operate",
    "e.g.",
    "i.e.",
    "Mr.",
    "Dr.",
    "U.S.",
    "NATO",
    "iPhone",
    "McDonald",
    "re-enter",
    "state-of-the-art",
    "Straße",
    "œuvre",
    "façade",
    "jalapeño",
    "Ångström",
    "smörgåsbord",
    "I",
    "HTTP",
    "GPT-2",
    "xkcd",
    "qwerty",
    "Łódź",
});
constexpr auto kStops = std::to_array<std::string_view>({" ",  " ",  " ",  " ",   " ",   " ",  ", ",  ". ",    "; ",
                                                         "? ", "! ", ": ", " - ", " — ", "…",  ".\n", ".\n\n", "\r\n",
                                                         " (", ") ", " “", "” ",  "\"",  " '", "' "});

// One draw per statement: C++ leaves the order of operands open.
std::string prose(Random& random) {
  std::string text(pick(random, kWords));
  return text += pick(random, kStops);
}

constexpr auto kCode = std::to_array<std::string_view>({
    "for (size_t i = 0; i < n; ++i) {\n",
    "    return x->next != nullptr ? *x : y[i][j];\n",
    "}\n\n",
    "\tif err != nil {\n",
    "\t\treturn fmt.Errorf(\"%w: %d\", err, 0x1F)\n",
    "def __init__(self, *args, **kwargs):\n",
    "        self.x_1 = a[::-1]\n",
    "#include <vector>\n",
    "// why? no.\n",
    "/* a\n * b\n */\n",
    "SELECT * FROM t WHERE a='b' AND c<>\"d\";\n",
    "$ ls -la | grep '^d'\n",
    "let f = |x: &mut u8| -> Result<(), E> { Ok(*x += 1)? };\n",
    "{\"key\": [1, 2.5e-10, null, true], \"k2\": \"\\u00e9\\n\"}\n",
    "https://example.org/a/b?c=d&e=%20f#g\n",
    "user@example.com",
    "C:\\Windows\\System32\\",
    "/usr/bin/env",
    "camelCaseName",
    "snake_case_name",
    "SCREAMING_CASE",
    "kebab-case-name",
    "  ",
    "    ",
    "            ",
    "\n",
    ";;",
    "::",
    "->",
    "=>",
    "!==",
    "<<=",
    "&&",
    "||",
    "+=",
    "{{",
    "}}",
    "%%",
    "@@",
    "##",
    "```cpp\n",
    "```\n",
    "\\begin{align} x^2 &= y_{i+1} \\\\ \\end{align}\n",
});
std::string code(Random& random) { return std::string(pick(random, kCode)); }

constexpr auto kMarkup = std::to_array<std::string_view>({
    "<table>",    "</table>",  "<tr>",        "</tr>",
    "<td>",       "</td>",     "<h1>",        "</h1>",
    "<b>",        "</b>",      "<i>",         "</i>",
    "<s>",        "</s>",      "<u>",         "</u>",
    "<code>",     "</code>",   "<a>",         "<a href=\"#\">",
    "</a>",       "<li>",      "</li>",       "<ul>",
    "</ul>",      "<div>",     "</div>",      "<div class='x'>",
    "<span>",     "</span>",   "<img>",       "<br/>",
    "<!-- c -->", "&amp;",     "&#x1F600;",   "[multimodal]",
    "\n",         "\n\n",      " ",           "  ",
    "\t",         "text",      " a < b > c ", "<",
    ">",          "<<b>>",     "<b",          "b>",
    "<strong>",   "</strong>", "<html>",      "<body>",
});
std::string markup(Random& random) { return std::string(pick(random, kMarkup)); }

constexpr auto kSpecials = std::to_array<std::string_view>({
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|im_start|>user\n",
    "<|im_end|>\n",
    "<repo_name>",
    "<reponame>",
    "<file_sep>",
    "<jupyter_code>",
    "<empty_output>",
    "<bos>",
    "<eos>",
    "<pad>",
    "<unk>",
    "<mask>",
    "<start_of_turn>",
    "<end_of_turn>\n",
    "<start_of_image>",
    "<end_of_image>",
    "<unused0>",
    "<unused6241>",
    "<unused99>",
    "<0x0A>",
    "<0xFF>",
    "<|im_start",
    "im_end|>",
    "<|",
    "|>",
    "<start_of_turn",
    "<<bos>>",
    "</s>",
    "[multimodal]",
    " hello",
    "model\n",
    " ",
    "\n",
});
std::string specials(Random& random) { return std::string(pick(random, kSpecials)); }

constexpr auto kContractions = std::to_array<std::string_view>({
    "don't",   "I'm",   "we'll", "they've",  "you're", "it's",     "he'd", "DON'T", "I'M", "WE'LL",
    "don’t",   "I’m",   "we’ll", "they’ve",  "'s",     "'t",       "'re",  "'ve",   "'m",  "'ll",
    "'d",      "’s",    "'S",    "'LL",      "''s",    "' s",      "'",    "''",    "'''", "rock'n'roll",
    "o'clock", "'tis",  "l'été", "d’accord", "'sx",    "'r",       "'v",   "'l",    "5's", "é's",
    "_'s",     "dogs'", "`",     "´",        "‘x’",    "\"it's\"",
});
std::string contractions(Random& random) {
  std::string text(pick(random, kContractions));
  return text += repeat(" ", random.below(3));
}

constexpr auto kDigits = std::to_array<CodePoints>({
    {0x30, 0x39},       {0x30, 0x39},       {0x30, 0x39},       {0x660, 0x669},     {0x6F0, 0x6F9},
    {0x966, 0x96F},     {0x9E6, 0x9EF},     {0xE50, 0xE59},     {0xFF10, 0xFF19},   {0x2160, 0x2188},
    {0xB2, 0xB3},       {0xBC, 0xBE},       {0x2460, 0x249B},   {0x3021, 0x3029},   {0x1D7CE, 0x1D7FF},
    {0x104A0, 0x104A9}, {0x11F50, 0x11F59}, {0x1E4F0, 0x1E4F9}, {0x1D2C0, 0x1D2D3}, {0x4E00, 0x4E09},
});
constexpr auto kDigitMarks = std::to_array<std::string_view>(
    {"", "", "", " ", "  ", ".", ",", "-", "/", "e", "%", "$", "€", "x", "th", "\n", "٫", "°"});
std::string digits(Random& random) {
  const bool plain = random.below(2) == 0;
  const std::span<const CodePoints> ranges = plain ? std::span(kDigits).first(1) : std::span(kDigits);
  std::string text = pick_word(random, ranges, 8);
  return text += pick(random, kDigitMarks);
}

constexpr auto kEmoji = std::to_array<CodePoints>({{0x1F600, 0x1F64F},
                                                   {0x1F300, 0x1F5FF},
                                                   {0x1F680, 0x1F6FC},
                                                   {0x1F900, 0x1F9FF},
                                                   {0x2600, 0x27BF},
                                                   {0x1FA70, 0x1FAF8}});
constexpr auto kSequences = std::to_array<std::string_view>({
    "👨‍👩‍👧‍👦",
    "👩🏽‍🚀",
    "🏳️‍🌈",
    "🏴‍☠️",
    "❤️‍🔥",
    "👍🏿",
    "🤦🏼‍♂️",
    "🇩🇪",
    "🇯🇵🇧🇷",
    "1️⃣",
    "#️⃣",
    "☺️",
    "☺︎",
    "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "‍",
    "️",
    " ",
    "  ",
    "ok",
    "\n",
    ":-)",
    "¯\\_(ツ)_/¯",
});
std::string emoji(Random& random) {
  return random.below(2) == 0 ? pick_character(random, kEmoji) : std::string(pick(random, kSequences));
}

// Words of a script with spaces and marks between.
template <size_t n>
std::string script(Random& random, const std::array<CodePoints, n>& letters, std::string_view marks) {
  std::string text = pick_word(random, letters, 9);
  const uint64_t choice = random.below(6);
  if (choice < 4) text += " ";
  if (choice >= 3) text += marks;
  if (choice == 5) text += "\n";
  return text;
}

constexpr auto kHan = std::to_array<CodePoints>({{0x4E00, 0x9FFF},
                                                 {0x4E00, 0x5FFF},
                                                 {0x3041, 0x3096},
                                                 {0x30A1, 0x30FC},
                                                 {0xAC00, 0xD7A3},
                                                 {0xFF01, 0xFF5E},
                                                 {0x3000, 0x3011},
                                                 {0x20000, 0x2A6DF},
                                                 {0x2EBF0, 0x2EE5D},
                                                 {0x31350, 0x323AF}});
constexpr auto kEuropean = std::to_array<CodePoints>({{0x410, 0x44F},
                                                      {0x400, 0x52F},
                                                      {0x391, 0x3A1},
                                                      {0x3B1, 0x3C9},
                                                      {0x1F00, 0x1F15},
                                                      {0x10D0, 0x10FF},
                                                      {0x531, 0x556},
                                                      {0xC0, 0x17F}});
constexpr auto kRightToLeft = std::to_array<CodePoints>({{0x627, 0x64A},
                                                         {0x627, 0x64A},
                                                         {0x64B, 0x652},
                                                         {0x5D0, 0x5EA},
                                                         {0x591, 0x5C7},
                                                         {0x671, 0x6D3},
                                                         {0x710, 0x72F},
                                                         {0xFE70, 0xFEFC},
                                                         {0x200E, 0x200F},
                                                         {0x202A, 0x202E}});
constexpr auto kIndic = std::to_array<CodePoints>({{0x904, 0x939},
                                                   {0x93A, 0x94D},
                                                   {0x985, 0x9B9},
                                                   {0x9BC, 0x9CD},
                                                   {0xB85, 0xBCD},
                                                   {0xE01, 0xE3A},
                                                   {0xE40, 0xE4E},
                                                   {0x1780, 0x17D3},
                                                   {0x1000, 0x103E},
                                                   {0x200C, 0x200D},
                                                   {0xF40, 0xFBC},
                                                   {0x1200, 0x1357}});
std::string cjk(Random& random) { return script(random, kHan, "、。「」"); }
std::string european(Random& random) { return script(random, kEuropean, "; · «»"); }
std::string right_to_left(Random& random) { return script(random, kRightToLeft, "، ؟ ״"); }
std::string indic(Random& random) { return script(random, kIndic, "। ๆ "); }

constexpr auto kBases =
    std::to_array<CodePoints>({{0x41, 0x5A}, {0x61, 0x7A}, {0x20, 0x20}, {0x1100, 0x1112}, {0x25CC, 0x25CC}});
constexpr auto kMarks = std::to_array<CodePoints>({{0x300, 0x36F},
                                                   {0x1AB0, 0x1ACE},
                                                   {0x20D0, 0x20F0},
                                                   {0x1161, 0x1175},
                                                   {0x11A8, 0x11C2},
                                                   {0xFE20, 0xFE2F},
                                                   {0x483, 0x489}});
std::string combining(Random& random) {
  std::string text = pick_character(random, kBases);
  return text += random.below(4) == 0 ? "" : pick_word(random, kMarks, 5);
}

constexpr auto kControls = std::to_array<CodePoints>({{0x00, 0x1F},
                                                      {0x7F, 0x9F},
                                                      {0x200B, 0x200F},
                                                      {0x2028, 0x202F},
                                                      {0xAD, 0xAD},
                                                      {0x2060, 0x206F},
                                                      {0xFFF9, 0xFFFD},
                                                      {0xFEFF, 0xFEFF},
                                                      {0x61, 0x66},
                                                      {0x20, 0x20},
                                                      {0x180E, 0x180E},
                                                      {0xFFFE, 0xFFFF},
                                                      {0xE0001, 0xE007F}});
std::string controls(Random& random) { return pick_word(random, kControls, 4); }

constexpr auto kSpaces =
    std::to_array<std::string_view>({" ", " ", "\n", "\n", "\t", "\r\n", "\r", "\u00a0", "\u2003", "\u3000", "\u2581",
                                     "\u0085", "\u2028", "\v", "\f", "\u180e", "\u1680", "\u205f"});
constexpr auto kBetween =
    std::to_array<std::string_view>({"", "", "x", "Word", "5", "!", "é", "'s", "\u2581", "<b>", ">"});
std::string spaces(Random& random) {
  const uint64_t longest = random.below(20) == 0 ? 200 : 6;
  const std::string_view space = pick(random, kSpaces);
  std::string text = repeat(space, 1 + random.below(longest));
  return text += pick(random, kBetween);
}

constexpr auto kSymbols = std::to_array<CodePoints>({{0x21, 0x2F},
                                                     {0x3A, 0x40},
                                                     {0x5B, 0x60},
                                                     {0x7B, 0x7E},
                                                     {0xA1, 0xBF},
                                                     {0x2010, 0x2027},
                                                     {0x20A0, 0x20BF},
                                                     {0x2190, 0x23FF},
                                                     {0x2500, 0x25FF},
                                                     {0x2581, 0x2581},
                                                     {0x3001, 0x303F},
                                                     {0x61, 0x7A},
                                                     {0x20, 0x20}});
std::string symbols(Random& random) {
  const std::string symbol = pick_character(random, kSymbols);
  return random.below(8) == 0 ? repeat(symbol, 1 + random.below(70)) : symbol;
}

constexpr auto kEverything = std::to_array<CodePoints>({{0x0, 0x7FF},
                                                        {0x800, 0x1FFF},
                                                        {0x2000, 0xD7FF},
                                                        {0xE000, 0xFFFF},
                                                        {0x10000, 0x1FFFF},
                                                        {0x20000, 0x3FFFF},
                                                        {0xE0000, 0xE01EF},
                                                        {0xF0000, 0x10FFFF},
                                                        {0x61, 0x7A},
                                                        {0x20, 0x20}});
std::string everything(Random& random) { return pick_word(random, kEverything, 6); }

// Long words without a space.
std::string runs(Random& random) {
  const uint64_t choice = random.below(3);
  if (choice < 2) {
    const std::string part = choice == 0 ? std::string(pick(random, kWords)) : pick_character(random, kBases);
    return repeat(part, 1 + random.below(choice == 0 ? 300 : 2000));
  }
  return pick_word(random, std::span(kBases).subspan(1, 1), 1000);
}

struct Kind {
  std::string_view name;
  std::string (*part)(Random&);
};
constexpr auto kKinds = std::to_array<Kind>({
    {"prose", prose},
    {"code", code},
    {"markup", markup},
    {"specials", specials},
    {"contractions", contractions},
    {"digits", digits},
    {"emoji", emoji},
    {"cjk", cjk},
    {"european", european},
    {"right_to_left", right_to_left},
    {"indic", indic},
    {"combining", combining},
    {"controls", controls},
    {"spaces", spaces},
    {"symbols", symbols},
    {"everything", everything},
    {"runs", runs},
});

}  // namespace

std::string random_bytes(Random& random, size_t count) {
  using namespace std::string_view_literals;
  constexpr auto kEdges = "\x00\x7f\x80\xbf\xc0\xc2\xdf\xe0\xed\xef\xf0\xf4\xf5\xff\xa0\x9f\xe2\x96\x81 a\n"sv;
  std::string text;
  for (size_t i = 0; i < count; ++i)
    text += random.below(2) ? char(random.below(256)) : kEdges[random.below(kEdges.size())];
  return text;
}

std::vector<TextChunk> mixed_text() {
  std::vector<TextChunk> chunks;
  for (size_t kind = 0; kind <= kKinds.size(); ++kind)
    for (int i = 0; i < kChunksPerKind; ++i) {
      Random random(2026, kind * kChunksPerKind + uint64_t(i));
      TextChunk chunk{kind < kKinds.size() ? std::string(kKinds[kind].name) : "mixture", ""};
      while (chunk.text.size() < kChunkBytes)
        chunk.text += (kind < kKinds.size() ? kKinds[kind] : pick(random, kKinds)).part(random);
      chunks.push_back(std::move(chunk));
    }
  return chunks;
}

}  // namespace foveate::test
