"""Tiny random models of every architecture: transformers' own, written as GGUF and as its own folder, against the
decoder that reads them."""

import json
import re
import subprocess

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

LAYERS, WIDTH, HEADS, KEY_HEADS, VOCABULARY, CONTEXT = 3, 32, 4, 2, 61, 128
COMMON = dict(
    hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS,
    intermediate_size=48, vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, tie_word_embeddings=False,
    pad_token_id=None, bos_token_id=1, eos_token_id=2,
)
LLAMA3_ROPE = dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=32)
LINEAR_ROPE = dict(rope_type="linear", rope_theta=1e4, factor=4.0)
# GGUF architecture, transformers' config, its settings
MODELS = {
    "llama": ("llama", "LlamaConfig", {}),
    "llama tied": ("llama", "LlamaConfig", dict(tie_word_embeddings=True)),
    "llama linear": ("llama", "LlamaConfig", dict(rope_parameters=LINEAR_ROPE)),
    "llama 3": ("llama", "LlamaConfig", dict(rope_parameters=LLAMA3_ROPE)),
    "qwen2": ("qwen2", "Qwen2Config", {}),
    "qwen3": ("qwen3", "Qwen3Config", dict(head_dim=16)),
    "gemma2": ("gemma2", "Gemma2Config", dict(head_dim=16, query_pre_attn_scalar=16, sliding_window=9,
                                               tie_word_embeddings=True)),
    "olmo2": ("olmo2", "Olmo2Config", {}),
    "phi3": ("phi3", "Phi3Config", dict(sliding_window=11)),
    "gpt2": ("gpt2", "GPT2Config", dict(n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=CONTEXT, n_inner=48,
                                        tie_word_embeddings=True)),
    "gptneox": ("gptneox", "GPTNeoXConfig", dict(rope_parameters=dict(rope_type="default", rope_theta=1e4,
                                                                      partial_rotary_factor=0.5))),
    "gptneox serial": ("gptneox", "GPTNeoXConfig", dict(use_parallel_residual=False, rope_parameters=dict(
        rope_type="default", rope_theta=1e4, partial_rotary_factor=0.25))),
    "gemma3": ("gemma3", "Gemma3TextConfig", dict(head_dim=16, query_pre_attn_scalar=32, sliding_window=9, rms_norm_eps=1e-6,
                                                   layer_types=["sliding_attention", "full_attention"] * 2,
                                                   num_hidden_layers=LAYERS + 1, tie_word_embeddings=True)),
    "mistral": ("llama", "MistralConfig", dict(sliding_window=13, head_dim=8)),
    "llama biased": ("llama", "LlamaConfig", dict(attention_bias=True, mlp_bias=True)),
}
FOLDER_ONLY = {"gemma3", "mistral", "llama biased"}  # their GGUF form is held elsewhere, or says no more
BLOCK = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "self_attn.qkv_proj": "attn_qkv", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate_up_proj": "ffn_up",
}
BRANCH_NORMS = BLOCK | {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
NEOX = {
    "input_layernorm": "attn_norm", "attention.query_key_value": "attn_qkv", "attention.dense": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.dense_h_to_4h": "ffn_up", "mlp.dense_4h_to_h": "ffn_down",
}
GPT2 = {
    "ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}
BLOCKS = {"gemma2": BRANCH_NORMS, "gemma3": BRANCH_NORMS, "olmo2": BRANCH_NORMS, "gptneox": NEOX, "gpt2": GPT2}
OUTER = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm", "gpt_neox.embed_in": "token_embd",
    "gpt_neox.final_layer_norm": "output_norm", "embed_out": "output",
}


def as_in_file(architecture: str, named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' parameters (or their gradients) by GGUF names, rotated by halves."""
    result = {}
    for name, value in named.items():
        base, kind = name.rsplit(".", 1)
        block = re.search(r"\.(?:layers|h)\.(\d+)\.(.*)", base)
        known = BLOCKS.get(architecture, BLOCK)
        target = f"blk.{block[1]}.{known[block[2]]}" if block else OUTER[base]
        if architecture == "gpt2" and block and value.dim() == 2:  # stored as [in, out]
            value = value.T
        if architecture == "gptneox" and target.endswith("attn_qkv"):  # rows of heads x (q, k, v)
            value = value.unflatten(0, (HEADS, 3, -1)).transpose(0, 1).flatten(0, 2)
        result[f"{target}.{kind}"] = value
    return result


def adjacent_pairs(rows: torch.Tensor, heads: int) -> torch.Tensor:
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def write(path, name: str, model, quantises: bool = False) -> None:
    architecture, config = MODELS[name][0], model.config
    writer = gguf.GGUFWriter(path, architecture)
    head_dim = getattr(config, "head_dim", None) or WIDTH // HEADS
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(48)
    writer.add_head_count(HEADS)
    if architecture not in ("gpt2", "gptneox"):
        writer.add_head_count_kv(KEY_HEADS)
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(getattr(config, "layer_norm_epsilon", None) or config.layer_norm_eps)
    rope = getattr(config, "rope_parameters", None) or {}
    if architecture == "gptneox":
        writer.add_rope_dimension_count(int(head_dim * rope["partial_rotary_factor"]))
        writer.add_parallel_residual(config.use_parallel_residual)
    elif rope:
        writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if rope.get("rope_type") == "llama3":
        plain = rope["rope_theta"] ** -(torch.arange(0, head_dim, 2) / head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq).float().numpy())
    for target, value in as_in_file(architecture, dict(model.named_parameters())).items():
        value = value.detach()
        if architecture == "llama" and ("attn_q." in target or "attn_k." in target):
            value = adjacent_pairs(value, HEADS if "attn_q." in target else KEY_HEADS)
        if architecture == "gemma2" and "norm" in target:
            value = value + 1
        rows = np.ascontiguousarray(value.numpy())
        if quantises and rows.ndim == 2 and rows.shape[1] % 32 == 0 and target != "position_embd.weight":
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, gguf.quants.quantize(rows, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_model(name: str):
    architecture, kind, settings = MODELS[name]
    torch.manual_seed(3)
    common = {} if architecture == "gpt2" else COMMON
    config = getattr(transformers, kind)(**(common | dict(vocab_size=VOCABULARY) | settings))
    config._attn_implementation = "eager"
    reference = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    for parameter in reference.parameters():  # norms and biases must matter as well
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.3)
    return reference


FORMS = ("gguf", "folder", "folder in parts")


@pytest.fixture(scope="module", params=[(name, form) for name in MODELS for form in FORMS
                                        if (form == "folder" or name not in FOLDER_ONLY)
                                        and (form != "folder in parts" or name == "qwen2")], ids=" as ".join)
def model(request, tmp_path_factory):
    name, form = request.param
    reference = random_model(name)
    path = tmp_path_factory.mktemp("models") / ("tiny.gguf" if form == "gguf" else "tiny")
    if form == "gguf":
        write(path, name, reference)
    else:
        reference.save_pretrained(path, max_shard_size="20KB" if form == "folder in parts" else "5GB")
        assert (path / "model.safetensors").exists() == (form == "folder")
    return path, reference, MODELS[name][0]


def run_tool(build, ids, *words) -> bytes:
    done = subprocess.run([build / "tests" / "decoder_tool", *words], input=json.dumps(ids).encode(),
                          capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


IDS = [int(x) for x in np.random.default_rng(5).integers(0, VOCABULARY, 40)]


def test_logits_equal_transformers(model, build):
    path, reference, _ = model
    with torch.no_grad():
        wanted = reference(torch.tensor([IDS])).logits[0]
    values = np.frombuffer(run_tool(build, IDS, "both_logits", path, "fp32"), np.float32).copy()
    for ours in torch.from_numpy(values).view(2, len(IDS), -1):  # as a prompt, and token by token
        assert ours.shape == wanted.shape
        assert (ours - wanted).abs().max() <= 1e-4 * max(1.0, wanted.abs().max().item())


def test_gradients_equal_transformers(model, build):
    path, reference, architecture = model
    line, data = run_tool(build, IDS, "gradients", path).split(b"\n", 1)
    values, offset, seen = np.frombuffer(data, np.float32), 0, {}
    for name, shape in json.loads(line):
        count = int(np.prod(shape))
        seen[name] = torch.from_numpy(values[offset : offset + count].copy()).view(shape)
        offset += count
    assert offset == len(values)
    for kind in ("weight", "bias"):  # transformers keeps some matrices as one
        for layer in range(reference.config.num_hidden_layers):
            parts = [seen.pop(f"blk.{layer}.attn_{part}.{kind}", None) for part in "qkv"]
            if architecture in ("gpt2", "gptneox", "phi3"):
                if parts[0] is not None:
                    seen[f"blk.{layer}.attn_qkv.{kind}"] = torch.cat(parts)
            else:
                seen |= {f"blk.{layer}.attn_{p}.{kind}": t for p, t in zip("qkv", parts) if t is not None}
            if architecture == "phi3" and kind == "weight":
                up = seen[f"blk.{layer}.ffn_up.weight"]
                seen[f"blk.{layer}.ffn_up.weight"] = torch.cat([seen.pop(f"blk.{layer}.ffn_gate.weight"), up])
    reference.zero_grad()
    logits = reference(torch.tensor([IDS[:-1]])).logits[0]
    torch.nn.functional.cross_entropy(logits, torch.tensor(IDS[1:])).backward()
    wanted = as_in_file(architecture, {name: p.grad for name, p in reference.named_parameters()})
    assert seen.keys() == wanted.keys()
    largest = max(grad.norm() for grad in wanted.values())
    for name, grad in wanted.items():
        assert (seen[name] - grad).norm() <= 1e-4 * grad.norm() + 1e-6 * largest, name


@pytest.mark.parametrize("name", [name for name in MODELS if name not in FOLDER_ONLY])
def test_packed_rows_are_those_of_dense_ones(build, tmp_path, name):
    """Rows are chosen and permuted once more where they stay packed; ffn_down, 48 wide, has no whole blocks: dense."""
    path = tmp_path / "tiny.gguf"
    write(path, name, random_model(name), quantises=True)
    dense, packed = (np.frombuffer(run_tool(build, IDS, "both_logits", path, dtype), np.float32).reshape(2, -1)
                     for dtype in ("fp32", "fp32-packed"))
    for a, b in zip(packed, dense):
        assert np.abs(a - b).max() <= 0.03 * np.abs(b).max()  # inputs have 16 bits
    assert (packed[1] != dense[1]).any()  # one row is not multiplied by rows made dense
