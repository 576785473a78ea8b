"""Local attention of vision models beside what a user could put together from torch, and timm's halo attention.

    bench/vision.py [--threads 1 2] [--repeats 5] [--cases NAME ...] [--dtypes float32 bfloat16] [--json]

halo layer: HaloAttn with projections and position embeddings, over timm's with the same weights
halo:       halo_attend over unfolded windows
groups:     sorted_group_attention (CATANet) over tokens sorted, gathered into groups whose keys (their own and the next
            group's) are tensors of their own, and put back; the order is given
attender:   local_attender (UPLiFT) over shifted values, multiplied and summed ("stack": n times the output in memory),
            as products of a cell's weights and neighbours ("matmul"), or one by one ("loop", low memory)

Results and all gradients are compared before anything is timed; figures are medians of `repeats` calls in one process.
GFLOP/s count products with keys, values and projections.  MB: what the resident set grew by during a forward call, the
result not counted (Linux; less than 1 MB counts as 1).  over: the other's time or memory over foveate's, the strongest rival first.
"""

import ctypes
import importlib.util
import itertools
import pathlib
import sys
from functools import partial
from typing import Callable, NamedTuple

import torch
from neighborhood import arguments, report, timed
from torch import Tensor
from torch.nn import functional as F

import foveate


class Problem(NamedTuple):
    ours: Callable[..., Tensor]
    forms: dict[str, Callable[..., Tensor]]  # of the same arguments
    given: list[Tensor]  # these, in fp32; gradients of all of them
    flops: float  # forward


# ---- attention among rows that were gathered: [B, n, queries, d], [B, n, keys, d], [B, n, keys, dv] ----


def explicit(q, k, v, bias=None):
    logits = q @ k.mT * q.shape[-1] ** -0.5
    return (logits if bias is None else logits + bias).softmax(-1) @ v


def sdpa(q, k, v, bias=None):
    """With keys as wide as values, as torch's fused kernel wants them."""
    q_wide, k_wide = (F.pad(t, (0, v.shape[-1] - t.shape[-1])) for t in (q, k))
    return F.scaled_dot_product_attention(q_wide, k_wide, v, attn_mask=bias, scale=q.shape[-1] ** -0.5)


ATTENDS = {"softmax": explicit, "sdpa": sdpa}

# ---- halo attention ----

BLOCK, HALO = 8, 3
WINDOW = BLOCK + 2 * HALO
BATCH, DIM, HEADS = 4, 256, 8


def halo_layer(side):
    sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "tests/python"))
    from timm_reference import import_timm  # without torchvision too

    options = dict(dim=DIM, num_heads=HEADS, block_size=BLOCK, halo_size=HALO)
    theirs, ours = import_timm().layers.halo_attn.HaloAttn(**options), foveate.HaloAttn(**options)
    names, weights = zip(*theirs.named_parameters(), strict=True)

    def run(layer):
        return lambda x, *weights: torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), x)

    flops = BATCH * side**2 * DIM * (4.0 * WINDOW**2 + 6.0 * DIM)
    return Problem(run(ours), {"timm": run(theirs)}, [torch.randn(BATCH, DIM, side, side), *weights], flops)


def blocks_of(t, window):
    """[B, heads, H, W, d] -> [B, heads * blocks, window * window, d], copied."""
    windows = t.unfold(2, window, BLOCK).unfold(3, window, BLOCK)  # [B, heads, down, across, d, window, window]
    return windows.permute(0, 1, 2, 3, 5, 6, 4).flatten(4, 5).flatten(1, 3)


