"""The decoder against transformers reading the same GGUF file: logits, greedy text, perplexity, gradients."""

import json
import subprocess

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf")

TOKENS = 512
# llama.cpp's names and transformers' names of the same parameters
NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
GEMMA_NAMES = NAMES | {
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
}


def reference_name(name: str, names: dict[str, str]) -> str:
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{names[parts[2]]}.weight"
    return f"{names[parts[0]]}.weight"


def logits_of(build, ids, path, dtype, words="logits") -> torch.Tensor:
    """[ids, vocabulary]; of both_logits twice that: as a prompt, and one by one."""
    values = torch.from_numpy(np.frombuffer(run_tool(build, ids, words, path, dtype), np.float32).copy())
    return values.view(*[2] * (words == "both_logits"), len(ids), -1)


def run_tool(build, ids, *words) -> bytes:
    return subprocess.run(
        [build / "tests" / "decoder_tool", *words], input=json.dumps(ids).encode(), capture_output=True, check=True
    ).stdout


@pytest.fixture(scope="module", params=["smollm2", "gemma3"])
def model(request, cache, build):
    path = cache / "models" / f"{request.param}.gguf"
    text = cache / "texts" / "book.txt"
    for file in (path, text):
        if not file.exists():
            pytest.skip(f"{file} is not there: python3 tools/fetch.py --all")
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenize = [build / "foveate", "tokenize", "--model", path, "-"]
    start = text.read_bytes()[40000:44000]
    ids = json.loads(subprocess.run(tokenize, input=start, capture_output=True, check=True).stdout)
    return path, reference, ids[:TOKENS]


@pytest.fixture(scope="module")
def exact(model, build):
    """Our logits in fp32; a token's follow from those before it."""
    path, _, ids = model
    return logits_of(build, ids, path, "fp32")


def test_logits_and_perplexity_equal_transformers(model, exact):
    _, reference, ids = model
    assert len(ids) == TOKENS
    ours = exact
    with torch.no_grad():
        wanted = reference(torch.tensor([ids])).logits[0]
    assert ours.shape == wanted.shape
    assert (ours - wanted).abs().max() <= 2e-3
    assert (ours.argmax(-1) == wanted.argmax(-1)).float().mean() >= 0.998
    target = torch.tensor(ids[1:])
    nats = [torch.nn.functional.cross_entropy(x[:-1], target).item() for x in (ours, wanted)]
    assert abs(nats[0] - nats[1]) <= 1e-3


def test_greedy_continuation_is_identical(model, build):
    path, reference, ids = model
    prompt = ids[:64]
    ours = json.loads(run_tool(build, prompt, "greedy", path, "fp32", "64"))
    with torch.no_grad():
        wanted = reference.generate(
            torch.tensor([prompt]), max_new_tokens=64, min_new_tokens=64, do_sample=False, num_beams=1,
            repetition_penalty=1.0, attention_mask=torch.ones(1, len(prompt), dtype=torch.long), eos_token_id=None,
        )[0, len(prompt):]
    assert ours == wanted.tolist()


def test_bf16_stays_close_to_fp32(model, exact, build):
    path, _, ids = model
    part = ids[:256]
    target = torch.tensor(part[1:])
    both = (exact[: len(part)], logits_of(build, part, path, "bf16"))
    nats = [torch.nn.functional.cross_entropy(logits[:-1], target).item() for logits in both]
    assert abs(nats[0] - nats[1]) <= 0.02


def test_packed_weights_lose_nothing(model, exact, build):
    path, _, ids = model
    part = ids[:96]
    exact = exact[: len(part)]
    packed, decoded = logits_of(build, part, path, "fp32-packed", "both_logits")  # many rows at a time, and one by one
    assert (packed - exact).abs().max() <= 2e-3
    assert (decoded - exact).abs().max() <= 5e-3  # 16 bits of each input
    target = torch.tensor(part[1:])
    nats = lambda logits: torch.nn.functional.cross_entropy(logits[:-1], target).item()  # noqa: E731
    _, dense = logits_of(build, part, path, "bf16", "both_logits")
    for logits in logits_of(build, part, path, "bf16-packed", "both_logits"):
        assert abs(nats(logits) - nats(exact)) <= abs(nats(dense) - nats(exact)) + 0.01


def test_gradients_equal_transformers(model, build):
    path, reference, ids = model
    names = GEMMA_NAMES if "gemma" in path.name else NAMES
    part = ids[:96]
    output = run_tool(build, part, "gradients", path)
    line, data = output.split(b"\n", 1)
    values = np.frombuffer(data, np.float32)
    reference.zero_grad()
    logits = reference(torch.tensor([part[:-1]])).logits[0]
    torch.nn.functional.cross_entropy(logits, torch.tensor(part[1:])).backward()
    parameters, offset, seen = dict(reference.named_parameters()), 0, 0
    for name, shape in json.loads(line):
        count = int(np.prod(shape))
        ours = torch.from_numpy(values[offset : offset + count].copy()).view(shape)
        offset += count
        wanted = parameters[reference_name(name, names)].grad
        assert ours.abs().max() > 0, name  # a training step changes every parameter
        assert (ours - wanted).norm() <= 1e-4 * wanted.norm(), name
        seen += 1
    assert offset == len(values) and seen == len(parameters)
