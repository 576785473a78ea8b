"""CATANet from Python: published counts and names, the C++ network with the same weights, its layers by plain torch, and torch.compile."""

import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import foveate

SMALL = dict(upscale=3, dim=8, qk_dim=4, mlp_dim=12, heads=2, patches=(5, 7), centres=(3, 4), groups=(16, 8))
OPTIONS = dict(window="both", merge="joint", halves_overlaps=True, refines_always=True)


def stirred(net):
    """Weights of which every part counts."""
    make = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.add_(torch.randn(p.shape, generator=make), alpha=0.3 if p.dim() == 2 else 0.1)
        for name, buffer in net.named_buffers():
            if name.endswith("means"):
                buffer.copy_(torch.randn(buffer.shape, generator=make))
            else:
                buffer.fill_(True)
    return net


@pytest.mark.parametrize("upscale, count", [(2, 477435), (3, 549635), (4, 535195)])
def test_parameter_counts_are_the_published_ones(upscale, count):
    assert sum(p.numel() for p in foveate.CATANet(upscale).parameters()) == count


def test_names_are_the_released_ones():
    state = foveate.CATANet(4).state_dict()
    maps = ["irca_attn.to_k", "irca_attn.to_v", "iasa_attn.to_q", "iasa_attn.to_k", "iasa_attn.to_v", "iasa_attn.proj", "conv1x1"]
    ffn = [f"{layer}.{end}" for layer in ("fc1", "dwconv.depthwise_conv.0", "fc2") for end in ("weight", "bias")]
    norm = ["norm.weight", "norm.bias"]
    first = ["means", "initted", *norm, *(f"mlp.{name}" for name in norm), *(f"mlp.fn.{name}" for name in ffn)]
    first += [f"{name}.weight" for name in maps]
    second = [f"layer.{i}.{name}" for i in (0, 1) for name in norm] + [f"layer.1.fn.{name}" for name in ffn]
    second += [f"layer.0.fn.{name}.weight" for name in ("to_q", "to_k", "to_v", "proj")]
    want = {f"blocks.{i}.{part}.{name}" for i in range(8) for part, names in enumerate((first, second)) for name in names}
    convs = ["first_conv", "upconv1", "upconv2", "last_conv", *(f"mid_convs.{i}" for i in range(8))]
    assert set(state) == want | {f"{conv}.{end}" for conv in convs for end in ("weight", "bias")}
    assert {"upconv.weight", "upconv.bias"} < set(foveate.CATANet(2).state_dict())
    assert not any(".0.means" in name for name in foveate.CATANet(2, aggregates=False).state_dict())