def unfolded(attend, q, k, v, *embeddings):
    queries = blocks_of(q, BLOCK)
    keys, values = (blocks_of(F.pad(t, (0, 0, HALO, HALO, HALO, HALO)), WINDOW) for t in (k, v))
    bias = None
    if embeddings:
        places = torch.arange(WINDOW) - torch.arange(BLOCK).unsqueeze(1) + WINDOW - 1  # [BLOCK, WINDOW]
        height, width = (table[places] for table in embeddings)  # [BLOCK, WINDOW, d]
        rows = queries.unflatten(2, (BLOCK, BLOCK))
        bias = torch.einsum("bnyxd,ywd->bnyxw", rows, height).unsqueeze(-1)
        bias = bias + torch.einsum("bnyxd,xwd->bnyxw", rows, width).unsqueeze(-2)
        bias = bias.flatten(4, 5).flatten(2, 3)
    out = attend(queries, keys, values, bias)
    out = out.view(-1, q.shape[1], q.shape[2] // BLOCK, q.shape[3] // BLOCK, BLOCK, BLOCK, v.shape[-1])
    return out.transpose(3, 4).flatten(4, 5).flatten(2, 3)


def halo(side, positions):
    def ours(q, k, v, *embeddings):
        return foveate.halo_attend(q, k, v, *embeddings, block=BLOCK, halo=HALO).out

    width = DIM // HEADS  # as a layer's linear maps give them: heads behind the pixels
    given = [torch.randn(BATCH, side, side, HEADS, width).permute(0, 3, 1, 2, 4) for _ in range(3)]
    if positions:
        given += [torch.randn(2 * WINDOW - 1, width) * width**-0.5 for _ in range(2)]
    forms = {name: partial(unfolded, attend) for name, attend in ATTENDS.items()}
    return Problem(ours, forms, given, BATCH * side**2 * DIM * 4.0 * WINDOW**2)


# ---- sorted groups ----


def gathered(attend, order, group, q, k, v, *centres):
    tokens = q.shape[2]
    missing = -tokens % group

    def in_groups(t, by):  # sorted, and behind its end its tail backwards: [B, heads, groups, group, d]
        t = t.transpose(1, 2).index_select(1, order).transpose(1, 2)  # whole tokens; faster than gather
        return torch.cat([t, t[:, :, tokens - by :].flip(2)], 2).unflatten(2, (-1, group))

    def windows(t):
        groups = in_groups(t, missing + group)
        return torch.cat([groups[:, :, :-1], groups[:, :, 1:]], 3).flatten(1, 2)

    out = attend(in_groups(q, missing).flatten(1, 2), windows(k), windows(v))
    out = out.unflatten(1, (q.shape[1], -1)).flatten(2, 3)[:, :, :tokens].index_select(2, order.argsort())
    return out + attend(q, *(t.unsqueeze(0) for t in centres)) if centres else out


def groups(side, group, centres=0, heads=4, dim=9, value_dim=10):
    tokens, widths = side[0] * side[1], (dim, dim, value_dim)
    order = foveate.sort_by_centre(torch.randint(4096 // group, (1, tokens)))

    def ours(q, k, v, *centre_rows):
        return foveate.sorted_group_attention(q, k, v, order, *centre_rows, group=group)

    given = [torch.randn(1, tokens, heads, width).transpose(1, 2) for width in widths]
    if centres:
        given += [torch.randn(heads, centres, width) for width in widths[1:]]
    forms = {name: partial(gathered, attend, order[0], group) for name, attend in ATTENDS.items()}
    return Problem(ours, forms, given, 2.0 * heads * tokens * (2 * group + centres) * (dim + value_dim))


# ---- Local Attender ----


def shifted(value, offsets):
    """What each cell sees at every offset, [B, C, H, W] each; borders repeat."""
    height, width = value.shape[2:]
    padded = F.pad(value, (2, 2, 2, 2), mode="replicate")
    return [padded[:, :, 2 + row : 2 + row + height, 2 + column : 2 + column + width] for row, column in offsets]


def weights_of(logits, factor):
    """[B, n, factor^2, H, W]: a cell's pixels before the map, which multiplies faster than behind it."""
    return F.pixel_unshuffle(logits.softmax(1), factor).unflatten(1, (logits.shape[1], -1))


def by_stack(offsets, factor, logits, value):
    seen = torch.stack(shifted(value, offsets), 2).unsqueeze(3)
    return F.pixel_shuffle((seen * weights_of(logits, factor).unsqueeze(1)).sum(2).flatten(1, 2), factor)


def by_matmul(offsets, factor, logits, value):
    seen = torch.stack([t.permute(0, 2, 3, 1) for t in shifted(value, offsets)], 3)  # [B, H, W, n, C]
    out = weights_of(logits, factor).permute(0, 3, 4, 2, 1) @ seen  # [B, H, W, factor^2, C]
    return F.pixel_shuffle(out.permute(0, 4, 3, 1, 2).flatten(1, 2), factor)


def by_loop(offsets, factor, logits, value):
    out = torch.zeros((), dtype=value.dtype)
    for seen, weights in zip(shifted(value, offsets), weights_of(logits, factor).unsqueeze(1).unbind(2), strict=True):
        out = torch.addcmul(out, seen.unsqueeze(2), weights)
    return F.pixel_shuffle(out.flatten(1, 2), factor)


def attender(side, channels=384, factor=2, count=17, guide=0):
    """guide: channels of a guide, of which a layer makes the logits; 0: the logits are given."""
    offsets, pixels, value = foveate.attender_offsets(count), factor * side, torch.randn(1, channels, side, side)
    forms = dict(stack=by_stack, matmul=by_matmul, loop=by_loop)
    forms = {name: partial(form, offsets, factor) for name, form in forms.items()}
    flops = 2.0 * pixels**2 * count * (channels + guide)
    if not guide:
        given = [torch.randn(1, count, pixels, pixels), value]
        return Problem(partial(foveate.local_attender, offsets=offsets), forms, given, flops)
    layer = foveate.LocalAttender(guide, count)

    def ours(guide, value, weight, bias):
        return torch.func.functional_call(layer, {"conv1.weight": weight, "conv1.bias": bias}, (guide, value))

    def behind(form):
        return lambda guide, value, *conv: form(F.conv2d(guide, *conv) + guide[:, :count], value)

    given = [torch.randn(1, guide, pixels, pixels), value, *layer.parameters()]
    return Problem(ours, {name: behind(form) for name, form in forms.items()}, given, flops)


CASES = {
    "halo layer 64x64": partial(halo_layer, 64),
    "halo layer 32x32": partial(halo_layer, 32),
    "halo 64x64": partial(halo, 64, positions=False),
    "halo 64x64 positions": partial(halo, 64, positions=True),
    "halo 32x32 positions": partial(halo, 32, positions=True),
    "groups 64x64 of 256": partial(groups, (64, 64), 256),
    "groups 64x64 of 128": partial(groups, (64, 64), 128),
    "groups 128x128 of 256": partial(groups, (128, 128), 256),
    "groups 128x128 of 128": partial(groups, (128, 128), 128),
    "groups 128x128 of 32": partial(groups, (128, 128), 32),
    "groups 128x128 of 128 centres": partial(groups, (128, 128), 128, centres=32),
    "groups 180x320 of 128": partial(groups, (180, 320), 128),  # the image of the published MACs at x4
    "attender 16 C384": partial(attender, 16),  # images of 224, 448 and 896 pixels in tokens of 14, one doubling
    "attender 32 C384": partial(attender, 32),
    "attender 64 C384": partial(attender, 64),
    "attender 64 C384 layer": partial(attender, 64, guide=64),
    "attender 128 C384": partial(attender, 128),
    "attender 32 C384 x4": partial(attender, 32, factor=4),
    "attender 64 C4": partial(attender, 64, channels=4),  # latents
}


def temporaries_mb(call):
    def resident(key):
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))

    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    out = call()
    return (resident("VmHWM") - before - out.nbytes) / 1e6


def with_gradients(call, given, d_out):
    out = call(*given)
    return [out.detach(), *torch.autograd.grad(out, given, d_out)]


def measure(name, dtype, threads, repeats):
    item = dict(case=name, dtype=str(dtype).removeprefix("torch."), threads=threads)
    missing = [package for package in ("timm", "pytest") if importlib.util.find_spec(package) is None]
    if CASES[name].func is halo_layer and missing:
        return item | dict(skipped=f"{missing[0]} is not installed")
    torch.manual_seed(0)
    ours, forms, given, flops = CASES[name]()
    given = [t.detach().to(dtype).requires_grad_() for t in given]
    d_out = torch.randn_like(ours(*given))
    got = with_gradients(ours, given, d_out)
    bound = 1e-4 if dtype == torch.float else 2e-2
    for form, call in forms.items():
        for i, (a, b) in enumerate(zip(got, with_gradients(call, given, d_out), strict=True)):
            what = f"{name}, {item['dtype']}, {form}, {f'gradient {i}' if i else 'result'}: {{}}"
            torch.testing.assert_close(a, b, rtol=bound, atol=bound * b.abs().max().item(), msg=what.format)
    for form, call in {"foveate": ours, **forms}.items():
        with torch.no_grad():
            item[f"{form}_temporaries_mb"] = temporaries_mb(partial(call, *given))
            item[f"{form}_ms"] = 1e3 * timed(partial(call, *given), repeats)
        item[f"{form}_both_ms"] = 1e3 * timed(partial(with_gradients, call, given, d_out), repeats)
    return item | dict(forms=list(forms), gflops=flops / item["foveate_ms"] / 1e6)


HEADER = ["case", "dtype", "threads", "forward ms", "GFLOP/s", "over", "forward + backward ms", "over", "MB", "over"]


def row(item):
    def over(key):
        least = 1.0 if key == "temporaries_mb" else 0.0  # MB that are told apart
        ratios = {form: item[f"{form}_{key}"] / max(item[f"foveate_{key}"], least) for form in item["forms"]}
        return ", ".join(f"{form} {ratio:.1f}x" for form, ratio in sorted(ratios.items(), key=lambda one: one[1]))

    cells = [item["case"], item["dtype"], str(item["threads"])]
    if "skipped" in item:
        return [*cells, f"skipped: {item['skipped']}", *[""] * (len(HEADER) - 4)]
    cells += [f"{item['foveate_ms']:.2f}", f"{item['gflops']:.0f}", over("ms"), f"{item['foveate_both_ms']:.2f}"]
    return [*cells, over("both_ms"), f"{item['foveate_temporaries_mb']:.1f}", over("temporaries_mb")]


def measurements(options):
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name, dtype in itertools.product(options.cases, options.dtypes):
            yield measure(name, getattr(torch, dtype), threads, options.repeats)


def main():
    options = arguments(__doc__, CASES, ["float32", "bfloat16"]).parse_args()
    report(measurements(options), HEADER, row, options.json)


if __name__ == "__main__":
    sys.exit(main())
