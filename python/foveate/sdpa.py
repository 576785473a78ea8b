"""torch's scaled_dot_product_attention, same signature and meaning, over the operator."""

import math

import torch
from torch import Tensor

from foveate.masks import structured_plan
from foveate.operators import attend, draw_seed
from foveate.plans import Plan, Rule


FEW_PAIRS = 2**15  # looking at a mask takes 0.3 ms, as long as attention over so many pairs


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What torch.nn.functional.scaled_dot_product_attention gives, by `attend`.

    query, key, value:  [..., Hq, L, E], [..., H, S, E], [..., H, S, Ev], one dtype of fp32, bf16, fp16, fp64; leading axes broadcast
    attn_mask:          broadcasts to [..., Hq, L, S]: bool, True = attend, or floating point, added to the logits (has a gradient).
                        A bool mask that is causal, a window, documents, padding or any one range of keys a row, or is made of blocks,
                        runs as such and costs what its visible part costs.  Any other is added as 0 and -inf; so is every bool mask
                        of few pairs, and inside torch.compile, where values are not known.
    dropout_p:          in [0, 1); which weights are dropped is drawn from torch's default generator (not the same ones as torch's).
                        torch.compile's inductor draws other numbers than eager torch for the same seed, here as everywhere
    is_causal:          top-left: query i sees keys 0 .. i.  Not together with attn_mask
    scale:              None: 1 / sqrt(E)
    enable_gqa:         key and value heads are shared by groups of query heads

    Returns [..., Hq, L, Ev] in the dtype of query.  A row that sees no key is 0.  Raises ValueError, TypeError: what does not fit.

    >>> q = torch.randn(2, 4, 6, 8)
    >>> torch.allclose(scaled_dot_product_attention(q, q, q, is_causal=True),
    ...                torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True), atol=1e-5)
    True
    """
    check_inputs(query, key, value, attn_mask, is_causal)
    batch = torch.broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3])
    heads = query.size(-3) if query.dim() > 2 else 1
    q, k, v = (four_axes(t, batch) for t in (query, key, value))
    k, v, heads_of = share_heads(q, k, v, enable_gqa)
    plan, bias = rule_and_bias(attn_mask, is_causal, batch, q, k)
    dropout = dict(dropout=dropout_p, dropout_seed=draw_seed()) if dropout_p != 0 else {}
    out = attend(q, k, v, plan, bias=bias, scale=scale, **dropout, **heads_of).out
    shape = (*batch, heads, query.size(-2), value.size(-1)) if max(t.dim() for t in (query, key, value)) > 2 else out.shape[2:]
    return out.reshape(shape)


def check_inputs(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool) -> None:
    for name, t in (("query", query), ("key", key), ("value", value)):
        if t.is_nested:
            raise TypeError(f"scaled_dot_product_attention: {name} must be a dense tensor, got a nested one; pack it (convert.from_cu_seqlens)")
        if t.dim() < 2:
            raise ValueError(f"scaled_dot_product_attention: {name} must have at least 2 axes, got {list(t.shape)}")
    if attn_mask is None:
        return
    if is_causal:
        raise ValueError("scaled_dot_product_attention: attn_mask must not be given together with is_causal, got both")
    if attn_mask.dtype != torch.bool and not attn_mask.is_floating_point():
        raise TypeError(f"scaled_dot_product_attention: attn_mask must be bool or floating point, got {attn_mask.dtype}")


def four_axes(t: Tensor, batch: torch.Size) -> Tensor:
    """[..., H, L, E] as [B, H, L, E]: leading axes broadcast to `batch` and become one."""
    t = t if t.dim() > 2 else t.unsqueeze(0)
    return t.expand(*batch, *t.shape[-3:]).reshape(math.prod(batch), *t.shape[-3:])


def share_heads(q: Tensor, k: Tensor, v: Tensor, enable_gqa: bool) -> tuple[Tensor, Tensor, dict]:
    """Keys and values as `attend` takes them, and the head map where keys and values have unequal heads."""
    counts = [t.size(1) for t in (q, k, v)]
    if enable_gqa:
        if min(counts) < 1 or counts[0] % counts[1] or counts[0] % counts[2]:
            raise ValueError(f"scaled_dot_product_attention: heads of key and value must divide those of query, got {counts[1:]} and {counts[0]}")
    elif any(count not in (counts[0], 1) for count in counts[1:]):
        raise ValueError(
            f"scaled_dot_product_attention: query, key and value must have equal heads, got {counts}; set enable_gqa=True to share them"
        )
    if counts[1] == counts[2]:
        return k, v, {}
    head = torch.arange(counts[0], device=q.device)
    return k, v, dict(key_heads=head // (counts[0] // counts[1]), value_heads=head // (counts[0] // counts[2]))


def rule_and_bias(mask: Tensor | None, is_causal: bool, batch: torch.Size, q: Tensor, k: Tensor) -> tuple[Plan, Tensor | None]:
    if mask is None:
        return (Rule(query_start=0) if is_causal else Rule.full()), None
    mask = mask_axes(mask, batch, q.size(1), q.size(2), k.size(2))
    if mask.dtype != torch.bool:
        return Rule.full(), mask
    if not torch.compiler.is_compiling() and q.size(2) * k.size(2) >= FEW_PAIRS:
        plan = structured_plan(mask.expand(-1, -1, q.size(2), k.size(2)))
        if plan is not None:
            return plan, None
    zero = torch.zeros((), dtype=q.dtype, device=q.device)
    return Rule.full(), torch.where(mask, zero, -math.inf)


def mask_axes(mask: Tensor, batch: torch.Size, heads: int, queries: int, keys: int) -> Tensor:
    """A mask that broadcasts to [..., heads, queries, keys] as [B|1, heads|1, queries|1, keys|1]."""
    shape = (*batch, heads, queries, keys)
    lead = len(shape) - mask.dim()
    if lead < 0 or any(size not in (1, wanted) for size, wanted in zip(mask.shape, shape[lead:])):
        raise ValueError(f"scaled_dot_product_attention: attn_mask must broadcast to {list(shape)}, got {list(mask.shape)}")
    mask = mask.view(*[1] * lead, *mask.shape)
    rows = mask.shape[-3:]
    return mask.expand(*batch, *rows).reshape(-1, *rows) if any(n > 1 for n in mask.shape[:-3]) else mask.reshape(1, *rows)
