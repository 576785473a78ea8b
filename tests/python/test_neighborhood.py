"""Neighborhood attention from Python: NATTEN's interface, its package as an independent forward, torch's machinery around an operator."""

import itertools
import os
import random
import re

import pytest
import torch

import foveate

natten = pytest.importorskip("natten", reason="natten is not installed: nothing to compare neighborhood attention with")

GRIDS = [(256,), (14, 17), (6, 9, 11)]


def tensors(shape, heads=(2, 2), dims=(16, 16), dtype=torch.float, seed=0):
    make = torch.Generator().manual_seed(seed)
    sizes = [(heads[0], dims[0]), (heads[1], dims[0]), (heads[1], dims[1])]
    return [torch.randn(2, *shape, h, d, generator=make, dtype=dtype) for h, d in sizes]


def drawn(choice, grid):
    """Parameters of a random problem on a grid, as NATTEN's own sweep draws them."""
    kernel = [choice.randint(2, max(2, n // choice.randint(1, 4))) for n in grid]
    stride = [choice.randint(1, k) for k in kernel]
    dilation = [choice.randint(1, n // k) for n, k in zip(grid, kernel, strict=True)]
    causal = [choice.random() < 0.4 for _ in grid]
    return dict(kernel_size=tuple(kernel), stride=tuple(stride), dilation=tuple(dilation), is_causal=tuple(causal))


@pytest.mark.parametrize("seed", range(18))
def test_random_problems_equal_natten(seed):
    choice = random.Random(seed)
    rank = 1 + seed % 3
    grid = [choice.randint(4, {1: 200, 2: 20, 3: 9}[rank]) for _ in range(rank)]
    arguments = drawn(choice, grid)
    dim = choice.choice([8, 16, 32])
    q, k, v = tensors(grid, dims=(dim, dim), seed=seed)  # NATTEN's Flex path wants one dim, a power of two
    ours, theirs = getattr(foveate, f"na{rank}d"), getattr(natten, f"na{rank}d")
    more = torch.randn(2, 2, 3, 2, dim, generator=torch.Generator().manual_seed(seed))
    extra = dict(additional_keys=more[0], additional_values=more[1]) if seed % 2 else {}
    got, lse = ours(q, k, v, **arguments, **extra, return_lse=True)
    want, want_lse = theirs(q, k, v, **arguments, **extra, return_lse=True, backend="flex-fna")
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse, want_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", (1, 2, 3))
def test_modules_take_the_parameters_of_nattens(rank):
    options = dict(embed_dim=32, num_heads=2, kernel_size=3, stride=2, dilation=2)
    theirs = getattr(natten, f"NeighborhoodAttention{rank}D")(**options)
    ours = getattr(foveate, f"NeighborhoodAttention{rank}D")(**options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, *GRIDS[rank - 1][:rank], 32)[:, :40]
    with torch.no_grad():  # NATTEN has no backward on the CPU
        want = theirs(x)
    torch.testing.assert_close(ours(x), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_operator_passes_torchs_checks_and_compiles(grid):
    q, k, v = (t.transpose(1, 2).detach().requires_grad_() for t in (x.flatten(1, -3) for x in tensors(grid, heads=(4, 2))))
    axes = len(grid)
    lists = list(grid), [3] * axes, [1] * axes, [2] * axes, [False] * axes
    bias = torch.randn(4, *[5] * axes, requires_grad=True)
    more = [torch.randn(2, 2, 3, 16, requires_grad=True) for _ in range(2)]
    torch.library.opcheck(torch.ops.foveate.neighborhood.default, (q, k, v, *lists, None, bias, *more, True))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(q, k, v):
        return foveate.neighborhood_attention(q, k, v, 3, dilation=2).square().sum()

    x = [t.detach().requires_grad_() for t in tensors(grid)]
    compiled(*x).backward()
    got = [t.grad.clone() for t in x]
    for t in x:
        t.grad = None
    foveate.neighborhood_attention(*x, 3, dilation=2).square().sum().backward()
    for t, g in zip(x, got, strict=True):
        torch.testing.assert_close(t.grad, g, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("windows", [((210,), (200,), (1,)), ((17, 19), (15, 14), (8, 8))])
@pytest.mark.parametrize("extra", [0, 3])
def test_windows_that_run_as_ranges_pass_torchs_checks(windows, extra):
    grid, kernel, stride = windows
    q, k, v = (t.transpose(1, 2).detach().requires_grad_() for t in (x.flatten(1, -3) for x in tensors(grid, heads=(4, 2))))
    axes = len(grid)
    lists = list(grid), list(kernel), list(stride), [1] * axes, [False] * axes
    more = [torch.randn(len(q), 2, extra, 16, requires_grad=True) if extra else None for _ in range(2)]
    torch.library.opcheck(torch.ops.foveate.neighborhood.default, (q, k, v, *lists, None, None, *more, True))


def test_gradients_pass_gradcheck_in_fp64():
    q, k, v = (t.requires_grad_() for t in tensors((5, 7), heads=(2, 1), dims=(3, 2), dtype=torch.double))
    bias = torch.randn(2, 3, 5, dtype=torch.double, requires_grad=True)
    more = [torch.randn(2, 2, 1, d, dtype=torch.double, requires_grad=True) for d in (3, 2)]

    def call(q, k, v, bias, *more):
        return foveate.na2d(q, k, v, (3, 3), dilation=(1, 2), rpb=bias, additional_keys=more[0], additional_values=more[1], return_lse=True)

    bias = torch.randn(2, 5, 5, dtype=torch.double, requires_grad=True)
    torch.autograd.gradcheck(call, (q, k, v, bias, *more))


def test_the_two_steps_apart_are_the_fused_operator():
    q, k, v = tensors((9, 11), heads=(4, 2))
    first = [t.movedim(-2, 1) for t in (q, k, v)]
    weights = torch.softmax(foveate.na_qk(first[0], first[1], 3, dilation=2) / 4, -1)
    assert weights.shape == (2, 4, 9, 11, 9)
    got = foveate.na_av(weights, first[2], 3, dilation=2).movedim(1, -2)
    torch.testing.assert_close(got, foveate.na2d(q, k, v, 3, dilation=2), rtol=1e-5, atol=1e-5)


def test_windows_may_differ_by_head():
    q, k, v = tensors((12, 13), heads=(4, 2))
    got = foveate.neighborhood_by_head(q, k, v, [(2, dict(kernel_size=3)), (2, dict(kernel_size=5, dilation=2))], stride=1)
    first = foveate.na2d(q[..., :2, :], k[..., :1, :], v[..., :1, :], 3)
    second = foveate.na2d(q[..., 2:, :], k[..., 1:, :], v[..., 1:, :], 5, dilation=2)
    torch.testing.assert_close(got, torch.cat([first, second], -2))
    with pytest.raises(ValueError, match=r"groups must share out 4 heads in multiples of 2, got \[1, 3\]"):
        foveate.neighborhood_by_head(q, k, v, [(1, dict(kernel_size=3)), (3, dict(kernel_size=3))])


def test_heads_with_windows_of_their_own_have_biases_extra_keys_and_lse():
    q, k, v = tensors((6, 7), heads=(4, 2))
    more = torch.randn(2, 2, 3, 2, 16)
    first, second = (dict(kernel_size=3, rpb=torch.randn(2, 5, 5)), dict(kernel_size=(2, 5), rpb=torch.randn(2, 3, 9)))
    extra = dict(additional_keys=more[0], additional_values=more[1])
    got = foveate.neighborhood_by_head(q, k, v, [(2, first), (2, second)], **extra, return_lse=True)
    parts = []
    for kv, own in enumerate((first, second)):
        near = q[..., 2 * kv : 2 * kv + 2, :], k[..., kv : kv + 1, :], v[..., kv : kv + 1, :]
        parts.append(foveate.na2d(*near, **own, **{name: t[..., kv : kv + 1, :] for name, t in extra.items()}, return_lse=True))
    torch.testing.assert_close(got[0], torch.cat([p[0] for p in parts], -2))
    torch.testing.assert_close(got[1], torch.cat([p[1] for p in parts], -1))
    halves = [(2, first), (2, second)]
    with pytest.raises(ValueError, match=r"multiple of key's, which all but query have, got 4, 2 and \[2, 1, 1\]"):
        foveate.neighborhood_by_head(q, k, v, halves, *(t[..., :1, :] for t in extra.values()))
    with pytest.raises(ValueError, match=r"multiple of key's, which all but query have, got 2, 4 and \[4\]"):
        foveate.neighborhood_by_head(k, q, q, halves)
    with pytest.raises(ValueError, match="return_lse must be given for all groups at once, not in one of them"):
        foveate.neighborhood_by_head(q, k, v, [(2, first), (2, second | dict(return_lse=True))])


def test_attentions_are_merged_as_if_keys_had_been_one_set():
    q, k, v = (t.requires_grad_() for t in tensors((5, 6), dtype=torch.double))
    more = [torch.randn(2, 4, 2, 16, dtype=torch.double, requires_grad=True) for _ in range(2)]
    want = foveate.na2d(q, k, v, 3, additional_keys=more[0], additional_values=more[1], return_lse=True)
    near = foveate.na2d(q, k, v, 3, return_lse=True)
    scores = torch.einsum("byxhd,bmhd->byxhm", q, more[0]) / 4
    far = torch.einsum("byxhm,bmhd->byxhd", scores.softmax(-1), more[1]), scores.logsumexp(-1)
    got = foveate.merge_attentions([near[0], far[0]], [near[1], far[1]])
    inputs = [q, k, v, *more]
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-12)
    for g, w in zip(*(torch.autograd.grad((r[0].sin().sum() + r[1].sin().sum()), inputs) for r in (got, want)), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-10)
    rows = [t.detach().flatten(1, 2).float().contiguous() for t in (near[0], far[0], near[1], far[1])]
    theirs = natten.merge_attentions(rows[:2], rows[2:], torch_compile=False)
    for g, w in zip(foveate.merge_attentions(rows[:2], rows[2:]), theirs, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-5)
    hidden = foveate.merge_attentions([rows[0], torch.full_like(rows[0], torch.nan)], [rows[2], torch.full_like(rows[2], -torch.inf)])
    torch.testing.assert_close(hidden, (rows[0], rows[2]))
    empty = torch.full((1, 2), -torch.inf, requires_grad=True)
    out, lse = foveate.merge_attentions([torch.zeros(1, 2, 3)] * 2, [empty, empty])
    out.sum().backward()
    assert not out.any() and lse.isneginf().all() and empty.grad.isfinite().all()
    learned = rows[0].clone().requires_grad_()
    apart = [learned, torch.full_like(rows[0], torch.nan)], [rows[2], torch.full_like(rows[2], -torch.inf)]
    torch.testing.assert_close(foveate.merge_attentions(*apart)[0].detach(), rows[0])  # with gradients, another path
    torch.library.opcheck(torch.ops.foveate.merge_by_lse.default, (rows[:2], rows[2:]))
    torch.testing.assert_close(torch.compile(foveate.merge_attentions, fullgraph=True, backend="aot_eager")(rows[:2], rows[2:]), theirs)
    with pytest.raises(ValueError, match=r"lse must be as out without its last axis, got \[2, 29, 2\] and \[2, 30, 2, 16\]"):
        foveate.merge_attentions(rows[:2], [rows[2][:, 1:], rows[3][:, 1:]])
    with pytest.raises(ValueError, match="outs and lses must be as many, got 2 and 1"):
        foveate.merge_attentions(rows[:2], rows[2:3])
    with pytest.raises(ValueError, match="at least one part is needed, got 0"):
        foveate.merge_attentions([], [])


@pytest.mark.skipif(os.environ.get("FOVEATE_BACKEND") == "definition", reason="the definition was asked for")
def test_explains_what_runs():
    x = torch.zeros(1, 32, 32, 2, 16)
    assert re.match(r"\w+: fp32 products, 64 tiles of 4 x 4 queries a head, boxes of 1\.\d+ keys", foveate.explain_neighborhood(x, x, x, 7))
    assert foveate.explain_neighborhood(x, x, x, 4, stride=4).endswith(", the same for all queries of a tile")
    extra = dict(additional_keys=x[:, 0], additional_values=x[:, 0])
    assert re.search(r"; extra keys: \w+: fp32 products", foveate.explain_neighborhood(x, x, x, 7, backward=True, **extra))
    assert foveate.explain_neighborhood(x, x, x, 7, backend="cutlass-fna", return_lse=True) == foveate.explain_neighborhood(x, x, x, 7)
    with pytest.raises(ValueError, match="one batch and one grid"):
        foveate.explain_neighborhood(x, x[:, :13], x, 3)
    with pytest.raises(TypeError, match="unknown argument 'kernal'"):
        foveate.explain_neighborhood(x, x, x, 7, kernal=3)


def test_the_backward_operator_refuses_results_of_another_call():
    q = torch.randn(1, 2, 9, 4, dtype=torch.bfloat16)
    windows = [9], [3], [1], [1], [False]
    out, lse = torch.ops.foveate.neighborhood(q, q, q, *windows)
    for wrong in (dict(out=out.float()), dict(d_out=out[:, :, 1:]), dict(lse=lse.bfloat16())):
        given = dict(d_out=out, d_lse=None, out=out, lse=lse) | wrong
        with pytest.raises((ValueError, RuntimeError), match="as the forward pass gave, got"):
            torch.ops.foveate.neighborhood_backward(*given.values(), q, q, q, *windows)


def test_a_small_grid_is_padded_by_zeros_which_are_keys():
    layer = foveate.NeighborhoodAttention2D(16, 2, 5, dilation=2, rel_pos_bias=True, pads_small_grids=True)
    x = torch.randn(1, 7, 12, 16)
    padded = torch.nn.functional.pad(x, [0, 0, 0, 0, 0, 3])
    torch.testing.assert_close(layer(x), layer(padded)[:, :7])
    with pytest.raises(ValueError, match=r"kernel \* dilation must be <= length, got 5 \* 2 > 7 on axis 0"):
        foveate.NeighborhoodAttention2D(16, 2, 5, dilation=2)(x)


def test_autocast_casts_queries_keys_and_values():
    q, k, v = tensors((14, 14))
    with torch.autocast("cpu", torch.bfloat16):
        assert foveate.na2d(q, k, v, 7).dtype == torch.bfloat16


def test_tuning_arguments_decide_nothing_and_others_are_refused():
    q, k, v = tensors((14, 14))
    want = foveate.na2d(q, k, v, 7)
    assert torch.equal(want, foveate.na2d(q, k, v, 7, backend="cutlass-fna", q_tile_shape=(8, 8), torch_compile=True))
    assert torch.equal(want, foveate.na2d(q, k, v, 7, 1, 1, None, None, None, None, {"bwd": 1}))
    with pytest.raises(TypeError, match="unknown argument 'kernal'"):
        foveate.na2d(q, k, v, 7, kernal=3)
    with pytest.raises(ValueError, match="query must have 5 axes"):
        foveate.na2d(q[:, 0], k[:, 0], v[:, 0], 7)
    for name, value in itertools.product(("kernel_size", "stride", "dilation"), ((3, 3, 3), 2.5)):
        with pytest.raises(ValueError, match=f"{name} must be a int or 2 of them"):
            foveate.na2d(q, k, v, **(dict(kernel_size=3) | {name: value}))
    with pytest.raises(ValueError, match="one batch and one grid"):
        foveate.na2d(q, k[:, :13], v, 3)
