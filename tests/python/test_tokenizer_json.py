"""tokenizer.json against the `tokenizers` package: ids and text of every stage and of the families' configurations.

Small vocabularies are trained on the mixed text; MiniLM's own file is used where it has been fetched.
"""

import base64
import json
import random
import struct
import subprocess

import pytest

gguf = pytest.importorskip("gguf")
tokenizers = pytest.importorskip("tokenizers")
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors  # noqa: E402
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordLevelTrainer, WordPieceTrainer  # noqa: E402

BYTES = [f"<0x{b:02X}>" for b in range(256)]
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3, QWEN2 = WORDS + r"\p{N}{1,3}" + REST, WORDS + r"\p{N}" + REST
CLIP = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"

# What a random string is made of: case pairs without a simple rule, marks, composed and decomposed Hangul, ligatures,
# ideographs of every block, all white space, controls, joiners, letters newer than most tables, specials.
ODD = (
    "aZ09 .,'!?-_#@ΣσςİıßẞǅŉΐﬁﬃſKÅéÉe\u0301\u0323\u0307ñ가각\u1100\u1161\u11a8힣漢字㐀𠀀𪜀﨑豈①²½Ⅷ٣৪๕𝟘😀👨\u200d👩🏽\ufe0f🇩🇪"
    "\t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000\u180e\u200b\u200c\u200e\u2060\ufeff\xad\x00\x01"
    "\x7f\x9f\ufffd\ufffe▁Ġ\u0345\u0334\u0f71\u0f72\u0f74\u1ab0\u0898\u08d4\u1dfa\U00010d24\U00011938\U0001e08f᭎\U00010d50"
    "\U00016ea0Ꟊ\u1c89∞€$+<=>|~`^«»„“‘’…—–٪؟،।、。「」・カタガがﾊﾟﾀﾞｱＡａ１㎏㍿ﷺ\u0e33\u0eb3𝒜𝕬ᾳᾼᏸꭰⓐⒶ🄰\U000e0041\U000f0000\u0378"
)
SPECIALS = ["<s>", "</s>", "<unk>", "<mask>", " <mask> ", "[CLS]", "[SEP]", "[MASK]", "<bos>", "<eos>", "<|end|>", "<tag>", "tag",
            "<|im_start|>user\n", "Word", "word"]


@pytest.fixture(scope="module")
def odd() -> list[str]:
    """A few thousand random strings."""
    source = random.Random(2026)

    def part() -> str:
        choice = source.random()
        if choice < 0.7:
            return source.choice(ODD)
        if choice < 0.8:
            return source.choice(SPECIALS)
        code_point = source.choice([source.randrange(0x3000), source.randrange(0x20000), source.randrange(0x110000)])
        return "" if 0xD800 <= code_point < 0xE000 else chr(code_point)

    return ["".join(part() for _ in range(source.randrange(1, 24))) for _ in range(3000)]


