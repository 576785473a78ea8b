"""UPLiFT from Python: published counts and names, the C++ network with the same weights, one iteration by plain torch, torch.compile."""

import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_attender import by_stacks
from torch.nn import functional as F

import foveate

SMALL = dict(channels=6, patch=8, encoder=((4,), (8,), (8,)), decoder=((20,), (20,)))
CONV_STEPS = dict(channels=6, patch=16, encoder=((4,), (8,), (12,)), encoder_step="conv", adds_smaller=True, decoder=((20,), (16, 18), (20,)))
MAX_STEPS = dict(channels=6, patch=9, encoder=((4,), (8, 10), (12,)), encoder_step="max", decoder=((20,),), offsets=9)
LATENTS = dict(encoder=((8, 8), (12,)), decoder=((8,), (24, 20)), refiner=(8, 8))


def stirred(net):
    """Batch norms that are not the identity."""
    for name, buffer in net.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand(buffer.shape, generator=torch.Generator().manual_seed(4)) + (0.5 if name.endswith("var") else -0.5))
    return net


def inputs(net, height, width, batch=1):
    make = torch.Generator().manual_seed(1)
    image = torch.rand(batch, 3, net.patch * height, net.patch * width, generator=make)
    return image, torch.randn(batch, net.channels, height, width, generator=make)


def test_parameter_counts_are_the_published_ones():
    net = foveate.UPLiFT()
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in net.named_children()}
    assert counts == dict(encoder=283904, decoder=504512, attender=1105)
    assert sum(p.numel() for p in net.parameters()) == 789521
    with torch.device("meta"):
        assert sum(p.numel() for p in foveate.UPLiFT.for_vae().parameters()) == 53487445


def test_names_are_the_released_ones():
    state = foveate.UPLiFT().state_dict()
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    single = ["0.weight", *(f"1.{name}" for name in norm), "3.weight", "3.bias"]
    double = ["0.weight", *(f"1.{name}" for name in norm), "3.weight", *(f"4.{name}" for name in norm), "6.weight", "6.bias"]
    want = {f"encoder.block_{i}.blocks.0.conv.{name}" for i in range(5) for name in single}
    want |= {f"decoder.block_{i}.blocks.0.conv.{name}" for i in (0, 1) for name in double}
    want |= {f"{conv}.{end}" for conv in ("decoder.up_1.up", "attender.conv1") for end in ("weight", "bias")}
    assert set(state) == want
    names = set(foveate.UPLiFT.for_vae(**LATENTS).state_dict())
    assert {"encoder.block_0.blocks.1.conv.3.weight", "decoder.block_1.blocks.1.conv.1.weight", "refiner.blocks.1.conv.0.weight"} <= names
    assert {"ref_outc.weight", "ref_outc.bias"} <= names
    assert {"decoder.outc.weight", "decoder.outc.bias"} <= set(foveate.UPLiFT(offsets=None).state_dict())


