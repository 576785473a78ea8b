"""Writes foveate/io/pipeline/unicode_tables.h: where the Unicode tables inside the `tokenizers` package differ from
those of utf8proc 2.8 (Unicode 15.0) and PCRE2 10.42 (Unicode 14.0, asked here through Python 3.11).

    .venv/bin/python tools/make_unicode_tables.py > foveate/io/pipeline/unicode_tables.h

The package carries several versions of Unicode at once; it is asked character by character.
"""

import ctypes
import sys
import unicodedata

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

assert unicodedata.unidata_version == "14.0.0", "Python 3.11 has the tables that PCRE2 10.42 has"
assert tokenizers.__version__ == "0.22.2"
CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
UTF8PROC = ctypes.CDLL("libutf8proc.so.2")
UTF8PROC.utf8proc_category_string.restype = ctypes.c_char_p
CATEGORY = {c: UTF8PROC.utf8proc_category_string(c).decode() for c in CODE_POINTS}
BASE, MARK = "a", "\u0334"  # a mark of the lowest class but 0


def combining_class(c: int) -> int:
    UTF8PROC.utf8proc_get_property.restype = ctypes.POINTER(ctypes.c_int16)
    return UTF8PROC.utf8proc_get_property(c)[1]


def split(splitter, code_points=CODE_POINTS, around="a") -> set[int]:
    """The code points that `splitter` cuts out of their surroundings."""
    return {c for c in code_points if len(splitter.pre_tokenize_str(around + chr(c) + around)) == 3}


def removed(normalizer) -> set[int]:
    return {c for c in CODE_POINTS if normalizer.normalize_str(chr(c)) == ""}


def bert(**options):
    off = dict(clean_text=False, handle_chinese_chars=False, strip_accents=False, lowercase=False)
    return normalizers.BertNormalizer(**(off | options))


def ranges(code_points) -> list[tuple[int, int]]:
    found: list[list[int]] = []
    for c in sorted(code_points):
        # a gap of surrogates is none
        if found and c - 1 == found[-1][1]:
            found[-1][1] = c
        else:
            found.append([c, c])
    return [(first, last) for first, last in found]


def write(name: str, comment: str, entries: list[str], kind: str = "CodePoints") -> None:
    print(f"\n// {comment}\ninline constexpr {kind} {name}[] = {{")
    line = "   "
    for entry in entries:
        if len(line) + len(entry) + 2 > 118:
            print(line)
            line = "   "
        line += f" {entry},"
    print(line + "\n};")


def write_ranges(name: str, comment: str, code_points) -> None:
    write(name, comment, [f"{{0x{first:X}, 0x{last:X}}}" for first, last in ranges(code_points)])


def changed_categories() -> list[str]:
    """Of the package's patterns (Unicode 16) against Unicode 14."""
    entries = []
    for category in sorted(set(CATEGORY.values()) - {"Cn", "Cs", "Co", "Cc"}):
        around = "+" if category[0] == "L" else "a"
        found = split(pre_tokenizers.Split(Regex(rf"\p{{{category}}}"), "isolated"), around=around)
        new = {c for c in found if unicodedata.category(chr(c)) != category}
        entries += [(first, last, category) for first, last in ranges(new)]
    return [f"{{0x{first:X}, 0x{last:X}, \"{category}\"}}" for first, last, category in sorted(entries)]


def lower_cases() -> list[str]:
    """(first, last, distance) of capitals that utf8proc does not know."""
    lower = normalizers.Lowercase()
    entries: list[list[int]] = []
    for c in CODE_POINTS:
        text = lower.normalize_str(chr(c))
        if len(text) != 1 or ord(text) == UTF8PROC.utf8proc_tolower(c):
            continue
        distance = ord(text) - c
        if entries and entries[-1][1] == c - 1 and entries[-1][2] == distance:
            entries[-1][1] = c
        else:
            entries.append([c, c, distance])
    return [f"{{0x{first:X}, 0x{last:X}, {distance}}}" for first, last, distance in entries]


def not_normalised() -> set[int]:
    """Characters that decompose or are reordered in utf8proc, but not in the package."""
    nfd, nfkd = normalizers.NFD(), normalizers.NFKD()
    late = set()
    for c in CODE_POINTS:
        text = chr(c)
        decomposes = UTF8PROC.utf8proc_decompose_char(c, (ctypes.c_int32 * 32)(), 32, 1 << 4 | 1 << 2, None) > 1
        single = (ctypes.c_int32 * 32)()
        UTF8PROC.utf8proc_decompose_char(c, single, 32, 1 << 4 | 1 << 2, None)
        if (decomposes or single[0] != c) and nfkd.normalize_str(text) == text:
            late.add(c)
        if combining_class(c) > 1 and nfd.normalize_str(BASE + text + MARK) == BASE + text + MARK:
            late.add(c)
    return late


def main() -> None:
    print("// Where the Unicode tables inside the `tokenizers` package differ from those of utf8proc and PCRE2.")
    print("// Written by tools/make_unicode_tables.py with tokenizers 0.22.2.")
    print("#pragma once\n\n#include <cstdint>\n\nnamespace foveate::io {")
    print("\nstruct CodePoints {\n  uint32_t first, last;\n};")
    print("struct Categorised {\n  uint32_t first, last;\n  const char* category;\n};")
    print("struct LowerCase {\n  uint32_t first, last;\n  int32_t distance;\n};")
    write("kSince14", "What has another category in Unicode 16 than in Unicode 14.", changed_categories(), "Categorised")
    numbers = split(pre_tokenizers.Digits(individual_digits=True))
    known = split(pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"))
    write_ranges("kNumbersSince16", "Numbers of Unicode 17.", numbers - known)
    assert not known - numbers
    write("kLowerSince15", "Capitals of Unicode 16 and 17: how far away their lower case is.", lower_cases(), "LowerCase")
    marks = removed(bert(strip_accents=True))
    nonspacing = {c for c in CODE_POINTS if CATEGORY[c] == "Mn"}
    write_ranges("kNotNonspacing8", "Non-spacing marks that are none for BertNormalizer (Unicode 8).", nonspacing - marks)
    write_ranges("kNonspacing8", "And the reverse.", marks - nonspacing)
    marks = removed(normalizers.StripAccents())
    all_marks = {c for c in CODE_POINTS if CATEGORY[c][0] == "M"}
    write_ranges("kNotMark9", "Marks that are none for StripAccents (Unicode 9).", all_marks - marks)
    write_ranges("kMark9", "And the reverse.", marks - all_marks)
    punctuation = split(pre_tokenizers.Punctuation())
    all_punctuation = {c for c in CODE_POINTS if CATEGORY[c][0] == "P" or (c < 128 and CATEGORY[c][0] == "S")}
    write_ranges("kNotPunctuation8", "Punctuation that is none for BertPreTokenizer (Unicode 8).",
                 all_punctuation - punctuation)
    write_ranges("kPunctuation8", "And the reverse.", punctuation - all_punctuation)
    other = removed(bert(clean_text=True)) - {0xFFFD}
    all_other = {c for c in CODE_POINTS if CATEGORY[c] in ("Cc", "Cf", "Co") and c not in (9, 10, 13)}
    write_ranges("kNotOther8", "Controls that BertNormalizer keeps (Unicode 8).", all_other - other)
    assert not other - all_other
    write_ranges("kNotNormalised", "Decomposed or reordered by utf8proc, but not by the package (Unicode 12).",
                 not_normalised())
    print("\n}  // namespace foveate::io")


if __name__ == "__main__":
    sys.exit(main())