def answers(build, path, queries: list[tuple[str, bool, bool]]) -> list[tuple[list[int], str]]:
    """(ids, decoded text) of (text, add_special, parse_special)."""
    message = b"".join(b"%d %d %d\n%s" % (len(t.encode()), add, parse, t.encode()) for t, add, parse in queries)
    done = subprocess.run([build / "tests" / "tokenizer_tool", path], input=message, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    found, data, at = [], done.stdout, 0
    for _ in queries:
        line, size = data.index(b"\n", at), 0
        ids = [int(number) for number in data[at:line].split()]
        at = line + 1
        line = data.index(b"\n", at)
        size = int(data[at:line])
        found.append((ids, data[line + 1 : line + 1 + size].decode(errors="replace")))
        at = line + 1 + size + 1
    return found


BOTH_WAYS = [(True, True), (False, False)]  # with special tokens added and parsed, and without


def compare(build, folder, tokenizer, texts: dict[str, str], odd: list[str], decoded=True, path=None, ways=BOTH_WAYS):
    """Every text by the tokenizer of `path` (written here if none is given) and by the package's."""
    if path is None:
        path = folder / "tokenizer.json"
        path.write_text(tokenizer.to_str(), encoding="utf-8")
    every = [(kind, text) for kind, text in texts.items()] + [(f"odd {i}", text) for i, text in enumerate(odd)]
    for add, parse in ways:
        tokenizer.encode_special_tokens = not parse
        found = answers(build, path, [(text, add, parse) for _, text in every])
        for (name, text), (ids, back) in zip(every, found):
            expected = tokenizer.encode(text, add_special_tokens=add).ids
            if ids != expected:
                at = next((i for i, (a, b) in enumerate(zip(ids, expected)) if a != b), min(len(ids), len(expected)))
                near = [tokenizer.id_to_token(i) for i in expected[max(0, at - 3) : at + 6]]
                got = [tokenizer.id_to_token(i) for i in ids[max(0, at - 3) : at + 6]]
                shown = ascii(text) if len(text) < 200 else ""
                pytest.fail(f"{name}, add {add}, parse {parse}, id {at}: {near} expected, got {got} {shown}")
            if decoded and expected:
                wanted = tokenizer.decode(expected, skip_special_tokens=not parse)
                assert back == wanted, f"{name}, add {add}, parse {parse}: decoded"


@pytest.fixture(scope="module")
def short(texts) -> dict[str, str]:
    """A part of every kind of text, for the many single stages."""
    return {kind: text[:5000] for kind, text in texts.items()}


def spelling() -> models.BPE:
    """A model whose ids spell the pieces: bytes, and "|" before every character that does not begin a piece."""
    vocabulary = {token: i for i, token in enumerate(BYTES + ["<unk>"])}
    return models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True, continuing_subword_prefix="|")


NORMALIZERS = {
    "nfc": normalizers.NFC(),
    "nfd": normalizers.NFD(),
    "nfkc": normalizers.NFKC(),
    "nfkd": normalizers.NFKD(),
    "lowercase": normalizers.Lowercase(),
    "strip accents": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
    "bert": normalizers.BertNormalizer(),
    "bert cased": normalizers.BertNormalizer(lowercase=False),
    "bert with accents": normalizers.BertNormalizer(strip_accents=False, handle_chinese_chars=False),
    "bert unclean": normalizers.BertNormalizer(clean_text=False, lowercase=False, strip_accents=True),
    "prepend": normalizers.Prepend("▁x"),
    "replace text": normalizers.Replace("a", "bb"),
    "replace pattern": normalizers.Replace(Regex(r"\s+|e?"), "-"),
    "strip": normalizers.Strip(),
    "strip left": normalizers.Strip(left=True, right=False),
    "nmt": normalizers.Nmt(),
    "byte level": normalizers.ByteLevel(),
}


@pytest.mark.parametrize("name", NORMALIZERS)
def test_normalizers(name, build, tmp_path, short, odd):
    tokenizer = Tokenizer(spelling())
    tokenizer.normalizer = NORMALIZERS[name]
    compare(build, tmp_path, tokenizer, short, odd[:1500], decoded=False)
    if name.startswith("bert") or name == "strip accents":
        return  # a first character that loses the first part of its decomposition has no place of its own here
    # Where a piece begins decides what "first" prepends to.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    compare(build, tmp_path, tokenizer, {}, odd[:1500], decoded=False)


