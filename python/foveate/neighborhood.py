"""Neighborhood attention on grids of one to three axes, with NATTEN's names: code written for it runs by changing an import.

    from foveate import na2d, NeighborhoodAttention2D

Sources: Hassani et al., 2204.07143, 2209.15001 (dilation), 2504.16922 (stride); definition in foveate/ops/neighborhood/neighborhood.h.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# What only tunes NATTEN's kernels, and decides nothing here.
HINTS = frozenset(
    "backend q_tile_shape kv_tile_shape backward_q_tile_shape backward_kv_tile_shape backward_kv_splits "
    "backward_use_pt_reduction run_persistent_kernel kernel_schedule torch_compile".split()
)


OPTIONS = frozenset("stride dilation is_causal scale rpb additional_keys additional_values clamps_last_group".split())


def check_names(unknown):
    if unknown:
        raise TypeError(f"neighborhood: unknown argument {min(unknown)!r}")


def per_axis(name: str, value, axes: int, kind: type) -> list:
    """A number, or a sequence with one for each axis, as a list."""
    if isinstance(value, kind):
        return [value] * axes
    values = list(value) if isinstance(value, Sequence) else []
    if len(values) != axes or not all(isinstance(x, kind) for x in values):
        raise ValueError(f"neighborhood: {name} must be a {kind.__name__} or {axes} of them, got {value!r}")
    return values


def causal_axes(is_causal, axes: int) -> list[bool]:
    return per_axis("is_causal", False if is_causal is None else is_causal, axes, bool)


def rows(x: Tensor, name: str, axes: int) -> Tensor:
    """[B, *grid, H, D] as [B, H, places, D]."""
    if x.dim() != axes + 3:
        raise ValueError(f"neighborhood: {name} must have {axes + 3} axes [B, *grid, heads, dim], got {x.dim()}")
    return x.flatten(1, axes).transpose(1, 2)


def neighborhood_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size,
    stride=1,
    dilation=1,
    is_causal=False,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    attention_kwargs: dict | None = None,
    *,
    rpb: Tensor | None = None,
    return_lse: bool = False,
    clamps_last_group: bool = True,
    **hints,
) -> Tensor | tuple[Tensor, Tensor]:
    """Every place of a grid attends to the places nearest to it; the number of axes is that of `query` less three.

    query, key, value:  [B, *grid, Hq, D], [B, *grid, Hkv, D], [B, *grid, Hkv, Dv], the same grid of 1 .. 3 axes; fp32, bf16, fp16 or fp64,
                        any strides; Hq % Hkv == 0
    kernel_size:  keys along an axis, odd or even; kernel_size * dilation <= length.  A number, or one for each axis, as the next three
    stride:       1 .. kernel_size: so many neighbouring queries share a window
    dilation:     >= 1: neighbours are so far apart
    is_causal:    along an axis a query sees no later key; None: False
    scale:        None: 1 / sqrt(D); 0 is 0
    additional_keys, additional_values:  [B, M, Hkv, D], [B, M, Hkv, Dv]: tokens that every query sees
    rpb:          relative position bias, floating point [Hq, 2 kernel_size - 1 of each axis], by key - query + kernel_size - 1 in
                  coordinates of the dilation group; not with a causal axis
    clamps_last_group:  False: windows of a causal strided axis do not depend on where it ends (streaming)
    attention_kwargs, hints:  NATTEN's tuning arguments (HINTS) are taken and decide nothing

    Returns out [B, *grid, Hq, Dv] and, where return_lse, lse [B, *grid, Hq]: natural log, fp32 (fp64 for fp64).
    Gradients: query, key, value, additional_*, rpb, from out and lse; the same bits for any number of threads.
    Raises ValueError: what does not fit.

    >>> x = torch.randn(1, 14, 14, 2, 32)
    >>> neighborhood_attention(x, x, x, kernel_size=7, dilation=(1, 2)).shape
    torch.Size([1, 14, 14, 2, 32])
    """
    check_names(hints.keys() - HINTS)
    grid, arguments = of_operator(
        query, key, value, kernel_size, stride, dilation, is_causal, scale, rpb, additional_keys, additional_values, clamps_last_group
    )
    out, lse = torch.ops.foveate.neighborhood(*arguments)
    out = out.transpose(1, 2).unflatten(1, grid)
    return (out, lse.transpose(1, 2).unflatten(1, grid)) if return_lse else out


def of_operator(
    query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None, rpb=None, additional_keys=None, additional_values=None,
    clamps_last_group=True,
) -> tuple[list[int], tuple]:  # fmt: skip
    """The grid, and the operator's arguments, heads first."""
    axes = query.dim() - 3
    if not 1 <= axes <= 3:
        raise ValueError(f"neighborhood: query must be [B, *grid, heads, dim] with a grid of 1 .. 3 axes, got {query.dim()} axes")
    if key.shape[:-2] != query.shape[:-2] or value.shape[:-2] != query.shape[:-2]:
        raise ValueError(
            f"neighborhood: query, key and value must have one batch and one grid, got {list(query.shape)}, {list(key.shape)} and "
            f"{list(value.shape)}"
        )
    grid = list(query.shape[1:-2])
    extra = [None if x is None else x.transpose(1, 2) for x in (additional_keys, additional_values)]
    return grid, (
        rows(query, "query", axes), rows(key, "key", axes), rows(value, "value", axes), grid,
        *windows(axes, kernel_size, stride, dilation, is_causal), scale, rpb, *extra, clamps_last_group,
    )  # fmt: skip


