"""The BERT encoder against transformers: tiny random models, and MiniLM's sentence vectors."""

import functools
import json
import subprocess

import pytest
import torch

transformers = pytest.importorskip("transformers")


def embed(build, path, lines, *options) -> torch.Tensor:
    command = [build / "foveate", "embed", "--model", path, "--threads", "2", *options, "-"]
    done = subprocess.run(command, input="\n".join(lines).encode(), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return torch.tensor([json.loads(line) for line in done.stdout.splitlines()])


@functools.cache
def loaded(path):
    return transformers.AutoTokenizer.from_pretrained(path), transformers.AutoModel.from_pretrained(path).float().eval()


def reference(path, lines, most=512) -> torch.Tensor:
    """Means of the token states, scaled to length 1, as sentence-transformers makes them."""
    tokenizer, model = loaded(path)
    batch = tokenizer(lines, padding=True, truncation=True, max_length=most, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).float()
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)


@pytest.fixture(scope="module")
def minilm(cache):
    path = cache / "models" / "minilm"
    if not (path / "model.safetensors").exists():
        pytest.skip("minilm is not there; python tools/fetch.py minilm")
    return path


@pytest.fixture(scope="module")
def sentences(cache) -> list[str]:
    path = cache / "texts" / "articles.txt"
    if not path.exists():
        pytest.skip("articles are not there; python tools/fetch.py articles")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return lines[:: len(lines) // 200][:200]


def test_sentence_vectors_equal_transformers(build, minilm, sentences):
    assert len(sentences) == 200
    wanted = torch.cat([reference(minilm, sentences[i : i + 20]) for i in range(0, 200, 20)])
    ours = embed(build, minilm, sentences)
    assert ours.shape == wanted.shape
    assert (ours - wanted).abs().max() <= 1e-5
    assert (embed(build, minilm, sentences, "--batch", "7") - ours).abs().max() <= 1e-6


def test_long_lines_are_cut_before_their_end_token(build, minilm, sentences):
    lines = [" ".join(sentences[:20]), "short"]
    for most in (512, 16):
        ours = embed(build, minilm, lines, "--most-tokens", str(most))
        assert (ours - reference(minilm, lines, most)).abs().max() <= 1e-5


def test_bf16_is_close(build, minilm, sentences):
    ours = embed(build, minilm, sentences[:20], "--dtype", "bf16")
    assert (ours * embed(build, minilm, sentences[:20])).sum(1).min() >= 0.999


def test_a_decoder_is_no_encoder(build, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "tokenizer.json").write_text(json.dumps({
        "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}))
    done = subprocess.run([build / "foveate", "embed", "--model", tmp_path, "-"], input=b"a", capture_output=True)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1 and b"model_type must be bert" in done.stderr