BEHAVIORS = ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"]
PRE_TOKENIZERS = {
    "byte level": pre_tokenizers.ByteLevel(),
    "byte level without a prefix": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "byte level without a pattern": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    "digits": pre_tokenizers.Digits(),
    "single digits": pre_tokenizers.Digits(individual_digits=True),
    "whitespace": pre_tokenizers.Whitespace(),
    "whitespace split": pre_tokenizers.WhitespaceSplit(),
    "bert": pre_tokenizers.BertPreTokenizer(),
    "metaspace": pre_tokenizers.Metaspace(),
    "metaspace first": pre_tokenizers.Metaspace(replacement="_", prepend_scheme="first"),
    "metaspace never": pre_tokenizers.Metaspace(prepend_scheme="never", split=False),
    "delimiter": pre_tokenizers.CharDelimiterSplit("a"),
    "words, then metaspace": pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="first")]
    ),
    "llama 3": pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
    "clip": pre_tokenizers.Split(Regex(CLIP), "removed", invert=True),
    "bloom": pre_tokenizers.Split(Regex(BLOOM), "isolated"),
    "classes": pre_tokenizers.Split(Regex(r"\w+|\d|[&x]|\p{P}\p{M}*|\p{^Cc}\P{L}"), "isolated"),
    "empty matches": pre_tokenizers.Split(Regex(r"(?=a)|\b"), "isolated"),
    "lines": pre_tokenizers.Split(Regex(r"^.|.$|(?m:9.0)|\h{2,}|[\S&[ab]]{,2}\x{e9}"), "isolated"),
} | {
    f"split text {behavior}": pre_tokenizers.Split(" ", behavior) for behavior in BEHAVIORS
} | {
    f"split pattern {behavior} inverted": pre_tokenizers.Split(Regex(r"\p{L}+"), behavior, invert=True) for behavior in BEHAVIORS
} | {f"punctuation {behavior}": pre_tokenizers.Punctuation(behavior) for behavior in BEHAVIORS}


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_pre_tokenizers(name, build, tmp_path, short, odd):
    tokenizer = Tokenizer(spelling())
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[name]
    compare(build, tmp_path, tokenizer, short, odd[:1500], decoded=False)


def with_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """The same with a token for every byte."""
    data = json.loads(tokenizer.to_str())
    vocabulary = data["model"]["vocab"]
    if isinstance(vocabulary, list):
        vocabulary += [[token, -20.0] for token in BYTES]
    else:
        vocabulary |= {token: len(vocabulary) + i for i, token in enumerate(BYTES)}
    data["model"]["byte_fallback"] = True
    return Tokenizer.from_str(json.dumps(data))


def train(tokenizer: Tokenizer, trainer, texts: dict[str, str]) -> Tokenizer:
    tokenizer.train_from_iterator([text[:40000] for kind, text in texts.items() if kind != "runs"], trainer)
    return tokenizer


def gemma(texts):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    trainer = BpeTrainer(vocab_size=2500, special_tokens=specials, limit_alphabet=800, show_progress=False, max_token_length=12)
    tokenizer = with_bytes(train(tokenizer, trainer, {k: t[:8000] for k, t in texts.items()}))
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("<tag>", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def llama2(texts):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    specials = ["<unk>", "<s>", "</s>"]
    trainer = BpeTrainer(vocab_size=2500, special_tokens=specials, limit_alphabet=800, show_progress=False, max_token_length=12)
    tokenizer = with_bytes(train(tokenizer, trainer, {k: t[:8000] for k, t in texts.items()}))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    strip = decoders.Strip(content=" ", left=1)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return tokenizer


def byte_level(texts, pre_tokenizer, normalizer=None, keeps_whole=False, specials=("<|end|>", "<|im_start|>"), **options):
    tokenizer = Tokenizer(models.BPE(ignore_merges=keeps_whole, **options))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=3000, initial_alphabet=alphabet, special_tokens=list(specials), show_progress=False,
                         **({"end_of_word_suffix": options["end_of_word_suffix"]} if "end_of_word_suffix" in options else {}))
    return train(tokenizer, trainer, texts)


def split_bytes(pattern, behavior="isolated", invert=False):
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior, invert), byte])


def llama3(texts):
    tokenizer = byte_level(texts, split_bytes(LLAMA3), keeps_whole=True)
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 0)])]
    )
    return tokenizer


def qwen(texts):
    tokenizer = byte_level(texts, split_bytes(QWEN2), normalizers.NFC())
    tokenizer.add_special_tokens([AddedToken("<tag>", normalized=False, special=True)])
    tokenizer.add_tokens(["Word", AddedToken("étag", normalized=True)])
    return tokenizer


