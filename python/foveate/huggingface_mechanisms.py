"""Mechanisms in models of transformers: the one of each layer, how the layer rotates, and attention by it, which torch.compile sees as one
operator: what a mask says in numbers (where the first query stands, how many keys are held) is read when the operator runs."""

import math

import torch
from torch import Tensor

from foveate.huggingface_masks import causal_rule_of_mask
from foveate.plans import Rule, rule_arguments
from foveate.registry import Mechanism, mechanisms

NAME = "foveate"
known: dict[tuple[str, int], tuple[Mechanism, ...]] = {}  # (layered spec, layers): the mechanism of each layer


def know(spec: str, layers: int) -> tuple[Mechanism, ...]:
    """The mechanism of each layer.  Raises ValueError: the spec is not one, or names layers that the model has not, or learned parts."""
    made = tuple(mechanisms(spec, layers))
    for m in set(made):
        if m.learned_parts(width=64, heads=4, kv_heads=2, head_dim=16, value_dim=16):
            raise ValueError(f"{NAME}:{spec}: {m.name} has learned parts, which transformers' attention can not give; call foveate.mechanism")
    known[spec, layers] = made
    return known[spec, layers]


def mechanism_of(module: torch.nn.Module, spec: str) -> Mechanism:
    layer, layers = getattr(module, "layer_idx", None), getattr(module.config, "num_hidden_layers", None)
    if layer is None or layers is None:
        raise ValueError(f"{NAME}:{spec}: {type(module).__name__} must know its layer_idx and num_hidden_layers, got {layer} of {layers}")
    return (known.get((spec, layers)) or know(spec, layers))[layer]


