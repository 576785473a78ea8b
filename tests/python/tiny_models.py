"""Tiny random models of transformers in eager attention, and what the tests ask of them."""

import copy
import functools

import pytest
import torch

transformers = pytest.importorskip("transformers")

LAYERS, VOCABULARY, LENGTH = 2, 61, 24
COMMON = dict(
    hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48, vocab_size=VOCABULARY,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=None, initializer_range=0.2,
)  # fmt: skip
HYBRID = ["sliding_attention", "full_attention"]
GPT2 = dict(n_embd=32, n_layer=LAYERS, n_head=4, n_positions=64, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
DECODERS = {
    "llama": ("Llama", {}),
    "qwen3": ("Qwen3", dict(head_dim=16)),
    "gemma3": ("Gemma3Text", dict(head_dim=16, query_pre_attn_scalar=32, sliding_window=7, layer_types=HYBRID)),
    "gemma2": ("Gemma2", dict(head_dim=16, query_pre_attn_scalar=32, sliding_window=7, layer_types=HYBRID, attn_logit_softcapping=2.0)),
    "gpt2": ("GPT2", GPT2),
    "gpt2 scaled by layer": ("GPT2", dict(GPT2, scale_attn_by_inverse_layer_idx=True)),
    "gpt2 not scaled": ("GPT2", dict(GPT2, scale_attn_weights=False)),
    "mistral": ("Mistral", dict(sliding_window=7, head_dim=8)),
    "phi3": ("Phi3", dict(sliding_window=9)),
    "olmo2": ("Olmo2", {}),
    "gpt neox": ("GPTNeoX", dict(hidden_dropout=0.0, attention_dropout=0.0)),
    "gpt oss": ("GptOss", dict(head_dim=16, sliding_window=7, layer_types=HYBRID, num_local_experts=2, num_experts_per_tok=1)),
    "cohere2": ("Cohere2", dict(sliding_window=7, layer_types=HYBRID, use_cache=True)),
    "llama 4": ("Llama4Text", dict(head_dim=8, attention_chunk_size=6, no_rope_layers=[1, 0], layer_types=["chunked_attention", "full_attention"],
                                   num_local_experts=2, intermediate_size_mlp=48, interleave_moe_layer_step=1)),
}  # fmt: skip
ENCODERS = {
    "bert": ("Bert", dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)),
    "modernbert": ("ModernBert", dict(local_attention=6, global_attn_every_n_layers=2, attention_dropout=0.0, sep_token_id=2, cls_token_id=1)),
}


def made(family, more, auto=transformers.AutoModelForCausalLM):
    torch.manual_seed(3)
    config = getattr(transformers, f"{family}Config")(**{**COMMON, **more})
    model = auto.from_config(config, attn_implementation="eager", experts_implementation="eager").eval()
    with torch.no_grad():  # sinks and biases are empty or 0 when made
        for parameter in model.parameters():
            parameter.copy_(parameter if parameter.dim() > 1 and parameter.std() > 0.05 else torch.randn_like(parameter) * 0.3 + 0.5)
    return model


@functools.cache
def eager_model(name):
    if name in ENCODERS:
        return made(*ENCODERS[name], transformers.AutoModelForMaskedLM)
    return made(*DECODERS[name])


def with_attention(model, implementation):
    model = copy.deepcopy(model)
    model.set_attn_implementation(implementation)
    return model


def tokens(batch=2, length=LENGTH, seed=5):
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


PADDINGS = {"none": None, "left": (7, 0), "right": (0, 5), "holes": (4, 3)}


def padding(kind):
    if PADDINGS[kind] is None:
        return None
    left, right = PADDINGS[kind]
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, :left] = 0
    mask[1, LENGTH - right :] = 0
    if kind == "holes":
        mask[0, 10:12] = 0
    return mask


def run(model, ids, mask=None, weight=None, **more):
    """Logits of the tokens, and gradients of a fixed function of them for every parameter."""
    model.zero_grad()
    logits = model(ids, attention_mask=mask, **more).logits
    kept = logits if mask is None else logits[mask.bool()]
    make = torch.Generator().manual_seed(11)
    (kept * torch.randn(kept.shape, generator=make).to(kept)).sum().backward()
    return {"logits": kept.detach()} | {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
