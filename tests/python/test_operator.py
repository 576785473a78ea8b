"""The operator as torch sees it: schema, fake tensors, autograd and torch.compile, for every kind of plan."""

import pytest
import torch

attend = torch.ops.foveate.attend


def problem(dtype=torch.double, grad=True, heads=4, kv_heads=2, queries=9, keys=13, dim=8, value_dim=6):
    make = torch.Generator().manual_seed(7)
    shapes = [(2, heads, queries, dim), (2, kv_heads, keys, dim), (2, kv_heads, keys, value_dim)]
    return [torch.randn(s, generator=make, dtype=dtype, requires_grad=grad) for s in shapes]


def plans(heads=4, queries=9, keys=13):
    make = torch.Generator().manual_seed(8)
    blocks = (queries + 3) // 4
    tokens = torch.sort(torch.rand(1, heads, blocks, keys, generator=make).argsort(-1)[..., :6]).values.int()
    count = torch.tensor([1, 3, 2], dtype=torch.int32).expand(1, 1, blocks).contiguous()
    index = torch.tensor([[0, 2, 3], [1, 2, 3], [0, 1, 2]], dtype=torch.int32).view(1, 1, blocks, 3)
    return {
        "causal": dict(window_right=0),
        "full": dict(),
        "window": dict(window_left=3, window_right=0, sinks=1, scale=0.3, soft_cap=2.0),
        "tokens": dict(query_block=4, index=tokens, window_right=0),
        "runs": dict(query_block=4, index=index, run_end=index * 3, window_right=0),
        "ordered": dict(query_order=torch.tensor([[[3, 0, -1, 8, 5]]]), window_left=4, window_right=0),
        "heads": dict(key_heads=torch.tensor([1, 0, 0, 0]), value_heads=torch.tensor([0, 0, 1, 0]), window_right=0),
        "blocks": dict(query_block=4, key_block=4, count=count, index=index, window_right=0),
    }


@pytest.mark.parametrize("plan", plans())
def test_gradients_match_finite_differences_through_out_and_lse(plan):
    q, k, v = problem()
    bias = torch.randn(1, 4, 9, 13, dtype=torch.double, requires_grad=True)
    sink = torch.randn(4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *t: attend(*t, **plans()[plan]), (q, k, v, bias, sink))


@pytest.mark.parametrize("plan", plans())
@pytest.mark.parametrize("dtype", [torch.float, torch.bfloat16])
def test_opcheck(plan, dtype):
    q, k, v = problem(dtype)
    torch.library.opcheck(attend, (q, k, v), plans()[plan])


def test_opcheck_with_bias_and_sink():
    q, k, v = problem(torch.float)
    bias = torch.randn(1, 4, 1, 13, requires_grad=True)
    sink = torch.randn(4, requires_grad=True)
    torch.library.opcheck(attend, (q, k, v, bias, sink), dict(window_right=0))


def score_terms(dtype):
    make = torch.Generator().manual_seed(9)
    random = lambda *shape: torch.randn(shape, generator=make, dtype=dtype, requires_grad=True)
    places = dict(relative_queries=torch.arange(9)[None] // 3, relative_keys=torch.arange(13)[None] // 3 + 1, relative_sizes=[5])
    return dict(slopes=random(4), relative=random(2, 4, 9, 5), **places, leaky=0.3, dropout=0.25, dropout_seed=torch.tensor(5))


def test_gradients_of_score_terms_match_finite_differences():
    terms = score_terms(torch.double)
    learned = {name: terms.pop(name) for name in ("slopes", "relative")}

    def run(q, k, v, *values):
        return attend(q, k, v, **dict(zip(learned, values)), **terms, window_right=0)

    assert torch.autograd.gradcheck(run, (*problem(), *learned.values()))


def test_opcheck_with_every_score_term():
    torch.library.opcheck(attend, problem(torch.float), dict(score_terms(torch.float), window_right=0))


def test_compiles_as_one_graph_with_dynamic_lengths():
    def loss(q, k, v):
        out, lse = attend(q, k, v, window_left=5, window_right=0, sinks=2)
        return (out.float() ** 2).sum() + lse.sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for queries in (9, 17):
        q, k, v = problem(torch.float, queries=queries, keys=queries + 4)
        loss(q, k, v).backward()
        wanted = [t.grad.clone() for t in (q, k, v)]
        for t in (q, k, v):
            t.grad = None
        compiled(q, k, v).backward()
        for t, w in zip((q, k, v), wanted):
            torch.testing.assert_close(t.grad, w)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("layout", ["heads first", "heads last"])
def test_equals_torch_attention(is_causal, layout):
    q, k, v = problem(torch.float, queries=13, value_dim=8)
    if layout == "heads last":
        q, k, v = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v))
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=True)
    out, _ = attend(q, k, v, window_right=0 if is_causal else None)
    torch.testing.assert_close(out, wanted)