def gpt2(texts):
    return byte_level(texts, pre_tokenizers.ByteLevel(add_prefix_space=False))


def roberta(texts):
    tokenizer = byte_level(texts, pre_tokenizers.ByteLevel(add_prefix_space=True), specials=("<s>", "</s>", "<unk>"))
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True, normalized=False)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return tokenizer


def clip(texts):
    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    tokenizer = byte_level(texts, split_bytes(CLIP, "removed", True), normalizer, unk_token="<|end|>", end_of_word_suffix="</w>",
                           continuing_subword_prefix="")
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return tokenizer


def bert(texts, add_tokens=True, **options):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(**options)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = WordPieceTrainer(vocab_size=3000, special_tokens=specials, limit_alphabet=1500, show_progress=False)
    train(tokenizer, trainer, texts)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.decoder = decoders.WordPiece()
    if add_tokens:
        tokenizer.add_tokens([AddedToken("TAG", single_word=True), AddedToken("<tag>", normalized=False, lstrip=True)])
    return tokenizer


def unigram(texts, normalizer, pre_tokenizer, **options):
    tokenizer = Tokenizer(models.Unigram())
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = UnigramTrainer(vocab_size=3000, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False,
                             n_sub_iterations=1, max_piece_length=8)
    # few characters, as each becomes a token, and no special tokens, which the trainer would list twice
    kinds = ["prose", "code", "digits", "contractions", "european"]
    train(tokenizer, trainer, {kind: texts[kind] for kind in kinds})
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.decoder = decoders.Metaspace(**options)
    return tokenizer


def t5(texts):
    return unigram(texts, None, pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]))


def albert(texts):
    normalizer = normalizers.Sequence([normalizers.Replace("``", '"'), normalizers.Replace("''", '"'), normalizers.NFKD(),
                                       normalizers.StripAccents(), normalizers.Lowercase()])
    return unigram(texts, normalizer, pre_tokenizers.Metaspace())


def unigram_with_bytes(texts):
    return with_bytes(unigram(texts, None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False), prepend_scheme="first"))


def double_array(replacements: dict[str, str]) -> bytes:
    """A Darts trie of SentencePiece's precompiled_charsmap: units, each placed where all its children are free."""
    offsets, blob = {}, b""
    for source, target in replacements.items():
        offsets[source.encode()] = len(blob)
        blob += target.encode() + b"\0"
    units: dict[int, int] = {}

    def place(prefix: bytes, index: int) -> None:
        following = sorted({key[len(prefix)] for key in offsets if key.startswith(prefix) and len(key) > len(prefix)})
        labels = ([0] if prefix in offsets else []) + following
        base = next(b for b in range(1, 1 << 20) if all(((index ^ b) ^ label) not in units for label in labels))
        for label in labels:
            units[index ^ base ^ label] = label
        units[index] |= base << 10 | (1 << 8 if prefix in offsets else 0)
        if prefix in offsets:
            units[index ^ base] = 1 << 31 | offsets[prefix]
        for label in following:
            place(prefix + bytes([label]), index ^ base ^ label)

    units[0] = 0
    place(b"", 0)
    size = (max(units) | 255) + 1
    trie = struct.pack(f"<{size}I", *(units.get(i, 0) for i in range(size)))
    return struct.pack("<I", len(trie)) + trie + blob


# Some of what SentencePiece's nmt_nfkc does, and a beginning that hides what follows it.
CHARSMAP = normalizers.Precompiled(
    double_array(
        {"\t": " ", "\n": " ", "\u00a0": " ", "\u3000": " ", "\ufb01": "fi", "A\u030a": "\u00c5", "e\u0301": "\u00e9",
         "\u2460": "1", "\u30ab": "GA", "\u30ab\u3099": "hidden", "\u200b": " ", "\x01": "", "\ufe0f": "", "\uff41": "a",
         "\u337f": "\u682a\u5f0f\u4f1a\u793e", "\u00e9": "E", "\r\n": "/", "\r": "\r", "\U0001f1e9": "D", "\u0334": ""}
    )
)


