"""Sorted-group attention from Python: against loops over tokens, and what torch sees of the operators."""

import pytest
import torch

import foveate

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def problem(tokens, dtype=torch.double, gradients=True):
    make = torch.Generator().manual_seed(tokens)
    shapes = [(2, 3, tokens, 4), (2, 3, tokens, 4), (2, 3, tokens, 5), (3, 7, 4), (3, 7, 5)]
    rows = [torch.randn(shape, generator=make, dtype=dtype).requires_grad_(gradients) for shape in shapes]
    return rows, torch.rand(2, tokens, generator=make).argsort(-1)


def by_loops(q, k, v, order, centre_k, centre_v, group, window, merge):
    """A token at a time, by the words of the paper: its group and the next one, behind the end the tail backwards."""
    batch, heads, tokens, dim = q.shape
    size = min(group, tokens)
    out = torch.empty(batch, heads, tokens, v.shape[3], dtype=q.dtype)
    rows = []
    for b in range(batch):
        for place in range(tokens):
            first = place // size * size
            begin, end = {"own": (0, 1), "next": (0, 2), "both": (-1, 2)}[window]
            places = range(first + begin * size, first + end * size)
            seen = [p if 0 <= p < tokens else -1 - p if p < 0 else 2 * tokens - 1 - p for p in places]
            keys, query = order[b, seen], q[b, :, order[b, place]]
            near = torch.einsum("hd,hkd->hk", query, k[b][:, keys]) / dim**0.5
            far = torch.einsum("hd,hkd->hk", query, centre_k) / dim**0.5
            if merge == "sum":
                row = torch.einsum("hk,hkd->hd", near.softmax(1), v[b][:, keys]) + torch.einsum("hk,hkd->hd", far.softmax(1), centre_v)
            else:
                weights = torch.cat([near, far], 1).softmax(1)
                row = torch.einsum("hk,hkd->hd", weights, torch.cat([v[b][:, keys], centre_v], 1))
            rows.append((b, order[b, place], row))
    for b, token, row in rows:
        out[b, :, token] = row
    return out


@pytest.mark.parametrize("merge", ["sum", "joint"])
@pytest.mark.parametrize("window", ["own", "next", "both"])
@pytest.mark.parametrize("tokens", [3, 8, 11])
def test_equals_loops_over_tokens_forward_and_backward(tokens, window, merge):
    rows, order = problem(tokens)
    options = dict(group=4, window=window, merge=merge)
    results = []
    for run in (by_loops, foveate.sorted_group_attention):
        q, k, v, *centres = given = [t.detach().clone().requires_grad_() for t in rows]
        out = run(q, k, v, order, *centres, **options)
        results.append([out.detach(), *torch.autograd.grad(out.sin().sum(), given)])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    single = [t.detach().float() for t in rows]
    with torch.no_grad():
        got = foveate.sorted_group_attention(*single[:3], order, *single[3:], **options)
    torch.testing.assert_close(got, results[0][0].float(), rtol=1e-4, atol=1e-5)


def test_golden_numbers_of_the_mirrored_tail():
    x = (0.2 * torch.arange(8, dtype=torch.double)).view(1, 1, 8, 1)
    got = foveate.sorted_group_attention(x, x, x, torch.arange(8)[None], group=4, scale=1.0).flatten()
    want = [0.7, 0.741927, 0.783423, 0.824077, 1.139713, 1.149442, 1.159042, 1.168490]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.double), rtol=0, atol=1e-6)


def one_step(x, centres):
    """k-means on the sphere, a token at a time."""
    centres = centres / centres.norm(dim=1, keepdim=True)
    sums = [torch.zeros_like(centres[0]) for _ in centres]
    counts = [0] * len(centres)
    for token in x.flatten(0, 1):
        nearest = max(range(len(centres)), key=lambda j: (float(centres[j] @ token.detach()), -j))
        sums[nearest], counts[nearest] = sums[nearest] + token / token.norm(), counts[nearest] + 1
    return torch.stack([s / s.norm() if count else c for s, count, c in zip(sums, counts, centres)])


