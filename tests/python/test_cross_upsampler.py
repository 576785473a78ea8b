"""Cross-attention upsampling against the formula, pixel by pixel."""

import pytest
import torch
from torch.nn import functional as F

import foveate


def written_out(net, image, features, factor):
    """Heads and pixels one by one."""
    height, width = features.shape[2:]
    guide = net.encoder(image)
    k = net.to_k(net.norm_k(F.adaptive_avg_pool2d(guide, (height, width))))
    q = net.to_q(net.norm_q(F.adaptive_avg_pool2d(guide, (factor * height, factor * width))))
    dim = q.shape[1] // net.num_heads
    reach = max(height, width) if net.window is None else net.window // 2
    out = torch.zeros(len(image), features.shape[1], factor * height, factor * width, dtype=features.dtype)
    for y in range(factor * height):
        for x in range(factor * width):
            rows = slice(max(y // factor - reach, 0), y // factor + reach + 1)
            columns = slice(max(x // factor - reach, 0), x // factor + reach + 1)
            for h in range(net.num_heads):
                own = slice(h * dim, (h + 1) * dim)
                logits = (q[:, own, y, x, None, None] * k[:, own, rows, columns]).sum(1).flatten(1) / dim**0.5
                values = features[:, :, rows, columns].flatten(2)
                out[:, :, y, x] += (values * logits.softmax(1)[:, None]).sum(2) / net.num_heads
    return out


@pytest.mark.parametrize("window", [1, 3, 5, None])
def test_is_the_formula_forward_and_backward(window):
    torch.manual_seed(1)
    net = foveate.CrossAttentionUpsampler(8, 2, window).double()
    image, features = torch.randn(2, 3, 17, 24, dtype=torch.double), torch.randn(2, 5, 4, 6, dtype=torch.double, requires_grad=True)
    inputs = [features, *net.parameters()]
    got, want = net(image, features, 2), written_out(net, image, features, 2)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(out.sin().sum(), inputs, allow_unused=True) for out in (got, want)]
    for name, a, b in zip(["features", *dict(net.named_parameters())], *gradients, strict=True):
        if window != 1 or name == "features":  # one key alone: logits count nothing
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_means_of_features_stay_among_them():
    net = foveate.CrossAttentionUpsampler(16, 4, window=3)
    features = torch.randn(1, 6, 5, 4)
    out = net(torch.randn(1, 3, 40, 32), features, 4)
    assert out.shape == (1, 6, 20, 16)
    around = F.max_pool2d(features, 3, 1, 1), -F.max_pool2d(-features, 3, 1, 1)
    most, least = (F.interpolate(t, scale_factor=4) for t in around)
    assert (out <= most + 1e-5).all() and (out >= least - 1e-5).all()
    torch.testing.assert_close(foveate.CrossAttentionUpsampler(16, 4, window=1)(torch.randn(1, 3, 9, 9), features, 2), F.interpolate(features, scale_factor=2))


def test_compiles_and_refuses_what_does_not_fit():
    net = foveate.CrossAttentionUpsampler(8, 2, 3)
    image, features = torch.randn(1, 3, 16, 16), torch.randn(1, 4, 4, 4)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    gradients = []
    for run in (compiled, net):
        out = run(image, features, 2)
        gradients.append([out.detach(), *torch.autograd.grad(out.square().sum(), list(net.parameters()))])
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert net(image, features.bfloat16(), 2).dtype == torch.bfloat16
    wide, whole = foveate.CrossAttentionUpsampler(8, 2, 9), foveate.CrossAttentionUpsampler(8, 2)
    whole.load_state_dict(wide.state_dict())
    torch.testing.assert_close(wide(image, features, 2), whole(image, features, 2))
    with pytest.raises(ValueError, match="got 8, 0 and None"):
        foveate.CrossAttentionUpsampler(8, 0)
    with pytest.raises(ValueError, match="width must be a multiple of num_heads >= 1 and window odd, got 8, 2 and 4"):
        foveate.CrossAttentionUpsampler(8, 2, 4)
    with pytest.raises(ValueError, match=r"factor >= 1, got \[1, 3, 16, 16\], \[1, 4, 4, 4\] and 0"):
        net(image, features, 0)
