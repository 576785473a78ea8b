"""NAT and DiNAT from Python: against the formula written out, and with what the command line trained."""

import re

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import foveate


def window(place, length, kernel, dilation):
    """Keys that a place of an axis sees, and the index of each in a table of positions."""
    group, p = place % dilation, place // dilation
    size = -(-(length - group) // dilation)
    first = min(max(p - kernel // 2, 0), size - kernel)
    return [(first + i) * dilation + group for i in range(kernel)], [first + i - p + kernel - 1 for i in range(kernel)]


def attention(x, weights, heads, kernel, dilation):
    """A layer's attention, place by place; weights by name."""
    batch, height, width, dim = x.shape
    x = F.pad(x, [0, 0, 0, max(kernel * dilation - width, 0), 0, max(kernel * dilation - height, 0)])
    q, k, v = F.linear(x, weights["qkv.weight"], weights["qkv.bias"]).unflatten(-1, (3, heads, dim // heads)).unbind(-3)
    rows = []
    for y in range(height):
        keys_y, table_y = window(y, x.shape[1], kernel, dilation)
        for z in range(width):
            keys_z, table_z = window(z, x.shape[2], kernel, dilation)
            seen_k, seen_v = (t[:, keys_y][:, :, keys_z].flatten(1, 2) for t in (k, v))  # [B, window, H, D]
            logits = torch.einsum("bhd,bkhd->bhk", q[:, y, z], seen_k) / (dim // heads) ** 0.5
            logits = logits + weights["rpb"][:, table_y][:, :, table_z].flatten(1)
            rows.append(torch.einsum("bhk,bkhd->bhd", logits.softmax(-1), seen_v).flatten(1))
    return F.linear(torch.stack(rows, 1).unflatten(1, (height, width)), weights["proj.weight"], weights["proj.bias"])


def test_a_layer_is_the_formula_written_out():
    torch.manual_seed(1)
    layer = foveate.NATLayer(12, 3, kernel_size=3, dilation=2, mlp_ratio=2, layer_scale=0.3).double()
    torch.nn.init.normal_(layer.attn.rpb)
    x = torch.randn(2, 7, 5, 12, dtype=torch.double)  # 5 < 3 * 2: padded
    w = dict(layer.named_parameters())
    attn = {name.removeprefix("attn."): p for name, p in w.items() if name.startswith("attn.")}
    y = x + w["gamma1"] * attention(F.layer_norm(x, [12], w["norm1.weight"], w["norm1.bias"]), attn, 3, 3, 2)
    hidden = F.gelu(F.linear(F.layer_norm(y, [12], w["norm2.weight"], w["norm2.bias"]), w["mlp.fc1.weight"], w["mlp.fc1.bias"]))
    want = y + w["gamma2"] * F.linear(hidden, w["mlp.fc2.weight"], w["mlp.fc2.bias"])
    torch.testing.assert_close(layer(x), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (dict(embed_dim=64, depths=(3, 4, 6, 5), num_heads=(2, 4, 8, 16)), 19984174),
        (dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), mlp_ratio=4, embeds_patches=True, merges_patches=True), 28288354),
    ],
)
def test_parameter_counts_are_the_published_ones(options, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in foveate.NAT(**options).parameters()) == count


SMALL = dict(embed_dim=16, depths=(2, 1), num_heads=(1, 2), kernel_size=3, dilations=((1, 2), (1,)), num_classes=0, out_indices=(1, 0))


@pytest.mark.parametrize("patches", [False, True])
def test_a_backbone_gives_maps_and_trains_as_one_graph(patches):
    torch.manual_seed(1)
    net = foveate.NAT(**SMALL, drop_path=0.5, embeds_patches=patches, merges_patches=patches)
    image = torch.randn(3, 3, 37, 42)
    assert [tuple(m.shape) for m in net.maps(image)] == [(3, 16, 10, 11), (3, 32, 5, 6)]
    assert not torch.equal(net.maps(image)[1], net.maps(image)[1])  # paths are dropped
    net.eval()
    assert torch.equal(net.maps(image)[1], net.maps(image)[1])
    sum(m.square().mean() for m in torch.compile(net.maps, fullgraph=True, backend="aot_eager")(image)).backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())
    with pytest.raises(ValueError, match="num_classes must be >= 1 for scores"):
        net(image)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"must fit depths \[2, 1\], got \[1, 2\] and \(\(1,\), \(1,\)\)"):
        foveate.NAT(**SMALL | dict(dilations=((1,), (1,))))
    with pytest.raises(ValueError, match=r"out_indices must be levels 0 .. 1, got \[2\]"):
        foveate.NAT(**SMALL | dict(out_indices=[2]))
    with pytest.raises(ValueError, match="patch of 2, 4, 8 .. and a multiple of half of it for dim, got 6 and 16"):
        foveate.NAT(**SMALL, patch=6)
    for options, message in (
        (dict(drop_path=1.0), r"drop_path must be in \[0, 1\), got 1.0"),
        (dict(depths=(), num_heads=(), dilations=()), r"must be >= 1, got \[\], \[\] and 4"),
        (dict(num_heads=(1, 0)), r"must be >= 1, got \[2, 1\], \[1, 0\] and 4"),
        (dict(out_indices=()), "num_classes must be >= 1, or 0 with out_indices, got 0"),
        (dict(num_classes=-1), "or 0 with out_indices, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            foveate.NAT(**SMALL | options)


def test_names_are_the_published_ones():
    names = set(foveate.NAT(**SMALL).state_dict())
    assert {"patch_embed.proj.1.bias", "levels.0.blocks.1.attn.rpb", "levels.0.downsample.reduction.weight", "norm1.bias"} <= names
    patches = dict(levels="layers", embeds_patches=True, merges_patches=True)
    names = set(foveate.NAT(**SMALL | patches).state_dict())
    assert {"patch_embed.proj.weight", "layers.0.blocks.1.mlp.fc1.weight", "layers.0.downsample.norm.weight"} <= names
    isotropic = SMALL | dict(depths=(2,), num_heads=(1,), dilations=((1, 2),), out_indices=(0,))
    names = set(foveate.NAT(**isotropic | patches).state_dict())
    assert {"layers.1.attn.rpb", "norm0.weight"} <= names and not any("blocks" in name for name in names)


@pytest.mark.parametrize("levels", [(1, 1, 1), (0, 2, 1), (0, 2, 0)])
def test_weights_of_the_command_line_give_its_scores(command, discs, levels, tmp_path):
    words = ["--embed", "16", "--kernel", "3", "--batch", "4", "--steps", "40", "--warmup", "1", "--pad", "0", "--flip", "0"]
    for name, count in zip(("first", "second", "third"), levels, strict=True):
        words += [f"--{name}-layers", str(count)]
    path = tmp_path / "dinat.safetensors"
    done = command("train", "image-classifier", "--kind", "dinat", *words, "--data", discs, "-o", path).stdout.decode()
    said = float(re.search(r"top-1 ([\d.]+)% of", done).group(1))
    depths = [n for n in levels if n]
    side = 14 if levels[0] else 7
    dilations = [[(side + 2**i - 1) // 2**i // 3 if j % 2 else 1 for j in range(n)] for i, n in enumerate(depths)]
    net = foveate.NAT(16, depths, [2**i for i in range(len(depths))], 3, dilations, num_classes=10, patch=2 if levels[0] else 4).eval()
    net.load_state_dict(load_file(path))
    pixels = (discs / "t10k-images-idx3-ubyte").read_bytes()[16:]
    images = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(12, 1, 28, 28) / 127.5 - 1
    with torch.no_grad():
        scores = net(images.expand(-1, 3, -1, -1))
    right = (scores.argmax(1) == torch.arange(len(scores)) % 10).double().mean().item()
    assert said == pytest.approx(100 * right, abs=0.01)
    assert len(scores.argmax(1).unique()) >= 2  # it learned to tell some apart
