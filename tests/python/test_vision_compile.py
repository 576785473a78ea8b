"""A model of several kinds of attention trains as one compiled graph."""

import pytest
import torch
from timm_reference import import_timm
from torch import nn
from torch.nn import functional as F

import foveate


class DenseAttention(nn.Module):
    """torch's own attention over all pixels of [B, H, W, dim]."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        q, k, v = self.qkv(x).flatten(1, 2).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        rows = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.proj(rows).unflatten(1, x.shape[1:3])


class Mixed(nn.Module):
    """Images [B, 3, 16, 16] -> logits of 4 classes."""

    def __init__(self, dim=16):
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 3, stride=2, padding=1)
        self.near = foveate.NeighborhoodAttention2D(dim, 2, kernel_size=3, rel_pos_bias=True)
        self.alike = foveate.TokenAggregation(dim, dim, 2 * dim, 2, centres=4, group=16, iterations=2)
        self.dense = DenseAttention(dim, 2)
        self.halo = foveate.HaloAttn(dim, num_heads=2, block_size=4, halo_size=1)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.head = nn.Linear(dim, 4)

    def forward(self, image):
        x = self.stem(image).permute(0, 2, 3, 1)
        x = x + self.near(self.norms[0](x))
        x = self.alike(x)
        x = x + self.dense(self.norms[1](x))
        x = x + self.halo(self.norms[2](x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.head(x.mean((1, 2)))


def data(steps, batch=8):
    """Classes are the corner that is bright."""
    make = torch.Generator().manual_seed(1)
    classes = torch.randint(4, (steps, batch), generator=make)
    images = 0.3 * torch.randn(steps, batch, 3, 2, 8, 2, 8, generator=make)
    corners = 2 * F.one_hot(classes, 4).float().view(steps, batch, 1, 2, 1, 2, 1)
    return (images + corners).flatten(5, 6).flatten(3, 4), classes


def train(compile_model, steps):
    torch.manual_seed(2)
    model = Mixed()
    run = compile_model(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for images, classes in zip(*data(steps)):
        loss = F.cross_entropy(run(images), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), model


def test_a_mixed_model_trains_as_one_graph_with_the_losses_of_the_eager_one():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    got, compiled = train(lambda model: torch.compile(model, fullgraph=True, backend="aot_eager"), 24)
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == 1
    want, eager = train(lambda model: model, 24)
    torch.testing.assert_close(got[:8], want[:8], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(compiled.alike.means, eager.alike.means, rtol=1e-3, atol=1e-3)
    assert got[-4:].mean() < 0.6 * got[:4].mean()


def test_dynamo_explains_no_break_in_training_or_inference():
    images, _ = data(1)
    for trains in (True, False):
        torch._dynamo.reset()
        explained = torch._dynamo.explain(Mixed().train(trains))(images[0])
        assert (explained.graph_count, explained.graph_break_count) == (1, 0), explained.break_reasons


def test_halo_blocks_are_timms_with_the_same_weights():
    timm = import_timm()
    torch.manual_seed(1)
    theirs = timm.create_model("halonet26t").stages[3]
    strided = dict(block_size=8, halo_size=2, strided_index=True, activation=nn.ReLU)
    for i, block in enumerate(theirs):
        channels, width = block.conv1_1x1.conv.in_channels, block.conv1_1x1.conv.out_channels
        ours = foveate.HaloBlock(channels, width, 2048, stride=1 if i else 2, **strided)
        nn.init.normal_(block.conv3_1x1.bn.weight)
        ours.load_state_dict(block.state_dict())
        x = torch.randn(1, channels, 16, 16)
        torch.testing.assert_close(ours.train()(x), block.train()(x), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(ours.eval()(x), block.eval()(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("options", [dict(dim_out=32), dict(projects=True), dict()])
def test_a_new_halo_block_adds_nothing(options):
    block = foveate.HaloBlock(16, 8, num_heads=2, block_size=4, halo_size=1, **options).eval()
    x = torch.randn(1, 16, 8, 8)
    torch.testing.assert_close(block(x), F.silu(block.shortcut(x)))
