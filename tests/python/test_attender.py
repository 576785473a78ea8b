"""The Local Attender from Python: against what one writes in torch, and what torch sees of the operator."""

import pytest
import torch

import foveate


def by_stacks(logits, value, offsets):
    """The same by n shifted copies of the padded value."""
    height, width = value.shape[2:]
    factor = logits.shape[2] // height
    padded = torch.nn.functional.pad(value, (2, 2, 2, 2), mode="replicate")
    shifted = torch.stack([padded[:, :, 2 + r : 2 + r + height, 2 + c : 2 + c + width] for r, c in offsets], 2)
    weights = logits.softmax(1).unflatten(3, (width, factor)).unflatten(2, (height, factor)).unsqueeze(1)
    return (shifted[:, :, :, :, None, :, None] * weights).sum(2).flatten(4, 5).flatten(2, 3)


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("count", [5, 9, 13, 17, 25])
def test_equals_shifted_copies_forward_and_backward(count, factor):
    make = torch.Generator().manual_seed(1)
    value = torch.randn(2, 20, 3, 4, generator=make)
    logits = torch.randn(2, count, 3 * factor, 4 * factor, generator=make)
    offsets = foveate.attender_offsets(count)
    results = []
    for run in (by_stacks, foveate.local_attender):
        given = [t.clone().requires_grad_() for t in (logits, value)]
        out = run(*given, offsets)
        out.sin().sum().backward()
        results.append([out.detach(), *(t.grad for t in given)])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_the_largest_logit_alone_takes_one_value():
    torch.manual_seed(1)
    value, offsets = torch.randn(2, 3, 4, 5, requires_grad=True), foveate.attender_offsets(9)
    logits = torch.randn(2, 9, 8, 10, requires_grad=True)
    with torch.no_grad():
        logits[0, :, 0, 0] = 1  # all alike: the first, up and left, stops at the border
    out = foveate.local_attender(logits, value, offsets, "largest")
    one_hot = torch.nn.functional.one_hot(logits.argmax(1), 9).permute(0, 3, 1, 2)
    torch.testing.assert_close(out, by_stacks(1e4 * one_hot.float(), value, offsets))
    assert torch.equal(out[0, :, 0, 0], value[0, :, 0, 0])
    out.sum().backward()
    assert logits.grad is None and value.grad.sum() == out.numel()
    with pytest.raises(ValueError, match="weights must be softmax or largest, got 'hard'"):
        foveate.local_attender(logits, value, offsets, "hard")
    with pytest.raises(ValueError, match="weights must be softmax or largest, got 'hard'"):
        foveate.UPLiFT(4, 8, weights="hard")
    with pytest.raises(ValueError, match=r"logits must be \[B, n >= 1, I \* H, I \* W\], got \[2, 0, 8, 10\]"):
        foveate.local_attender(logits[:, :0], value, offsets, "largest")
    image, features = torch.randn(1, 3, 16, 16), torch.randn(1, 4, 2, 2)
    soft = foveate.UPLiFT(4, 8).eval()
    hard = foveate.UPLiFT(4, 8, weights="largest").eval()
    hard.load_state_dict(soft.state_dict())
    fine = hard(image, features, iterations=1).flatten(2).transpose(1, 2)[0]
    assert torch.cdist(fine, features.flatten(2).transpose(1, 2)[0]).min(1).values.max() < 1e-5  # values as they are
    assert not torch.allclose(soft(image, features, iterations=1), hard(image, features, iterations=1), atol=1e-3)


def test_gradients_match_finite_differences():
    logits = torch.randn(1, 17, 6, 8, dtype=torch.double, requires_grad=True)
    value = torch.randn(1, 2, 3, 4, dtype=torch.double, requires_grad=True)
    offsets = foveate.attender_offsets(17)
    assert torch.autograd.gradcheck(lambda a, b: foveate.local_attender(a, b, offsets), (logits, value))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_operator_is_what_torch_expects(dtype):
    value = torch.randn(2, 6, 3, 4, dtype=dtype, requires_grad=True)
    logits = torch.randn(2, 5, 6, 8, dtype=dtype, requires_grad=True)
    rows, columns = zip(*foveate.attender_offsets(5), strict=True)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.foveate.weigh_offsets, (value, logits, list(rows), list(columns)), test_utils=checks)
    for mask in ([True, True], [False, True]):
        given = (torch.randn(2, 6, 6, 8, dtype=dtype), value.detach(), logits.detach(), list(rows), list(columns), mask)
        torch.library.opcheck(torch.ops.foveate.weigh_offsets_backward, given, test_utils=("test_schema", "test_faketensor"))


def test_the_layer_compiles_without_breaks():
    layer = foveate.LocalAttender(20, 9)
    guide, value = torch.randn(1, 20, 6, 8), torch.randn(1, 5, 3, 4)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(guide, value), layer(guide, value))
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {"conv1.weight": (9, 20, 1, 1), "conv1.bias": (9,)}


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="the number of offsets must be 5, 9, 13, 17 or 25, got 4"):
        foveate.attender_offsets(4)
    with pytest.raises(ValueError, match="I x I pixels for each cell"):
        foveate.local_attender(torch.zeros(1, 5, 4, 5), torch.zeros(1, 3, 2, 2), foveate.attender_offsets(5))
