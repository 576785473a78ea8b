"""Halo attention from Python: the layer and whole networks against timm with the same weights, and what torch sees."""

import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm_reference import import_timm

import foveate

LAYERS = {
    "plain": (dict(dim=64), (64, 16, 24)),
    "narrow keys": (dict(dim=32, dim_out=64, dim_head=4, num_heads=4, block_size=4, halo_size=1), (32, 8, 12)),
    "strided": (dict(dim=32, stride=2, num_heads=4), (32, 16, 16)),
    "strided, small": (dict(dim=32, stride=2, num_heads=4, block_size=4, halo_size=3), (32, 8, 12)),
    "averaged": (dict(dim=32, stride=2, num_heads=4, avg_down=True), (32, 16, 16)),
    "averaged, odd blocks": (dict(dim=32, stride=2, num_heads=4, block_size=7, halo_size=1, avg_down=True), (32, 14, 14)),
    "scaled positions": (dict(dim=32, num_heads=4, scale_pos_embed=True), (32, 8, 16)),
    "biases and a ratio": (dict(dim=40, num_heads=4, qk_ratio=0.33, qkv_bias=True, block_size=5, halo_size=2), (40, 10, 15)),
}


@pytest.mark.parametrize("case", LAYERS)
def test_the_layer_is_timms_with_the_same_weights_forward_and_backward(case):
    timm = import_timm()
    options, shape = LAYERS[case]
    torch.manual_seed(1)
    theirs = timm.layers.halo_attn.HaloAttn(**options).double()
    ours = foveate.HaloAttn(**options, strided_index=True).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, *shape, dtype=torch.double)
    gradients = []
    for layer in (theirs, ours):
        given = x.clone().requires_grad_()
        out = layer(given)
        out.sin().sum().backward()
        gradients.append([out.detach(), given.grad, *(p.grad for p in layer.parameters())])
    for want, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.float()(x.float()), theirs.float()(x.float()), rtol=1e-4, atol=1e-5)


def test_true_offsets_of_strided_queries_differ_from_timms():
    x = torch.randn(1, 32, 16, 16)
    ours = foveate.HaloAttn(32, stride=2, num_heads=4)
    theirs = foveate.HaloAttn(32, stride=2, num_heads=4, strided_index=True)
    whole = foveate.HaloAttn(32, num_heads=4)
    for layer in (theirs, whole):
        layer.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), whole(x)[:, :, ::2, ::2])
    assert not torch.allclose(ours(x), theirs(x), atol=1e-3)


@pytest.mark.parametrize("name", ["halonet26t", "halonet50ts", "sehalonet33ts", "eca_halonext26ts"])
def test_hybrids_load_timms_weights_and_give_its_scores(name, build, tmp_path):
    timm = import_timm()
    torch.manual_seed(2)
    model = timm.create_model(name).eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.dim() == 1 and value.is_floating_point():  # norms: a branch must count, else nothing is tested
                value.add_(0.2 * torch.randn_like(value)) if "running" not in key else value.normal_(0, 0.1)
        for block in model.modules():
            if hasattr(block, "conv3_1x1"):
                block.conv3_1x1.bn.weight.fill_(0.7)
        image = torch.randn(1, 3, 256, 256)
        want = model(image)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    save_file({"image": image}, tmp_path / "inputs.safetensors")
    files = [tmp_path / f"{part}.safetensors" for part in ("weights", "inputs", "out")]
    subprocess.run([build / "tests" / "vision_tool", name, *files], check=True)
    got = load_file(files[2])["out"]
    assert (want - want.mean()).abs().max() > 0.1
    torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-3)


def test_the_layer_compiles_without_breaks_and_trains():
    layer = foveate.HaloAttn(16, num_heads=2, block_size=4, halo_size=1)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).square().sum().backward()
    got = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    layer(x).square().sum().backward()
    torch.testing.assert_close(got, [p.grad for p in layer.parameters()])


def test_options_that_do_not_fit_are_refused():
    for options, message in [
        (dict(num_heads=5), r"halo_attn: dim_out must be a multiple of num_heads \(5\), got 16"),
        (dict(stride=3), "halo_attn: stride must be 1 or 2, got 3"),
        (dict(block_size=7, stride=2), "halo_attn: block_size must be a multiple of stride unless avg_down, got 7 and 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            foveate.HaloAttn(16, **options)
    q = torch.ones(1, 1, 4, 4, 2)
    with pytest.raises(ValueError, match="halo: padding must be zero, mask or shift, got 'none'"):
        foveate.halo_attend(q, q, q, padding="none")


def test_the_operator_is_what_torch_expects():
    q, k, v = (torch.randn(1, 2, 4, 6, 3, requires_grad=True) for _ in range(3))
    tables = [torch.randn(7, 3, requires_grad=True) for _ in range(2)]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.foveate.halo_attend, (q, k, v, *tables, 2, 1), test_utils=checks)