CASES = {
    "uplift": lambda: foveate.UPLiFT(),
    "uplift-vae": lambda: foveate.UPLiFT.for_vae(**LATENTS),
    "uplift-conv-steps": lambda: foveate.UPLiFT(**CONV_STEPS),
    "uplift-max-steps": lambda: foveate.UPLiFT(**MAX_STEPS),
    "uplift-apart": lambda: foveate.UPLiFT.for_vae(**LATENTS, shares_encoder=False, offsets=None),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_network_in_cpp_with_its_weights(name, build, tmp_path):
    torch.manual_seed(3)
    net = stirred(CASES[name]()).eval()
    image, features = inputs(net, 3, 4, batch=2)
    files = [tmp_path / f"{part}.safetensors" for part in ("weights", "inputs", "out")]
    save_file(net.state_dict(), files[0])
    save_file(dict(image=image, features=features), files[1])
    with torch.no_grad():
        got = net(image, features, 2, size=(9, 17))
    subprocess.run([build / "tests" / "vision_tool", name, *files], check=True)
    torch.testing.assert_close(got, load_file(files[2])["out"], rtol=1e-4, atol=1e-5)


def one_iteration(weights, image, features):
    """The spec's steps with functions alone, by the names of the weights: batch norms of inference, one block to a group.

    The encoder's map becomes half as large wherever it has a step; doublings are as many as the decoder has.
    """

    def normed(x, name):
        return F.batch_norm(x, **{key: weights[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")})

    def shortened(x, channels):
        return torch.cat([x, x.new_zeros(len(x), channels, *x.shape[2:])], 1)[:, :channels]

    def block(name, x):
        y, i = x, 0
        while f"{name}.blocks.0.conv.{i + 1}.running_mean" in weights:
            y = F.relu(normed(F.conv2d(y, weights[f"{name}.blocks.0.conv.{i}.weight"], padding=1), f"{name}.blocks.0.conv.{i + 1}"))
            i += 3
        y = F.conv2d(y, weights[f"{name}.blocks.0.conv.{i}.weight"], weights[f"{name}.blocks.0.conv.{i}.bias"])
        return y + shortened(x, y.shape[1])

    def down(name, x):
        if f"{name}.down.0.weight" not in weights:
            return x
        y = F.conv2d(x, weights[f"{name}.down.0.weight"], weights[f"{name}.down.0.bias"], stride=2, padding=1)
        return F.relu(normed(y, f"{name}.down.1")) + F.interpolate(x, size=y.shape[2:], mode="bilinear", align_corners=True)

    def read(guide, like):  # nearest by its rule
        rows, columns = (torch.arange(n) * own // n for n, own in zip(like.shape[2:], guide.shape[2:]))
        return guide[:, :, rows][:, :, :, columns]

    maps = [image]
    for i in range(3):
        maps.append(block(f"encoder.block_{i}", down(f"encoder.down_{i}", maps[-1])))
    y, i = block("decoder.block_0", torch.cat([features, read(maps[3], features)], 1)), 1
    while f"decoder.up_{i}.up.weight" in weights:
        larger = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=True)
        y = F.conv_transpose2d(y, weights[f"decoder.up_{i}.up.weight"], weights[f"decoder.up_{i}.up.bias"], stride=2) + larger
        y, i = block(f"decoder.block_{i}", torch.cat([y, read(maps[3 - i], y)], 1)), i + 1
    logits = F.conv2d(y, weights["attender.conv1.weight"], weights["attender.conv1.bias"])
    return by_stacks(logits + shortened(y, logits.shape[1]), features, foveate.attender_offsets(logits.shape[1]))


STEPPED = SMALL | dict(encoder_step="conv", adds_smaller=True, decoder=((20,), (20,), (20,)))


@pytest.mark.parametrize("options", [SMALL, STEPPED], ids=["two groups", "steps of the encoder, four times as large"])
def test_an_iteration_is_the_specs_forward_and_backward(options):
    net = stirred(foveate.UPLiFT(**options)).double().eval()
    image, features = (t.double() for t in inputs(net, 3, 4))
    results = []
    for run in (lambda f: one_iteration(dict(net.named_parameters()) | dict(net.named_buffers()), image, f), lambda f: net(image, f)):
        given = features.clone().requires_grad_()
        out = run(given)
        results.append([out.detach(), *torch.autograd.grad(out.sin().sum(), [given, *net.parameters()])])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_two_iterations_are_one_after_the_other():
    net = stirred(foveate.UPLiFT(**SMALL)).eval()
    image, features = inputs(net, 3, 5)
    with torch.no_grad():
        first, second = net.steps(image, features, 2)
        torch.testing.assert_close(net(image, features), first)
        net.patch = 4  # twice as many tokens share the image
        torch.testing.assert_close(net(image, first), second)


def test_noise_is_none_or_that_of_its_generator():
    net = foveate.UPLiFT(**SMALL, noise=2, norm="layer", refiner=(8,)).eval()
    image, features = inputs(net, 3, 4)

    def run(seed):
        with torch.no_grad():
            return net(image, features, 2, generator=None if seed is None else torch.Generator().manual_seed(seed))

    assert torch.equal(run(None), run(None)) and torch.equal(run(1), run(1))
    assert not torch.allclose(run(1), run(2), atol=1e-4) and not torch.allclose(run(1), run(None), atol=1e-4)


def test_a_compiled_network_learns_as_the_eager_one():
    net = foveate.UPLiFT(**SMALL, convs=1)
    image, features = inputs(net, 3, 4)
    results = []
    for run in (net, torch.compile(net, fullgraph=True, backend="aot_eager")):
        out = run(image, features, 2)
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), net.parameters())])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_refused():
    net = foveate.UPLiFT(**SMALL)
    image, features = inputs(net, 3, 4)
    for given, message in [
        ((image, features, 0), "iterations must be >= 1, got 0"),
        ((image, features[:, :5]), r"features must be \[B, 6, H, W\], got \[1, 5, 3, 4\]"),
        ((image[:, :, :20], features), r"the image must be \[1, 3, 24, 32\] \(8 pixels a token\), got \[1, 3, 20, 32\]"),
    ]:
        with pytest.raises(ValueError, match=f"uplift: {message}"):
            net(*given)
    for kind in ("conv", "max"):
        thin = foveate.UPLiFT(**SMALL | dict(patch=2, encoder_step=kind)).eval()  # of two pixels the second step has one
        with pytest.raises(ValueError, match="maps must be 2 x 2 or more where a step halves them, got 1 x 1"):
            thin(torch.zeros(1, 3, 2, 2), torch.zeros(1, 6, 1, 1))
    with pytest.raises(ValueError, match="uplift: norm must be batch or layer, got 'group'"):
        foveate.UPLiFT(**SMALL, norm="group")
    with pytest.raises(ValueError, match="uplift: encoder_step must be none, conv or max, got 'mean'"):
        foveate.UPLiFT(**SMALL, encoder_step="mean")
    with pytest.raises(ValueError, match="the decoder must have 1 to 5 groups, the encoder as many or more, and every group a width, got 2 and 1"):
        foveate.UPLiFT(encoder=((4,),))
