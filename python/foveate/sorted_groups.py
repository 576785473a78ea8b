"""Attention among tokens that look alike, and the centres they are sorted by (foveate/attention/local/sorted_groups.h)."""

import torch
from torch import Tensor


def first_centres(x: Tensor, count: int) -> Tensor:
    """x [B, N, C] -> [count, C]: means over `count` equal parts of the sequences, and over the batch, in fp32 (fp64 for fp64).

    The last count - N % count tokens come again behind the end, backwards, so that the parts are equal.  Differentiable.
    Raises ValueError: fewer tokens than centres.

    >>> first_centres(torch.arange(4.0).view(1, 4, 1), 3).flatten()
    tensor([0.5000, 2.5000, 2.5000])
    """
    return torch.ops.foveate.first_centres(x, count)


def refine_centres(x: Tensor, centres: Tensor, iterations: int = 1) -> Tensor:
    """Spherical k-means over all tokens of a batch: x [B, N, C], centres [M, C] -> [M, C] with rows of length 1.

    One iteration: each token goes to the centre of largest cosine, and a centre becomes the direction of its tokens' sum; without tokens
    it stays.  fp32 (fp64 for fp64).  Gradients: of the last iteration alone.

    >>> refine_centres(torch.tensor([[[2.0, 0.0], [0.0, 3.0], [0.0, 1.0]]]), torch.tensor([[1.0, 0.1], [0.1, 1.0]]))
    tensor([[1., 0.],
            [0., 1.]])
    """
    return torch.ops.foveate.refine_centres(x, centres, iterations)


def nearest_centres(x: Tensor, centres: Tensor) -> Tensor:
    """x [B, N, C], centres [M, C] -> [B, N] int64, the centre of largest cosine for each token; ties go to the lower.  No gradients.

    >>> nearest_centres(torch.tensor([[[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]]]), torch.eye(2))
    tensor([[0, 1, 0]])
    """
    return torch.ops.foveate.nearest_centres(x, centres)


def sort_by_centre(nearest: Tensor) -> Tensor:
    """[B, N] -> [B, N] int64: the tokens of each sequence by their centre, those of one in the order of the sequence.

    >>> sort_by_centre(torch.tensor([[1, 0, 1, 0]]))
    tensor([[1, 3, 0, 2]])
    """
    return torch.ops.foveate.sort_by_centre(nearest)


def sorted_group_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    order: Tensor,
    centre_k: Tensor | None = None,
    centre_v: Tensor | None = None,
    *,
    group: int = 128,
    window: str = "next",
    merge: str = "sum",
    scale: float | None = None,
) -> Tensor:
    """Tokens in an order are cut into groups that attend to themselves and to the next group, and to centres (CATANet, 2503.06896).

    q, k [B, heads, N, d], v [B, heads, N, dv]: one dtype, any strides;  order [B, N] int64, as sort_by_centre gives it
    centre_k, centre_v:  [heads, M, d], [heads, M, dv]: what every token of the batch sees beside, both or none
    group:   tokens of a group; a shorter sequence is one group
    window:  a group sees itself ("own"), and the following one ("next"), or both its neighbours ("both")
    merge:   two softmaxes added ("sum", as published), or one over window and centres ("joint")
    scale:   None: 1 / sqrt(d)

    Behind its end the sorted sequence goes on with its tail backwards, before its beginning with its head; what a border group so sees
    twice counts twice.  Returns [B, heads, N, dv] in the order of q.  Gradients of all but order; nothing is sorted or scattered.
    Raises ValueError: shapes or options that do not fit; sequences of more than `group` and fewer than 1.5 groups' tokens.

    >>> q = k = v = torch.ones(1, 2, 12, 4)
    >>> sorted_group_attention(q, k, v, torch.arange(12)[None], group=4).shape
    torch.Size([1, 2, 12, 4])
    """
    return torch.ops.foveate.sorted_group_attention(q, k, v, order, centre_k, centre_v, group, window, merge, scale)