def t5_with_charsmap(texts):
    normalizer = normalizers.Sequence([CHARSMAP, normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")])
    return unigram(texts, normalizer, pre_tokenizers.Metaspace())


def word_level(texts):
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return train(tokenizer, WordLevelTrainer(vocab_size=2000, special_tokens=["<unk>"], show_progress=False), texts)


FAMILIES = [gemma, llama2, llama3, qwen, gpt2, roberta, clip, bert, t5, t5_with_charsmap, albert, unigram_with_bytes, word_level]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_families(family, build, tmp_path, texts, odd):
    compare(build, tmp_path, family(texts), texts, odd)


def test_bert_with_case(build, tmp_path, texts, odd):
    compare(build, tmp_path, bert(texts, lowercase=False), texts, odd)


def to_gguf(path, tokenizer: Tokenizer, kind: str) -> None:
    """The vocabulary as convert_hf_to_gguf.py of llama.cpp writes it."""
    model = json.loads(tokenizer.to_str())["model"]
    specials = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    if kind == "bert":
        tokens = sorted(model["vocab"], key=model["vocab"].get)
        shown = [t if t in specials else t[2:] if t.startswith("##") else "▁" + t for t in tokens]
    else:
        tokens = shown = [token for token, _ in model["vocab"]]
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_tokenizer_model(kind)
    writer.add_token_list(shown)
    writer.add_token_types([gguf.TokenType.CONTROL if t in specials else gguf.TokenType.NORMAL for t in tokens])
    if kind == "bert":
        writer.add_bos_token_id(tokenizer.token_to_id("[CLS]"))
        writer.add_sep_token_id(tokenizer.token_to_id("[SEP]"))
        writer.add_unk_token_id(tokenizer.token_to_id("[UNK]"))
    else:
        writer.add_token_scores([score for _, score in model["vocab"]])
        writer.add_eos_token_id(tokenizer.token_to_id("</s>"))
        writer.add_unk_token_id(tokenizer.token_to_id("<unk>"))
        writer.add_add_space_prefix(True)
        writer.add_remove_extra_whitespaces(True)
        if tokenizer.normalizer:
            charsmap = json.loads(tokenizer.to_str())["normalizer"]["normalizers"][0]["precompiled_charsmap"]
            writer.add_precompiled_charsmap(base64.b64decode(charsmap))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_bert_vocabulary_in_gguf(build, tmp_path, texts, odd):
    # The file's mark of a word start cannot be told from a U+2581 of the text: the vocabulary has none.
    tokenizer = bert({kind: text.replace("▁", "_") for kind, text in texts.items()}, add_tokens=False)
    path = tmp_path / "bert.gguf"
    to_gguf(path, tokenizer, "bert")
    compare(build, tmp_path, tokenizer, texts, odd, path=path)


def test_t5_vocabulary_in_gguf(build, tmp_path, texts, odd):
    tokenizer = t5_with_charsmap(texts)
    path = tmp_path / "t5.gguf"
    to_gguf(path, tokenizer, "t5")
    # A GGUF file keeps fp32 scores: so does the reference.
    data = json.loads(tokenizer.to_str())
    data["model"]["vocab"] = [[t, struct.unpack("f", struct.pack("f", score))[0]] for t, score in data["model"]["vocab"]]
    # Where special tokens are not parsed, the package's model may still spell </s> by that token; ours never does.
    compare(build, tmp_path, Tokenizer.from_str(json.dumps(data)), texts, odd, path=path, ways=[(True, True)])


def test_charsmap(build, tmp_path, short, odd):
    tokenizer = Tokenizer(spelling())
    tokenizer.normalizer = CHARSMAP
    compare(build, tmp_path, tokenizer, short, odd[:1500], decoded=False)


def test_minilm(build, tmp_path, cache, texts, odd):
    file = cache / "models" / "minilm" / "tokenizer.json"
    if not file.exists():
        pytest.skip(f"{file} is not there: python3 tools/fetch.py minilm")
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    compare(build, tmp_path, tokenizer, texts, odd)