# Models that rotate the first channels of q and k by halves, in every layer; others may rotate pairs, or not everywhere.
ROTATED_BY_HALVES = ("gemma2", "gemma3_text", "gpt_neox", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3")


def rotation_of(config, layer: int, head_dim: int) -> list[float]:
    """How a layer of a model rotates, as numbers of foveate.Rotary (dim, base, factor, divisors ..); none: it has no rotary embedding.

    Raises ValueError: a model that may rotate in another way, a rope_type that is none of default, linear, llama3.
    """
    rope = getattr(config, "rope_parameters", None)
    if rope is None:
        return []
    if config.model_type not in ROTATED_BY_HALVES:
        raise ValueError(f"{NAME}: positions=cache must know how the model rotates ({' '.join(ROTATED_BY_HALVES)}), got {config.model_type}")
    if "rope_theta" not in rope:  # one for each type of layer
        rope = rope[config.layer_types[layer]]
    dim, base, kind = int(head_dim * rope.get("partial_rotary_factor", 1.0)), float(rope["rope_theta"]), rope.get("rope_type", "default")
    if kind == "default":
        return [float(dim), base, 1.0]
    if kind == "linear":
        return [float(dim), base, float(rope["factor"])]
    if kind == "llama3":
        return [float(dim), base, 1.0, *llama3_divisors(rope, dim // 2, base)]
    raise ValueError(f"{NAME}: positions=cache must know the rope_type (default linear llama3), got {kind}")


def llama3_divisors(rope: dict, pairs: int, base: float) -> list[float]:
    """What divides the frequency of each pair: long waves by the factor, short ones by 1, smoothly between."""
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    divisors = []
    for i in range(pairs):
        waves = rope["original_max_position_embeddings"] / (2 * math.pi * base ** (i / pairs))
        smooth = min(max((waves - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - smooth) / factor + smooth))
    return divisors


def operator_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    sink: Tensor | None,
    dropout_seed: Tensor | None,
    spec: str,
    layer: int,
    name: str,
    window: int | None,
    rotation: list[float],
    scale: float | None,
    soft_cap: float | None,
    dropout: float,
) -> dict:
    """The call of foveate::mechanism.  mask: of make_mask, None: causal, with `window` if there is one; name: of the module."""
    queries, keys = query.size(2), key.size(2)
    rule, first = Rule(window_left=None if window is None else window - 1), None
    if mask is not None:
        found = causal_rule_of_mask(mask, queries, keys)
        if found is None:
            raise ValueError(needs_causality(spec, name))
        rule, first = found
    # Keys behind the last query are slots of a static cache that nothing was written to.
    held = keys if rule.query_start is None else min(keys, rule.query_start + queries)
    if rule.key_documents is not None:
        rule.key_documents = rule.key_documents[:, :held]
    return dict(
        spec=spec, layer=layer, first_position=first, ends_prompt=True, rotary=rotation, hidden=None, names=[], parts=[], q=query, k=key[:, :, :held], v=value[:, :, :held],
        sink=sink, scale=scale, soft_cap=soft_cap, dropout=dropout, dropout_seed=dropout_seed, **rule_arguments(rule),
    )  # fmt: skip


def needs_causality(spec: str, name: str) -> str:
    return f"{NAME}:{spec}: mechanisms serve causal attention, got {name} that sees later keys; use '{NAME}'"


# The arguments of operator_call.
SCHEMA = (
    "Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? sink, Tensor? dropout_seed, str spec, int layer, str name, int? window, "
    "float[] rotation, float? scale, float? soft_cap, float dropout"
)


@torch.library.custom_op("foveate::model_mechanism", mutates_args=(), schema=f"({SCHEMA}) -> Tensor")
def model_mechanism(*arguments):
    return torch.ops.foveate.mechanism(**operator_call(*arguments))[0]


@torch.library.custom_op("foveate::model_mechanism_backward", mutates_args=(), schema=f"(Tensor d_out, {SCHEMA}) -> Tensor[]")
def model_mechanism_backward(d_out, query, key, value, mask, sink, *rest):
    """Gradients of query, key and value, and of sink where it is given."""
    call = operator_call(query, key, value, mask, sink, *rest)
    wanted = [False, sink is not None, False, False]  # of bias, sink, slopes, relative
    d_q, d_k, d_v, _, d_sink, *_ = torch.ops.foveate.mechanism_backward(d_out=d_out, d_lse=None, output_mask=wanted, **call)
    unused = (0, 0, 0, key.size(2) - call["k"].size(2))
    return [d_q, *(torch.nn.functional.pad(t, unused) for t in (d_k, d_v))] + [d_sink] * (sink is not None)


@model_mechanism.register_fake
def _(query, key, value, *rest):
    return query.new_empty(*query.shape[:3], value.size(3))


@model_mechanism_backward.register_fake
def _(d_out, query, key, value, mask, sink, *rest):
    return [t.new_empty(t.shape) for t in (query, key, value, sink) if t is not None]


def keep_inputs(ctx, inputs, output) -> None:  # torch names these
    ctx.save_for_backward(*inputs[:6])
    ctx.rest = inputs[6:]


def first_derivatives(context, d_out: Tensor):
    gradients = model_mechanism_backward(d_out, *context.saved_tensors, *context.rest)
    of_sink = gradients[3] if len(gradients) > 3 else None
    return (*gradients[:3], None, of_sink, None) + (None,) * len(context.rest)


model_mechanism.register_autograd(first_derivatives, setup_context=keep_inputs)


def mechanism_forward(query: Tensor, key: Tensor, value: Tensor, *rest) -> Tensor:
    """Attention by a mechanism with the arguments of operator_call: out [B, Hq, Lq, Dv]."""
    if not torch.compiler.is_compiling():
        return torch.ops.foveate.mechanism(**operator_call(query, key, value, *rest))[0]
    if torch.is_autocast_enabled(query.device.type) and query.dtype != torch.double:
        query, key, value = (t.to(torch.get_autocast_dtype(t.device.type)) for t in (query, key, value))
    return model_mechanism(query, key, value, *rest)