def explain_neighborhood(query: Tensor, key: Tensor, value: Tensor, kernel_size, *, backward: bool = False, **arguments) -> str:
    """Which kernels run such a call of neighborhood_attention and how its tiles fit, or why none does, in a line.  Runs nothing.

    arguments:  those of neighborhood_attention

    >>> x = torch.randn(1, 64, 64, 2, 32)
    >>> explain_neighborhood(x.double(), x.double(), x.double(), 7)
    'definition: fp64 runs in the definition'
    """
    given = {name: x for name, x in arguments.items() if name not in HINTS | {"attention_kwargs", "return_lse"}}
    check_names(given.keys() - OPTIONS)
    return torch.ops.foveate.explain_neighborhood(*of_operator(query, key, value, kernel_size, **given)[1], backward)


def merge_attentions(outputs: Sequence[Tensor], lse_tensors: Sequence[Tensor], torch_compile: bool = True, use_autograd_fix: bool = True):
    """Attention to several sets of keys, joined as if they had been one: (output, lse).

    outputs:      at least one of [..., H, D], each of the same queries; rounded once, after they are joined
    lse_tensors:  [..., H] of each, natural log; -inf where a set has no key for a query: its output is not read there
    torch_compile, use_autograd_fix:  NATTEN's; decide nothing: gradients are exact, through outputs and lse

    A query without any key has output 0 and lse -inf.  Raises ValueError: shapes that do not fit.

    >>> x = torch.randn(1, 8, 8, 2, 16)
    >>> near, near_lse = na2d(x, x, x, 3, return_lse=True); far, far_lse = na2d(x, x, x, 3, dilation=2, return_lse=True)
    >>> merge_attentions([near, far], [near_lse, far_lse])[0].shape
    torch.Size([1, 8, 8, 2, 16])
    """
    return torch.ops.foveate.merge_by_lse(list(outputs), list(lse_tensors))


def of_axes(axes: int):
    def attention(query: Tensor, key: Tensor, value: Tensor, kernel_size, *arguments, **named):
        rows(query, "query", axes)
        return neighborhood_attention(query, key, value, kernel_size, *arguments, **named)

    attention.__name__ = attention.__qualname__ = f"na{axes}d"
    attention.__doc__ = f"neighborhood_attention for a grid of {axes} axes."
    return attention


na1d, na2d, na3d = of_axes(1), of_axes(2), of_axes(3)


def windows(axes: int, kernel_size, stride, dilation, is_causal) -> tuple:
    return (
        per_axis("kernel_size", kernel_size, axes, int), per_axis("stride", stride, axes, int),
        per_axis("dilation", dilation, axes, int), causal_axes(is_causal, axes),
    )  # fmt: skip


@torch.compiler.disable
def na_qk(query: Tensor, key: Tensor, kernel_size, dilation=1, stride=1, is_causal=False) -> Tensor:
    """query . key over windows, heads first: [B, Hq, *grid, D], [B, Hkv, *grid, D] -> [B, Hq, *grid, keys of a window], the last axis inner.

    Not scaled; -inf where a causal axis hides a key.  Differentiable any number of times.  Not part of a compiled graph.
    """
    grid = list(query.shape[2:-1])
    lists = windows(len(grid), kernel_size, stride, dilation, is_causal)
    return torch.ops.foveate.neighborhood_qk(query.flatten(2, -2), key.flatten(2, -2), grid, *lists).unflatten(2, grid)


@torch.compiler.disable
def na_av(attn: Tensor, value: Tensor, kernel_size, dilation=1, stride=1, is_causal=False) -> Tensor:
    """Weighted values of windows, heads first: [B, Hq, *grid, keys of a window], [B, Hkv, *grid, D] -> [B, Hq, *grid, D].

    Hidden keys count nothing.  Differentiable any number of times.  Not part of a compiled graph.
    """
    grid = list(value.shape[2:-1])
    lists = windows(len(grid), kernel_size, stride, dilation, is_causal)
    return torch.ops.foveate.neighborhood_av(attn.flatten(2, -2), value.flatten(2, -2), grid, *lists).unflatten(2, grid)