def test_centres_are_refined_as_by_loops_with_gradients_of_the_last_step():
    make = torch.Generator().manual_seed(1)
    x = torch.randn(2, 9, 3, generator=make, dtype=torch.double, requires_grad=True)
    centres = torch.randn(5, 3, generator=make, dtype=torch.double)
    centres[4] = -x.detach().sum((0, 1))  # of no token
    before = centres
    with torch.no_grad():
        for _ in range(2):
            before = one_step(x, before)
    results = []
    for got in (one_step(x, before), foveate.refine_centres(x, centres, 3)):
        results.append([got.detach(), *torch.autograd.grad((got * torch.arange(3)).sum(), x)])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_first_centres_are_means_of_parts():
    x = torch.randn(2, 10, 3, dtype=torch.double)
    longer = torch.cat([x, x[:, [9, 8]]], 1)
    torch.testing.assert_close(foveate.first_centres(x, 4), longer.view(2, 4, 3, 3).mean((0, 2)))
    with pytest.raises(ValueError, match=r"centres: there must be as many tokens as centres \(11\), got 10"):
        foveate.first_centres(x, 11)


def test_tokens_are_sorted_by_centre_and_ties_keep_their_order():
    x = torch.tensor([[[2.0, 0.0], [1.0, 1.0], [0.0, 3.0], [-1.0, 0.1], [0.5, -0.2]]])
    nearest = foveate.nearest_centres(x, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    assert nearest.tolist() == [[0, 0, 1, 1, 0]]
    assert foveate.sort_by_centre(nearest).tolist() == [[0, 1, 4, 2, 3]]


@pytest.mark.parametrize("options", [("next", "sum"), ("both", "joint")])
def test_the_operators_are_what_torch_expects(options):
    (q, k, v, *centres), order = problem(11, torch.float)
    torch.library.opcheck(torch.ops.foveate.sorted_group_attention, (q, k, v, order, *centres, 4, *options), test_utils=CHECKS)
    x, means = torch.randn(2, 11, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    torch.library.opcheck(torch.ops.foveate.first_centres, (x, 3), test_utils=CHECKS)
    torch.library.opcheck(torch.ops.foveate.refine_centres, (x, means, 2), test_utils=CHECKS)
    torch.library.opcheck(torch.ops.foveate.nearest_centres, (x.detach(), means.detach()), test_utils=CHECKS)
    torch.library.opcheck(torch.ops.foveate.sort_by_centre, (torch.randint(3, (2, 11)),), test_utils=CHECKS)


@pytest.mark.parametrize("merge", ["sum", "joint"])
@pytest.mark.parametrize("learns", [True, False])
def test_compiles_as_one_graph_from_tokens_to_rows(merge, learns):
    (q, k, v, *centres), _ = problem(11, torch.float, learns)
    x, means = torch.randn(2, 11, 4), torch.randn(3, 4)

    def rows(q, k, v, *centres):
        refined = foveate.refine_centres(x, torch.where(means > 9, means, foveate.first_centres(x, 3)), 3)
        order = foveate.sort_by_centre(foveate.nearest_centres(x, refined))
        return foveate.sorted_group_attention(q, k, v, order, *centres, group=4, merge=merge)

    given = (q, k, v, *centres)
    got, want = torch.compile(rows, fullgraph=True, backend="aot_eager")(*given), rows(*given)
    torch.testing.assert_close(got, want)
    if learns:
        for a, b in zip(torch.autograd.grad(got.sin().sum(), given), torch.autograd.grad(want.sin().sum(), given), strict=True):
            torch.testing.assert_close(a, b)


def test_what_does_not_fit_is_refused():
    (q, k, v, centre_k, _), order = problem(5)
    for options, message in [
        (dict(group=4), "sequences must have up to 4 or at least 6 tokens, got 5"),
        (dict(window="all"), "window must be own, next or both, got 'all'"),
        (dict(merge="mean"), "merge must be sum or joint, got 'mean'"),
        (dict(centre_k=centre_k), "centre_k and centre_v must be given together"),
    ]:
        with pytest.raises(ValueError, match=f"sorted groups: {message}"):
            foveate.sorted_group_attention(q, k, v, order, **options)
