"""Trains a small byte-level language model on the CPU with a block-sparse mask, and once more densely; prints losses and speed.

FlexAttention, torch's own block-sparse attention, has no backward on the CPU (the first line of output is its answer).
The text is the source code of Python's standard library, which is wherever Python is.

    python examples/train_block_sparse.py [--length 4096] [--steps 100]
"""

import argparse
import pathlib
import sysconfig
import time

import torch
from torch import Tensor, nn

import foveate

BLOCK = 64


def sparse_plan(length: int) -> foveate.Plan:
    """Causal; a block of queries sees its own block, the two before it, the first one and every sixteenth."""
    block = torch.arange(-(-length // BLOCK))
    distance = block[:, None] - block
    seen = (distance >= 0) & ((distance <= 2) | (block % 16 == 0))
    mask = seen.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:length, :length].tril()
    return foveate.convert.from_mask(mask[None, None], query_block=BLOCK, key_block=BLOCK)


def density(plan: foveate.Plan, length: int) -> float:
    """Share of the causal pairs that a plan shows."""
    return float(foveate.convert.to_mask(plan, length, length).sum()) / (length * (length + 1) / 2)


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, plan: foveate.Plan) -> Tensor:
        q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, H, L, D]
        x = x + self.out(foveate.attend(q, k, v, plan).out.transpose(1, 2).flatten(2))
        return x + self.mlp(self.between(x))


class Model(nn.Module):
    def __init__(self, length: int, width: int = 128, heads: int = 2, layers: int = 2) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, width), nn.Embedding(length, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)

    def loss(self, text: Tensor, plan: foveate.Plan) -> Tensor:
        """Mean nats per byte.  text: uint8 [length + 1]."""
        x = self.bytes(text[None, :-1].long()) + self.places.weight[: len(text) - 1]
        for layer in self.layers:
            x = layer(x, plan)
        return nn.functional.cross_entropy(self.head(self.norm(x))[0], text[1:].long())


def read_text() -> Tensor:
    """The modules of the standard library one after the other, uint8."""
    folder = pathlib.Path(sysconfig.get_path("stdlib"))
    return torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))), dtype=torch.uint8)


def train(plan: foveate.Plan, text: Tensor, length: int, steps: int) -> tuple[float, float, float]:
    """First training loss, loss on text not trained on (mean of the last 4 pieces), seconds a step."""
    torch.manual_seed(0)
    model = Model(length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    pieces = text.unfold(0, length + 1, length)
    order = torch.randperm(len(pieces) - 4)
    losses, seconds = [], []
    for step in range(steps):
        start = time.perf_counter()
        loss = model.loss(pieces[order[step % len(order)]], plan)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
    with torch.no_grad():
        held_out = sum(model.loss(piece, plan).item() for piece in pieces[-4:]) / 4
    return losses[0], held_out, sorted(seconds)[steps // 2]


def flex_says() -> str:
    """What FlexAttention answers to a CPU tensor that needs a gradient."""
    from torch.nn.attention.flex_attention import flex_attention

    q = torch.randn(1, 1, 128, 16, requires_grad=True)
    try:
        flex_attention(q, q, q).sum().backward()
    except (NotImplementedError, RuntimeError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return "no error: this torch can train with it"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=4096, help="bytes in one training example")
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    print("FlexAttention:", flex_says())
    text = read_text()
    plans = {"dense": foveate.Rule(), "block-sparse": sparse_plan(options.length)}
    print(f"\n{'attention':14} {'density':>8} {'first loss':>11} {'held-out loss':>14} {'ms/step':>8}  vs dense")
    for name, plan in plans.items():
        first, held_out, seconds = train(plan, text, options.length, options.steps)
        dense_seconds = seconds if name == "dense" else dense_seconds
        share = density(plan, options.length)
        print(f"{name:14} {share:8.1%} {first:11.3f} {held_out:14.3f} {seconds * 1e3:8.0f}  {dense_seconds / seconds:.2f}x", flush=True)


if __name__ == "__main__":
    main()