def test_errors_name_the_rule_and_the_values():
    q, k, v = problem(torch.float, grad=False)
    with pytest.raises((RuntimeError, ValueError), match="query heads must be a multiple of key heads, got 3 and 2"):
        attend(q[:, :3], k, v)
    for match, wrong in {
        "soft_cap must be > 0": dict(soft_cap=0.0),
        "leaky must be > 0, got -1": dict(leaky=-1.0),
        "dropout must be in \\[0, 1\\), got 1": dict(dropout=1.0),
        "dropout_seed must be int64 of one element, got Long \\[2\\]": dict(dropout_seed=torch.zeros(2).long()),
        "dropout_seed must be int64 of one element, got Float \\[\\]": dict(dropout_seed=torch.zeros(())),
        "slopes must be floating point \\[4\\], got \\[3\\]": dict(slopes=torch.ones(3)),
        "must come together, got 1": dict(relative=torch.ones(1, 1, 1, 2)),
        "relative keys must be int64 \\[1, 13\\]": dict(
            relative=torch.ones(1, 1, 1, 2), relative_queries=torch.zeros(1, 9).long(), relative_keys=torch.zeros(1, 9).long(), relative_sizes=[2]
        ),
        "key_heads must be 0 .. 1, got 2": dict(key_heads=torch.tensor([0, 1, 2, 0])),
        "count or run_end, got both": dict(
            query_block=9, index=torch.zeros(1, 1, 1, 2).int(), count=torch.ones(1, 1, 1).int(), run_end=torch.zeros(1, 1, 1, 2).int()
        ),
        "landmarks must be bool": dict(landmarks=torch.zeros(1, 12).bool()),
        "value_heads need key_heads": dict(value_heads=torch.tensor([0, 1, 1, 0])),
        "must not hold a query twice, got 5 twice": dict(query_order=torch.tensor([[[5, 1, 5]]])),
        "query_order must be -1 .. 8, got 9": dict(query_order=torch.tensor([[[9]]])),
        "start and end must have one shape": dict(
            query_block=9, index=torch.zeros(1, 1, 1, 2).int(), run_end=torch.zeros(1, 1, 1, 3).int()
        ),
    }.items():
        with pytest.raises((RuntimeError, ValueError), match=match):
            attend(q, k, v, **wrong)


def test_second_derivatives_are_refused_not_lost():
    q, k, v = problem(torch.float)
    out, _ = attend(q, k, v, window_right=0)
    (gradient,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises((RuntimeError, ValueError), match="attend: has no second derivative"):
        (gradient.square().sum() + q.sum()).backward()


@pytest.mark.parametrize("which", ["d_out", "d_lse", "out", "lse"])
def test_backward_refuses_what_forward_did_not_give(which):
    q, k, v = problem(dtype=torch.float, grad=False)
    out, lse = attend(q, k, v, window_right=0)
    given = dict(d_out=torch.ones_like(out), d_lse=torch.ones_like(lse), out=out, lse=lse)
    torch.ops.foveate.attend_backward(**given, output_mask=[False] * 4, q=q, k=k, v=v, window_right=0)
    for wrong in (given[which].double(), given[which][:, :, 1:]):
        with pytest.raises(ValueError, match=f"attend_backward: {which} must be"):
            torch.ops.foveate.attend_backward(**{**given, which: wrong}, output_mask=[False] * 4, q=q, k=k, v=v, window_right=0)


@pytest.mark.parametrize("dim", [1, 33, 64])
def test_rows_of_8_bits(dim):
    x = torch.randn(2, 3, 5, dim)
    rows = torch.ops.foveate.quantise_rows(x)
    assert rows.shape == (2, 3, 5, dim + 2 * ((dim + 31) // 32)) and rows.dtype == torch.uint8
    assert (torch.ops.foveate.dequantise_rows(rows, torch.float) - x).abs().max() <= x.abs().max() / 253
    torch.library.opcheck(torch.ops.foveate.quantise_rows, (x,))
    torch.library.opcheck(torch.ops.foveate.dequantise_rows, (rows, torch.bfloat16))
    with pytest.raises(ValueError, match="rows must be uint8 of D"):
        torch.ops.foveate.dequantise_rows(torch.zeros(3, 35, dtype=torch.uint8), torch.float)


@pytest.mark.parametrize("quantised", [False, True])
def test_pages_equal_whole_keys(quantised):
    """Blocks of keys in any order, as vLLM keeps them: [pages, heads, size, dim] and a table of pages."""
    q, k, v = problem(torch.float, grad=False, keys=24)
    if quantised:
        k, v = (torch.ops.foveate.quantise_rows(t) for t in (k, v))
    size, order = 8, torch.tensor([4, 0, 3, 2, 5, 1])
    pages = torch.empty(6, dtype=torch.int32)
    pages[order] = torch.arange(6, dtype=torch.int32)
    store = [t.unflatten(2, (3, size)).transpose(1, 2).flatten(0, 1)[order].contiguous() for t in (k, v)]
    given = dict(key_lengths=torch.tensor([24, 17]), query_start=15, window_right=0, pages=pages.view(2, 3))
    got = attend(q, *store, **given)
    wanted = attend(q, k, v, **{**given, "pages": None})
    assert all(torch.equal(a, b) for a, b in zip(got, wanted))
    torch.library.opcheck(attend, (q, *store), given)
    with pytest.raises(ValueError, match="pages that hold keys must be 0 .. 5, got 6"):
        attend(q, *store, **{**given, "pages": given["pages"] + 1})
