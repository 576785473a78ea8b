"""Block-sparse attention, forward: foveate beside torch's compiled FlexAttention, in turn, in one process.

    .venv/bin/python bench/flex.py [--length 8192] [--dim 128] [--threads 1] [--dtype bfloat16]

Each query block of 128 sees the same number of key blocks of 128, at random.  Results are compared before anything is
timed.  FlexAttention has no backward on CPU.
"""

import argparse
import pathlib
import time

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

ROOT = pathlib.Path(__file__).resolve().parent.parent
BLOCK = 128


def best(run, seconds=2.0):
    times = []
    start = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < seconds:
        one = time.perf_counter()
        run()
        times.append(time.perf_counter() - one)
    return min(times)


def block_lists(blocks, each, generator):
    """[1, 1, blocks, blocks]: the blocks seen come first, in order; FlexAttention wants all of them named."""
    orders = [torch.randperm(blocks, generator=generator) for _ in range(blocks)]
    return torch.stack([torch.cat([o[:each].sort().values, o[each:]]) for o in orders]).int().view(1, 1, blocks, blocks)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    options = parser.parse_args()
    if options.length < BLOCK or options.length % BLOCK:
        parser.error(f"--length must be a multiple of {BLOCK}, got {options.length}")
    torch.set_num_threads(options.threads)
    torch.ops.load_library(ROOT / "build/release/libfoveate.so")
    generator = torch.Generator().manual_seed(1)
    shape = (1, options.heads, options.length, options.dim)
    q, k, v = (torch.randn(shape, generator=generator).to(getattr(torch, options.dtype)) for _ in range(3))
    flex = torch.compile(flex_attention, dynamic=False)
    blocks = options.length // BLOCK
    print(f"{options.heads} heads, D {options.dim}, L {options.length}, {options.dtype}, {options.threads} thread(s)")
    print("density  foveate ms  FlexAttention ms  ratio")
    with torch.no_grad():
        for density in (0.125, 0.25, 0.5, 1.0):
            each = max(1, int(blocks * density))
            index = block_lists(blocks, each, generator)
            count = torch.full((1, 1, blocks), each, dtype=torch.int32)
            mask = BlockMask.from_kv_blocks(torch.zeros_like(count), index.clone(), count, index, BLOCK_SIZE=BLOCK)
            plan = dict(query_block=BLOCK, key_block=BLOCK, count=count, index=index[..., :each].contiguous())
            ours = lambda: torch.ops.foveate.attend(q, k, v, **plan)[0]
            theirs = lambda: flex(q, k, v, block_mask=mask)
            a, b = ours().float(), theirs().float()
            error = ((a - b).norm() / b.norm()).item()
            if not error < 2e-2:
                raise SystemExit(f"flex: results differ by {error:.2g} (relative) at density {density}")
            one, other = best(ours), best(theirs)
            print(f"{density:7.3f}  {one * 1e3:10.1f}  {other * 1e3:16.1f}  {other / one:5.2f}")


if __name__ == "__main__":
    main()
