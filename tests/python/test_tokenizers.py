"""Byte-level BPE of every split pattern against the `tokenizers` package: small vocabularies trained on mixed text."""

import json
import subprocess

import pytest

gguf = pytest.importorskip("gguf")
tokenizers = pytest.importorskip("tokenizers")

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# tokenizer.ggml.pre -> the pattern in the model's own tokenizer.json (None: GPT-2's, built in), keeps whole tokens
PATTERNS = {
    "gpt-2": (None, False),
    "llama-bpe": (CONTRACTIONS + r"\p{N}{1,3}" + REST, True),
    "dbrx": (CONTRACTIONS + r"\p{N}{1,3}" + REST, False),
    "qwen2": (CONTRACTIONS + r"\p{N}" + REST, False),
}


def trained(pre: str, texts: list[str]):
    pattern, keeps = PATTERNS[pre]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=keeps))
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")] if pattern else []
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(split + [byte_level])
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=3000, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write(path, pre: str, tokenizer) -> None:
    model = json.loads(tokenizer.to_str())["model"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(sorted(model["vocab"], key=model["vocab"].get))
    types = [gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(model["vocab"]) - 1)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_eos_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("pre", PATTERNS)
def test_ids_equal_those_of_tokenizers(pre, texts, build, tmp_path):
    tokenizer = trained(pre, texts.values())
    path = tmp_path / "vocabulary.gguf"
    write(path, pre, tokenizer)
    for kind, text in texts.items():
        command = [build / "foveate", "tokenize", "--model", path, "-"]
        done = subprocess.run(command, input=text.encode(), capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        assert json.loads(done.stdout) == tokenizer.encode(text, add_special_tokens=False).ids, kind