CASES = {
    "catanet": ({}, (1, 3, 29, 31)),
    "catanet-small": (SMALL, (2, 3, 9, 13)),
    "catanet-options": (SMALL | OPTIONS, (2, 3, 12, 13)),
    "catanet-training": (SMALL, (2, 3, 12, 12)),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_network_in_cpp_with_its_weights(name, build, tmp_path):
    options, shape = CASES[name]
    net = stirred(foveate.CATANet(**options)).train(name.endswith("training"))
    image = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    files = [tmp_path / f"{part}.safetensors" for part in ("weights", "inputs", "out")]
    save_file(net.state_dict(), files[0])
    save_file({"image": image}, files[1])
    with torch.no_grad():
        got = net(image)
    subprocess.run([build / "tests" / "vision_tool", name, *files], check=True)
    want = load_file(files[2])
    assert (want["out"] - torch.nn.functional.interpolate(image, want["out"].shape[2:], mode="bilinear")).abs().max() > 0.1
    torch.testing.assert_close(got, want.pop("out"), rtol=1e-4, atol=1e-4)
    for key, value in want.items():
        torch.testing.assert_close(net.get_buffer(key), value, rtol=1e-5, atol=1e-5)


def patches_one_by_one(block, x):
    """PatchAttention as the paper has it: every patch by itself, overlaps averaged."""
    attention, ffn = block.layer
    height, width = x.shape[1:3]
    sums, counts = torch.zeros_like(x), torch.zeros(height, width, 1, dtype=x.dtype)

    def starts(pixels):
        found = [0]
        while found[-1] + block.patch < pixels:
            found.append(min(found[-1] + block.patch - 2, pixels - block.patch))
        return found

    for row in starts(height):
        for column in starts(width):
            place = (slice(None), slice(row, row + block.patch), slice(column, column + block.patch))
            tokens = attention.norm(x[place]).flatten(1, 2)
            q, k, v = (attention.fn[m](tokens).unflatten(2, (block.heads, -1)).transpose(1, 2) for m in ("to_q", "to_k", "to_v"))
            rows = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            sums[place] += x[place] + attention.fn["proj"](rows).unflatten(1, (block.patch, block.patch))
            counts[place[1:]] += 1
    y = sums / counts
    return y + ffn(y)


@pytest.mark.parametrize("size", [(5, 5), (9, 13), (6, 12)])
def test_patch_attention_is_that_of_each_patch_averaged(size):
    block = stirred(foveate.PatchAttention(8, 4, 12, 2, patch=5)).double()
    x = torch.randn(2, *size, 8, dtype=torch.double)
    results = []
    for run in (lambda x: patches_one_by_one(block, x), block):
        given = x.clone().requires_grad_()
        out = run(given)
        results.append([out.detach(), *torch.autograd.grad(out.sin().sum(), [given, *block.parameters()])])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def aggregation_by_sdpa(block, x):
    """TokenAggregation with kept centres, own groups alone and a size that groups divide: sorted, attended, put back."""
    tokens = block.norm(x).flatten(1, 2)
    order = (tokens @ torch.nn.functional.normalize(block.means, dim=1).mT).argmax(2).argsort(dim=1, stable=True)
    shared = [block.irca_attn[m](block.means).unflatten(1, (block.heads, -1)).transpose(0, 1) for m in ("to_k", "to_v")]
    q, k, v = (block.iasa_attn[m](tokens).unflatten(2, (block.heads, -1)) for m in ("to_q", "to_k", "to_v"))
    sdpa = torch.nn.functional.scaled_dot_product_attention
    rows = sdpa(q.transpose(1, 2), *(t.expand(len(x), -1, -1, -1) for t in shared)).transpose(1, 2)

    def groups(t):
        t = t.take_along_dim(order[:, :, None, None], 1).unflatten(1, (-1, block.groups["group"]))
        return t.transpose(2, 3)

    near = sdpa(*(groups(t) for t in (q, k, v))).transpose(2, 3).flatten(1, 2)
    rows = rows + near.take_along_dim(order.argsort(1)[:, :, None, None], 1)
    y = x + block.conv1x1(block.iasa_attn["proj"](rows.flatten(2)).unflatten(1, x.shape[1:3]).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return y + block.mlp.fn(block.mlp.norm(y))


def test_token_aggregation_is_attention_in_sorted_groups_and_to_centres():
    block = stirred(foveate.TokenAggregation(8, 4, 12, 2, centres=3, group=6, window="own")).double().eval()
    x = torch.randn(2, 4, 6, 8, dtype=torch.double)
    results = []
    for run in (lambda x: aggregation_by_sdpa(block, x), block):
        given = x.clone().requires_grad_()
        out = run(given)
        results.append([out.detach(), *torch.autograd.grad(out.sin().sum(), [given, *block.parameters()])])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_training_begins_with_centres_of_length_one_and_keeps_an_average():
    block = foveate.TokenAggregation(8, 4, 12, 2, centres=3, group=16)
    assert not block.initted
    block(torch.randn(2, 6, 6, 8))
    first = block.means.clone()
    assert block.initted and torch.allclose(first.norm(dim=1), torch.ones(3))
    block(torch.randn(2, 6, 6, 8))
    moved = (block.means - first).norm(dim=1)
    assert 0 < moved.max() <= 0.0021  # a thousandth of what two directions differ by


def test_kept_centres_are_the_golden_numbers():
    block = foveate.TokenAggregation(2, 2, 4, 1, centres=3)
    tokens = torch.tensor([[[2, 0], [1, 1], [0, 3], [-1, 0.1], [0.5, -0.2]]])
    block.means.copy_(torch.tensor([[1.0, 0], [0, 1], [0, -1]]))
    block.initted.fill_(True)
    centres = foveate.refine_centres(tokens, block.means, 1)
    torch.testing.assert_close(centres, torch.tensor([[0.991985, 0.126357], [-0.671005, 0.741453], [0, -1]]), rtol=0, atol=1e-6)
    block.keep(centres)
    torch.testing.assert_close(block.means, torch.tensor([[0.999992, 0.000126], [-0.000671, 0.999741], [0, -1]]), rtol=0, atol=1e-6)


def test_half_precision_costs_less_than_a_hundredth_of_a_decibel():
    torch.manual_seed(1)
    net = foveate.CATANet(upscale=2).eval()
    with torch.no_grad():
        net.last_conv.weight.mul_(0.1)  # as small beside the enlarged image as what a trained network adds
    coarse = F.interpolate(torch.rand(1, 3, 13, 7), size=(97, 43), mode="bicubic").clamp(0, 1)
    want = F.interpolate(coarse, scale_factor=2, mode="bicubic") + 0.02 * torch.randn(1, 3, 194, 86)
    with torch.no_grad():
        outs = net(coarse), net.bfloat16()(coarse.bfloat16())
    exact, half = (-10 * (out.float() - want).square().mean().log10() for out in outs)
    assert outs[1].dtype == torch.bfloat16 and not torch.equal(outs[0], outs[1].float())
    assert exact > 20 and abs(exact - half) < 0.01


def test_inference_changes_no_buffer_and_depends_on_no_other_image():
    for options in ({}, OPTIONS):
        net = stirred(foveate.CATANet(**SMALL | options)).eval()
        before = {name: buffer.clone() for name, buffer in net.named_buffers()}
        images = torch.rand(2, 3, 12, 11)
        with torch.no_grad():
            both = net(images)
            torch.testing.assert_close(both, torch.cat([net(one) for one in images.split(1)]), rtol=1e-5, atol=1e-5)
        assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())


def test_a_map_smaller_than_the_centres_needs_kept_ones():
    block = foveate.TokenAggregation(8, 4, 12, 2, centres=40, group=64).eval()
    x = torch.randn(1, 6, 6, 8)
    with pytest.raises(ValueError, match=r"centres: there must be as many tokens as centres \(40\), got 36"):
        block(x)
    block.initted.fill_(True)
    assert block(x).shape == x.shape


def test_every_factor_gives_images_of_its_size():
    for upscale in (1, 2, 3, 4):
        net = foveate.CATANet(**SMALL | dict(upscale=upscale)).eval()
        assert net(torch.rand(1, 3, 9, 13)).shape == (1, 3, 9 * upscale, 13 * upscale)


def test_a_compiled_network_trains_as_the_eager_one_and_keeps_the_same_centres():
    """From no centres on: the graph holds both branches of what the first step does."""
    images, wanted = torch.rand(3, 2, 3, 12, 12), torch.rand(3, 2, 3, 36, 36)
    results = []
    for compiles in (False, True):
        torch.manual_seed(5)
        net = foveate.CATANet(**SMALL | dict(patches=(5,), centres=(3,), groups=(16,)))
        run = torch.compile(net, fullgraph=True, backend="aot_eager") if compiles else net
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        losses = []
        for image, want in zip(images, wanted):
            loss = (run(image) - want).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        results.append([torch.stack(losses), *net.state_dict().values()])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"catanet: images must be at least 28 x 28 \(the largest patch\), got 27 x 40"):
        foveate.CATANet()(torch.zeros(1, 3, 27, 40))
    with pytest.raises(ValueError, match=r"catanet: the image must be \[B, 3, H, W\], got \[1, 1, 40, 40\]"):
        foveate.CATANet()(torch.zeros(1, 1, 40, 40))
    for options, message in [
        (dict(upscale=5), "upscale must be 1 .. 4, got 5"),
        (dict(heads=3), r"dim and qk_dim must be multiples of heads \(3\), got 40 and 36"),
        (dict(patches=(16, 20)), "patches, centres and groups must be given for every block, got 2, 8 and 8"),
        (dict(patches=(2,), centres=(4,), groups=(8,)), "patches must be >= 3, got 2"),
    ]:
        with pytest.raises(ValueError, match=f"catanet: {message}"):
            foveate.CATANet(**options)
