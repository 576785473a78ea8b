"""foveate.scaled_dot_product_attention against torch's own, over its whole signature."""

import pytest
import torch

import foveate

theirs = torch.nn.functional.scaled_dot_product_attention
ours = foveate.scaled_dot_product_attention


def inputs(lead=(2,), heads=4, kv_heads=4, queries=9, keys=13, dtype=torch.float, value_dim=8):
    make = torch.Generator().manual_seed(11)
    shapes = [(*lead, heads, queries, 8), (*lead, kv_heads, keys, 8), (*lead, kv_heads, keys, value_dim)]
    return [torch.randn(shape, generator=make, dtype=dtype, requires_grad=True) for shape in shapes]


def agree(tensors, **arguments):
    """Outputs and all gradients."""
    results = []
    for attend in (theirs, ours):
        learned = [t for t in (*tensors, arguments.get("attn_mask")) if t is not None and t.requires_grad]
        out = attend(*tensors, **arguments)
        results.append((out, *torch.autograd.grad(out.square().sum(), learned)))
    for wanted, got in zip(*results):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("lead", [(), (2,), (3, 2)])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("queries, keys", [(9, 13), (13, 9), (1, 7)])
def test_plain_and_causal(lead, is_causal, queries, keys):
    agree(inputs(lead, queries=queries, keys=keys), is_causal=is_causal, scale=0.3)


def test_few_axes_and_double():
    q, k, v = (t[0, 0] for t in inputs(dtype=torch.double))
    torch.testing.assert_close(ours(q, k, v), theirs(q, k, v))
    torch.testing.assert_close(ours(q[None], k[None], v[None]), theirs(q[None], k[None], v[None]))


def test_broadcast_batch_and_heads():
    q, k, v = inputs()
    k, v = k[:1, :1], v[:, :1]
    torch.testing.assert_close(ours(q, k, v), theirs(q, k.expand(2, 4, -1, -1), v.expand(-1, 4, -1, -1)))


@pytest.mark.parametrize("shape", [(9, 13), (1, 13), (4, 9, 13), (2, 1, 9, 13), (1, 4, 9, 1), (2, 4, 9, 13)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float])
def test_masks_broadcast(shape, dtype):
    make = torch.Generator().manual_seed(12)
    mask = torch.rand(shape, generator=make) < 0.7 if dtype == torch.bool else torch.randn(shape, generator=make, requires_grad=True)
    agree(inputs(), attn_mask=mask)


def large_masks():
    i, j = torch.arange(180)[:, None], torch.arange(190)
    scattered = torch.rand(180, 190, generator=torch.Generator().manual_seed(13)) < 0.5
    return {
        "causal": j <= i + 10,
        "padding": (j < torch.tensor([190, 5])[:, None, None, None]).expand(2, 1, 180, 190),
        "documents": i // 30 == j // 30,
        "window": (j <= i) & (j > i - 30),
        "sinks": (j <= i) & ((j > i - 30) | (j < 4)),
        "blocks": (i // 128 == j // 128) & (j <= i),
        "nothing seen": j <= i - 30,
        "by head": (j <= i + torch.arange(4)[:, None, None] * 10),
        "scattered": scattered,
    }


@pytest.mark.parametrize("name", large_masks())
def test_structured_boolean_masks_run_as_plans(name, monkeypatch):
    seen = []
    attend = foveate.sdpa.attend
    monkeypatch.setattr(foveate.sdpa, "attend", lambda *a, bias=None, **k: seen.append(bias) or attend(*a, bias=bias, **k))
    agree(inputs(queries=180, keys=190), attn_mask=large_masks()[name])
    assert (seen[0] is None) == (name != "scattered")


def test_additive_mask_with_minus_infinity():
    mask = torch.zeros(9, 13).masked_fill(torch.arange(13) > torch.arange(9)[:, None] + 4, -torch.inf)
    agree(inputs(), attn_mask=mask)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_heads(kv_heads):
    agree(inputs(kv_heads=kv_heads), enable_gqa=True, is_causal=True)
    q, k, _ = inputs(kv_heads=kv_heads)
    v = inputs()[2]
    torch.testing.assert_close(ours(q, k, v, enable_gqa=True), theirs(q, k, v, enable_gqa=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half])
def test_low_precision(dtype):
    q, k, v = (t.detach() for t in inputs(dtype=torch.double))
    exact = theirs(q, k, v, is_causal=True)
    low = [t.to(dtype) for t in (q, k, v)]
    error = (theirs(*low, is_causal=True).double() - exact).abs().max()
    assert (ours(*low, is_causal=True).double() - exact).abs().max() <= 2 * error


def test_dropout_keeps_the_mean_and_follows_the_seed():
    q, k, v = (torch.randn(4, 8, 64, 16) for _ in range(3))
    v = torch.ones_like(v)  # then out is the sum of the weights that are left
    run = lambda seed: (torch.manual_seed(seed), ours(q, k, v, dropout_p=0.4))[1]  # noqa: E731
    out = run(1)
    assert torch.equal(out, run(1)) and not torch.equal(out, run(2))
    assert out.std() > 0.05 and abs(out.mean() - 1) < 5 * out[..., 0].std() / (4 * 8 * 64) ** 0.5


def test_bad_input_is_named():
    q, k, v = inputs()
    for match, arguments in {
        r"attn_mask must broadcast to \[2, 4, 9, 13\], got \[9, 12\]": dict(attn_mask=torch.ones(9, 12).bool()),
        "attn_mask must not be given together with is_causal": dict(attn_mask=torch.ones(9, 13).bool(), is_causal=True),
        "attn_mask must be bool or floating point, got torch.int64": dict(attn_mask=torch.ones(9, 13).long()),
        "dropout must be in": dict(dropout_p=1.0),
    }.items():
        with pytest.raises((ValueError, TypeError), match=match):
            ours(q, k, v, **arguments)
    with pytest.raises(ValueError, match=r"must have equal heads, got \[4, 2, 2\]; set enable_gqa=True"):
        ours(q, k[:, :2], v[:, :2])
    with pytest.raises(ValueError, match="heads of key and value must divide those of query"):
        ours(q, k[:, :3], v[:, :3], enable_gqa=True)
    with pytest.raises(ValueError, match="at least 2 axes"):
        ours(q, k[0, 0, 0], v)


@pytest.mark.parametrize("dropout", [0, 0.3])
@pytest.mark.parametrize("mask", [None, "bool", "float"])
def test_compiles_as_one_graph(mask, dropout):
    q, k, v = inputs()
    attn_mask = {None: None, "bool": torch.rand(9, 13) < 0.8, "float": torch.randn(9, 13)}[mask]

    def loss(q, k, v):
        return ours(q, k, v, attn_mask=attn_mask, dropout_p=dropout, is_causal=attn_mask is None).square().sum()

    torch.manual_seed(3)
    wanted = torch.autograd.grad(loss(q, k, v), (q, k, v))
    torch.manual_seed(3)
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(q, k, v), (q, k, v))
    for a, b in zip(got, wanted):
        torch.testing.assert_close(a, b)
