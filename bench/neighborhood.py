"""Neighborhood attention beside what a user could put together from torch, NATTEN through FlexAttention, and foveate's own dense attention.

    bench/neighborhood.py [--threads 1 2] [--dims 32 64] [--dtypes float32] [--cases NAME ...] [--torch mask blocks] [--no-natten] [--repeats 5] [--json]

Results are compared first: 64 places with gathered windows, then all of them with every other form.  foveate's figures are medians of
`repeats` calls in one process, those of other forms of half as many forward; their forward + backward, and NATTEN, are one call.  Useful GFLOP/s count the pairs in windows
(4 D each, backward 2.5 times that).  torch: the fastest one of gathered windows, dense attention with a mask, blocks of queries that gather all keys around them and mask (without
dilation), and, where asked for, compiled FlexAttention (forward alone: it has no backward on CPUs; NATTEN compiles nothing there).
share of dense: of the rate at which foveate's dense attention runs on as many tokens.
"""

import argparse
import itertools
import json
import math
import statistics
import sys
import time
import warnings

import torch

import foveate

# name: grid, kernel, dilation, stride, heads
CASES = {
    "2-D 56 k7": ((56, 56), (7, 7), 1, 1, 8),
    "2-D 56 k13": ((56, 56), (13, 13), 1, 1, 8),
    "2-D 56 k7 d4": ((56, 56), (7, 7), 4, 1, 8),
    "2-D 112 k7": ((112, 112), (7, 7), 1, 1, 4),
    "2-D 112 k13": ((112, 112), (13, 13), 1, 1, 4),
    "2-D 112 k7 d4": ((112, 112), (7, 7), 4, 1, 4),
    "3-D 16x28x28 k3x7x7": ((16, 28, 28), (3, 7, 7), 1, 1, 4),
    "1-D 32768 k255": ((32768,), (255,), 1, 1, 2),
    "1-D 32768 k256 s256": ((32768,), (256,), 1, 256, 2),
    "2-D 64 k16 s16": ((64, 64), (16, 16), 1, 16, 8),
}
FORMS = ("gather", "mask", "blocks", "flex")  # of torch
BLOCKS = {1: 256, 2: 8, 3: 4}  # places along an axis, by the number of axes: lengths of CASES are multiples
TOO_MUCH = 6e9  # bytes that another formulation may hold


