"""attend: the one operator that every softmax mechanism is made of (foveate/ops/attend/attend.h)."""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from foveate.plans import Plan, Rule, plan_arguments


class Attended(NamedTuple):
    """out [B, Hq, Lq, Dv] in the dtype of q; lse [B, Hq, Lq], natural log of the softmax's denominator, fp32 (fp64 for fp64 inputs)."""

    out: Tensor
    lse: Tensor


@dataclasses.dataclass(eq=False)
class Relative:
    """Logits a query has for places instead of keys, one axis or several (Shaw et al., 1803.02155): to the logit of (i, j) is added,
    over the axes a, logits[b, h, i, sizes[0] + .. + sizes[a - 1] + clamp(keys[a][j] - queries[a][i], 0, sizes[a] - 1)].

    logits:         floating point [B|1, Hq|1, Lq|1, sum of sizes]; has a gradient
    queries, keys:  [axes, Lq], [axes, Lk] int64
    sizes:          one for each axis, >= 1; at most 4 axes
    """

    logits: Tensor
    queries: Tensor
    keys: Tensor
    sizes: list[int]


def draw_seed() -> Tensor:
    """A dropout_seed from torch's default generator: torch.manual_seed repeats it, and a compiled graph holds the draw."""
    return torch.randint(2**62, (), device="cpu")


def score_arguments(*, relative: Relative | None, dropout: float, dropout_seed: int | Tensor, **terms) -> dict:
    """The terms of a logit as arguments of the operators."""
    if dropout != 0:
        if not isinstance(dropout_seed, int | Tensor):
            raise TypeError(f"attend: dropout_seed must be an int or a tensor, got {type(dropout_seed).__name__}")
        seed = dropout_seed if isinstance(dropout_seed, Tensor) else torch.tensor(dropout_seed, dtype=torch.int64)
        terms |= dict(dropout=dropout, dropout_seed=seed)
    if relative is None:
        return terms
    if not isinstance(relative, Relative):
        raise TypeError(f"attend: relative must be a foveate.Relative, got {type(relative).__name__}")
    places = dict(relative_queries=relative.queries, relative_keys=relative.keys, relative_sizes=list(relative.sizes))
    return dict(terms, relative=relative.logits, **places)


DEFAULT_RULE = Rule()  # causal; never written to


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: Plan = DEFAULT_RULE,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    bias: Tensor | None = None,
    sink: Tensor | None = None,
    slopes: Tensor | None = None,
    relative: Relative | None = None,
    leaky: float | None = None,
    dropout: float = 0.0,
    dropout_seed: int | Tensor = 0,
    landmarks: Tensor | None = None,
    key_heads: Tensor | None = None,
    value_heads: Tensor | None = None,
    pages: Tensor | None = None,
) -> Attended:
    """out = softmax(s over the keys the plan shows) v, in blocks: no L x L matrix, forward or backward.

    s = scale * q.k;  s = soft_cap * tanh(s / soft_cap);  s += bias + relative - slope * |p - j|;  s <= 0: s *= leaky

    q, k, v:      [B, Hq, Lq, D], [B, Hkv, Lk, D], [B, Hkv, Lk, Dv], one dtype of fp32, bf16, fp16, fp64, any strides; Hq % Hkv == 0
    plan:         who sees whom: Rule, BlockPlan, TokenPlan or RunPlan; the default is causal, bottom-right
    scale:        None: 1 / sqrt(D)
    soft_cap:     > 0; None: none
    bias:         floating point [B|1, Hq|1, Lq|1, Lk|1], added to the logit
    sink:         floating point [Hq]: a logit that joins the denominator alone
    slopes:       floating point [Hq] (ALiBi)
    relative:     logits by place, see Relative
    leaky:        > 0: factor of logits that are not positive; None: 1
    dropout:      in [0, 1): share of weights set to 0, by dropout_seed, batch, head, position and key alone; lse is without it
    dropout_seed: a number, or int64 of one element, which torch.compile may draw inside of its graph: torch.randint(2**62, ())
    landmarks:    [B|1, Lk] bool: grouped softmax (Mohtashami and Jaggi, 2305.16300)
    key_heads, value_heads:  [Hq] int64: which head of k and of v a query head reads, where groups are unequal

    For decoding, without gradients of anything: k and v may be rows of 8 bits (quantise_rows), and with
    pages:        [B, N] int32, k [P, Hkv, S, D] and v [P, Hkv, S, Dv] are pages of S keys: key j of batch b is row j % S of page
                  pages[b][j // S].  There are N * S keys; the rule (key_lengths, query_start) says which count.

    A row that sees no key: out 0, lse -inf (with a sink: its logit), gradients 0.  An invisible key, even NaN or Inf, changes nothing.
    Gradients: q, k, v, bias, sink, slopes, relative.logits, from out and from lse.  Under autocast q, k and v are cast to its dtype.
    Raises ValueError: shapes, dtypes or a plan that do not fit; TypeError: a plan of no known kind.
    Source: Dao et al., FlashAttention-2, 2307.08691, section 3.

    >>> q = k = v = torch.ones(1, 2, 5, 8)
    >>> out, lse = attend(q, k, v, Rule(window_left=2))
    >>> out.shape, lse.shape
    (torch.Size([1, 2, 5, 8]), torch.Size([1, 2, 5]))
    """
    terms = score_arguments(
        scale=scale, soft_cap=soft_cap, bias=bias, sink=sink, slopes=slopes, relative=relative, leaky=leaky, dropout=dropout,
        dropout_seed=dropout_seed, landmarks=landmarks, key_heads=key_heads, value_heads=value_heads, pages=pages,
    )  # fmt: skip
    return Attended(*torch.ops.foveate.attend(q, k, v, **terms, **plan_arguments(plan)))


def quantise_rows(x: Tensor) -> Tensor:
    """Keys or values in 8 bits: x [..., D] fp32, bf16 or fp16 -> uint8 [..., D + 2 * ceil(D / 32)], int8 codes and then a bf16 scale for
    each 32 of them.  Error <= half a scale, which is the largest |x| of its block / 127, rounded up.  NaN and Inf make their block NaN.

    >>> rows = quantise_rows(torch.ones(3, 64))
    >>> rows.shape, rows.dtype
    (torch.Size([3, 68]), torch.uint8)
    """
    return torch.ops.foveate.quantise_rows(x)


def dequantise_rows(rows: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The reverse of quantise_rows, in fp32, bf16 or fp16."""
    return torch.ops.foveate.dequantise_rows(rows, dtype)