def neighborhood_by_head(
    query: Tensor, key: Tensor, value: Tensor, groups: Sequence[tuple[int, dict]],
    additional_keys: Tensor | None = None, additional_values: Tensor | None = None, return_lse: bool = False, **shared,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Neighborhood attention with windows of their own for groups of heads (StyleNAT, 2211.05770).

    groups:  (query heads, arguments of neighborhood_attention) one after the other, for all heads; a multiple of Hq / Hkv heads each; an rpb
             is that of the group's heads
    additional_keys, additional_values, return_lse:  as there, of all heads
    shared:  arguments for all groups

    >>> x = torch.randn(1, 16, 16, 4, 8)
    >>> neighborhood_by_head(x, x, x, [(2, dict(kernel_size=3)), (2, dict(kernel_size=5, dilation=3))]).shape
    torch.Size([1, 16, 16, 4, 8])
    """
    heads, kv_heads = query.shape[-2], key.shape[-2]
    if kv_heads < 1 or heads % kv_heads or any(t is not None and t.shape[-2] != kv_heads for t in (value, additional_keys, additional_values)):
        others = [t.shape[-2] for t in (value, additional_keys, additional_values) if t is not None]
        raise ValueError(f"neighborhood: heads must be a multiple of key's, which all but query have, got {heads}, {kv_heads} and {others}")
    own_alone = {"additional_keys", "additional_values", "return_lse"}
    for _, own in groups:
        if own_alone & own.keys():
            raise ValueError(f"neighborhood: {min(own_alone & own.keys())} must be given for all groups at once, not in one of them")
    repeats = heads // kv_heads
    counts = [count for count, _ in groups]
    if sum(counts) != heads or any(count < 1 or count % repeats for count in counts):
        raise ValueError(f"neighborhood: groups must share out {heads} heads in multiples of {repeats}, got {counts}")
    kv_counts = [count // repeats for count in counts]

    def split(tensor, counts):
        return [None] * len(counts) if tensor is None else tensor.split(counts, -2)

    extra = [split(t, kv_counts) for t in (additional_keys, additional_values)]
    parts = zip(split(query, counts), split(key, kv_counts), split(value, kv_counts), *extra, groups, strict=True)
    results = [
        neighborhood_attention(q, k, v, **(shared | own), additional_keys=more_k, additional_values=more_v, return_lse=True)
        for q, k, v, more_k, more_v, (_, own) in parts
    ]
    out, lse = torch.cat([r[0] for r in results], -2), torch.cat([r[1] for r in results], -1)
    return (out, lse) if return_lse else out


class NeighborhoodAttention(nn.Module):
    """Projections around neighborhood attention: x [B, *grid, C] -> the same.  Parameters qkv (C -> 3 C: q, k, v, heads inside), proj, rpb.

    The first arguments are those of NATTEN's modules.  rel_pos_bias: a learned bias (NAT, DiNAT: trunc-normal 0.02).  pads_small_grids: a grid
    that is shorter than kernel_size * dilation is padded with zeros behind, which are keys as all others, and cut again (as the modules of
    the published NAT and DiNAT models do); else that is an error.
    """

    axes = 0

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kernel_size,
        stride=1,
        dilation=1,
        is_causal=False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        rel_pos_bias: bool = False,
        pads_small_grids: bool = False,
    ):
        super().__init__()
        if embed_dim % num_heads != 0:
            raise ValueError(f"neighborhood: embed_dim must be a multiple of num_heads, got {embed_dim} and {num_heads}")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.kernel_size = tuple(per_axis("kernel_size", kernel_size, self.axes, int))
        self.stride = tuple(per_axis("stride", stride, self.axes, int))
        self.dilation = tuple(per_axis("dilation", dilation, self.axes, int))
        self.is_causal = tuple(causal_axes(is_causal, self.axes))
        self.scale = self.head_dim**-0.5 if qk_scale is None else qk_scale
        self.pads_small_grids = pads_small_grids
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.proj_drop = nn.Dropout(proj_drop)
        if rel_pos_bias:
            self.rpb = nn.Parameter(torch.zeros(num_heads, *(2 * k - 1 for k in self.kernel_size)))
            nn.init.trunc_normal_(self.rpb, std=0.02, a=-2, b=2)
        else:
            self.register_parameter("rpb", None)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != self.axes + 2 or x.shape[-1] != self.embed_dim:
            raise ValueError(f"neighborhood: x must be [B, {self.axes} axes, {self.embed_dim}], got {list(x.shape)}")
        grid = x.shape[1:-1]
        if self.pads_small_grids:
            missing = [max(k * d - n, 0) for k, d, n in zip(self.kernel_size, self.dilation, grid, strict=True)]
            if any(missing):
                x = F.pad(x, [0, 0, *(p for more in reversed(missing) for p in (0, more))])
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(-3)
        out = neighborhood_attention(q, k, v, self.kernel_size, self.stride, self.dilation, self.is_causal, self.scale, rpb=self.rpb)
        for axis, length in enumerate(grid, start=1):
            if out.shape[axis] != length:
                out = out.narrow(axis, 0, length)
        return self.proj_drop(self.proj(out.flatten(-2)))

    def extra_repr(self) -> str:
        return (
            f"num_heads={self.num_heads}, head_dim={self.head_dim}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"dilation={self.dilation}, is_causal={self.is_causal}"
        )


class NeighborhoodAttention1D(NeighborhoodAttention):
    __doc__ = NeighborhoodAttention.__doc__
    axes = 1


class NeighborhoodAttention2D(NeighborhoodAttention):
    __doc__ = NeighborhoodAttention.__doc__
    axes = 2


class NeighborhoodAttention3D(NeighborhoodAttention):
    __doc__ = NeighborhoodAttention.__doc__
    axes = 3