def timed(call, repeats):
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def keys_along(length, kernel, dilation, stride):
    """[places, window] of one axis by the definition, written out."""
    rows = []
    for x in range(length):
        group, p = x % dilation, x // dilation
        size = (length - group + dilation - 1) // dilation
        leader = min(stride * (p // stride) + stride // 2, size - 1)
        start = min(max(leader - kernel // 2, 0), size - kernel)
        rows.append([(start + i) * dilation + group for i in range(kernel)])
    return torch.tensor(rows)


def on_grid(outer, inner, length):
    """Tables of places [n, m] with one axis more, `inner` of `length`."""
    return (outer[:, None, :, None] * length + inner[None, :, None, :]).flatten(2).flatten(0, 1)


def keys_of(grid, kernel, dilation, stride):
    places = torch.zeros(1, 1, dtype=torch.long)
    for length, k in zip(grid, kernel, strict=True):
        places = on_grid(places, keys_along(length, k, dilation, stride), length)
    return places


def blocks_of(grid, kernel, stride):
    """Queries [blocks, q], the keys around them [blocks, k], and which see which [blocks, q, k]."""
    queries = keys = torch.zeros(1, 1, dtype=torch.long)
    sees = torch.ones(1, 1, 1, dtype=torch.bool)
    for length, k in zip(grid, kernel, strict=True):
        own = torch.arange(length).view(-1, BLOCKS[len(grid)])
        windows = keys_along(length, k, 1, stride)[own]  # [blocks, q, window]
        first, end = windows[:, 0, 0], windows[:, -1, -1] + 1
        most = int((end - first).max())
        around = first.clamp(max=length - most)[:, None] + torch.arange(most)
        seen = (around[:, None] >= windows[..., :1]) & (around[:, None] <= windows[..., -1:])
        queries, keys = on_grid(queries, own, length), on_grid(keys, around, length)
        sees = sees[:, None, :, None, :, None] & seen[None, :, None, :, None, :]
        sees = sees.flatten(4).flatten(2, 3).flatten(0, 1)
    return queries, keys, sees


def gathered(q, k, v, keys, rows=None):
    """Windows as tensors of their own; rows: these places alone, [B, rows, H, D]."""
    grid = q.shape[1:-2]
    q, k, v = (t.flatten(1, -3).transpose(1, 2) for t in (q, k, v))
    if rows is not None:
        grid, q, keys = (len(rows),), q[:, :, rows], keys[rows]
    weights = torch.softmax(torch.matmul(k[:, :, keys], q.unsqueeze(-1)).squeeze(-1) / math.sqrt(q.shape[-1]), -1)
    return torch.matmul(weights.unsqueeze(-2), v[:, :, keys]).squeeze(-2).transpose(1, 2).unflatten(1, grid)


def masked(q, k, v, mask):
    grid = q.shape[1:-2]
    q, k, v = (t.flatten(1, -3).transpose(1, 2) for t in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).unflatten(1, grid)


def blocked(q, k, v, queries, keys, sees):
    """Of one sequence."""
    grid, back = q.shape[1:-2], queries.flatten().argsort()
    q, k, v = (t[0].flatten(0, -3)[rows].transpose(1, 2) for t, rows in ((q, queries), (k, keys), (v, keys)))  # [blocks, H, places, D]
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=sees[:, None])
    return out.transpose(1, 2).flatten(0, 1)[back].unflatten(0, grid)[None]


def both(call, q, k, v):
    """Forward and backward."""
    for t in (q, k, v):
        t.grad = None
    call(q, k, v).sum().backward()


def flex(grid, kernel, dilation, stride):
    """Compiled FlexAttention; compiling takes a minute."""
    torch._dynamo.reset()  # else the ninth case runs uncompiled
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    places = math.prod(grid)
    windows = keys_of(grid, kernel, dilation, stride)
    first = torch.stack(torch.unravel_index(windows[:, 0], grid))  # [axes, places]
    at = torch.stack(torch.unravel_index(torch.arange(places), grid))

    def sees(b, h, query, key):
        seen = query >= 0
        for axis, k in enumerate(kernel):
            steps = at[axis][key] - first[axis][query]
            seen = seen & (steps >= 0) & (steps < k * dilation) & (steps % dilation == 0)
        return seen

    blocks = create_block_mask(sees, None, None, places, places, device="cpu")
    run = torch.compile(flex_attention, dynamic=False)

    def call(q, k, v):
        q, k, v = (t.flatten(1, -3).transpose(1, 2) for t in (q, k, v))
        return run(q, k, v, block_mask=blocks).transpose(1, 2).unflatten(1, grid)

    return call


def natten_call(grid, kernel, dilation, stride, heads):
    """Uncompiled FlexAttention holds all scores; nothing where that is too much or NATTEN is not there."""
    if math.prod(grid) ** 2 * heads * 4 > TOO_MUCH:
        return None
    try:
        import natten
    except ImportError:
        return None
    run = getattr(natten, f"na{len(grid)}d")
    return lambda q, k, v: run(q, k, v, kernel, stride=stride, dilation=dilation, backend="flex-fna")


def measure(name, dim, dtype, threads, repeats, wanted, with_natten):
    grid, kernel, dilation, stride, heads = CASES[name]
    places, window = math.prod(grid), math.prod(kernel)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, *grid, heads, dim, dtype=dtype) for _ in range(3))
    flops = 4.0 * heads * places * window * dim
    item = dict(case=name, dim=dim, dtype=str(dtype).removeprefix("torch."), threads=threads)

    def ours(q, k, v):
        return foveate.neighborhood_attention(q, k, v, kernel, stride=stride, dilation=dilation)

    def compare(got, want):
        torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2 if dtype != torch.float else 1e-4)

    size = q.element_size()
    torch_forms = {}
    keys, rows = keys_of(grid, kernel, dilation, stride), torch.linspace(0, places - 1, 64).long()
    compare(ours(q, k, v).flatten(1, -3)[:, rows], gathered(q, k, v, keys, rows))
    if "gather" in wanted and 2 * heads * places * window * dim * size < TOO_MUCH:
        torch_forms["gather"] = lambda q, k, v: gathered(q, k, v, keys)
    if "mask" in wanted and places**2 * (size + heads * 4) < TOO_MUCH:
        mask = torch.zeros(places, places, dtype=torch.bool).scatter_(1, keys, True)
        torch_forms["mask"] = lambda q, k, v: masked(q, k, v, mask)
    if "blocks" in wanted and dilation == 1:
        blocks = blocks_of(grid, kernel, stride)
        torch_forms["blocks"] = lambda q, k, v: blocked(q, k, v, *blocks)
    if "flex" in wanted and places**2 * 8 < TOO_MUCH:
        torch_forms["flex"] = flex(grid, kernel, dilation, stride)
    for form, call in torch_forms.items():
        compare(ours(q, k, v), call(q, k, v))
        item[f"{form}_ms"] = 1e3 * timed(lambda call=call: call(q, k, v), max(1, repeats // 2))
    item["forward_ms"] = 1e3 * timed(lambda: ours(q, k, v), repeats)
    item["gflops"] = flops / item["forward_ms"] / 1e6
    flat = [t.flatten(1, -3).transpose(1, 2) for t in (q, k, v)]
    if places <= 16384:
        dense = timed(lambda: foveate.attend(*flat, foveate.Rule(window_right=None)), max(1, repeats // 2))
        item["share_of_dense"] = dense * window / places / (item["forward_ms"] / 1e3)
    if with_natten and (natten := natten_call(grid, kernel, dilation, stride, heads)):
        compare(ours(q, k, v), natten(q, k, v))
        item["natten_ms"] = 1e3 * timed(lambda: natten(q, k, v), 1)
    for t in (q, k, v):
        t.requires_grad_()
    item["both_ms"] = 1e3 * timed(lambda: both(ours, q, k, v), repeats)
    item["both_gflops"] = 3.5 * flops / item["both_ms"] / 1e6
    torch_forms.pop("flex", None)
    for form, call in torch_forms.items():
        item[f"{form}_both_ms"] = 1e3 * timed(lambda call=call: both(call, q, k, v), 1)
    return item


def row(item):
    def over_torch(key):
        measured = [(item[f"{form}_{key}"], form) for form in FORMS if f"{form}_{key}" in item]
        if not measured:
            return "-"
        best, form = min(measured)
        return f"{form} {best / item['forward_ms' if key == 'ms' else key]:.1f}x"

    return [
        item["case"], str(item["dim"]), item["dtype"], str(item["threads"]), f"{item['forward_ms']:.2f}", f"{item['gflops']:.0f}",
        over_torch("ms"), f"{item['natten_ms'] / item['forward_ms']:.1f}x" if "natten_ms" in item else "-",
        f"{100 * item['share_of_dense']:.0f} %" if "share_of_dense" in item else "-",
        f"{item['both_ms']:.2f}", f"{item['both_gflops']:.0f}", over_torch("both_ms"),
    ]  # fmt: skip


HEADER = ["case", "D", "dtype", "threads", "forward ms", "GFLOP/s", "over torch", "over NATTEN", "share of dense", "forward + backward ms", "GFLOP/s", "over torch"]


def arguments(description, cases, dtypes):
    """A parser with what benchmarks of cases have in common."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cases", nargs="+", default=list(cases), choices=list(cases))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=dtypes)
    parser.add_argument("--json", action="store_true", help="a line for each measurement")
    return parser


def report(items, header, row, as_json):
    """Prints each item when it is there: a row of a table, or a line of JSON."""
    warnings.filterwarnings("ignore")
    if not as_json:
        print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for item in items:
        print(json.dumps(item) if as_json else "| " + " | ".join(row(item)) + " |", flush=True)


def measurements(options):
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name, dim, dtype in itertools.product(options.cases, options.dims, options.dtypes):
            yield measure(name, dim, getattr(torch, dtype), threads, options.repeats, options.torch, not options.no_natten)


def main():
    parser = arguments(__doc__, CASES, ["float32", "bfloat16", "float16"])
    parser.add_argument("--dims", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--torch", nargs="*", default=["gather", "mask", "blocks"], choices=FORMS, help="what foveate is held against")
    parser.add_argument("--no-natten", action="store_true")
    options = parser.parse_args()
    report(measurements(options), HEADER, row, options.json)


if __name__ == "__main__":
    sys.exit(main())
