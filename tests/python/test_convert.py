"""Plans from masks and from the formats of other libraries, each held against the dense mask that its format defines."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention

import foveate
from foveate import BlockPlan, Rule, RunPlan, TokenPlan, convert

SHAPES = [(5, 5), (7, 12), (12, 7), (1, 9), (9, 1), (40, 40)]


def masks(queries, keys):
    """Masks by name, bool [B, H, queries, keys]."""
    make = torch.Generator().manual_seed(queries * 100 + keys)
    i, j = torch.arange(queries)[:, None], torch.arange(keys)
    lengths = torch.tensor([keys, keys // 2, 1])[:, None, None]
    blocks = torch.rand(2, 1, -(-queries // 4), -(-keys // 4), generator=make) < 0.4
    blocks = blocks.repeat_interleave(4, 2)[:, :, :queries].repeat_interleave(4, 3)[..., :keys]
    document = torch.arange(40) // 7
    found = {
        "full": torch.ones(1, 1, queries, keys).bool(),
        "nothing": torch.zeros(1, 1, queries, keys).bool(),
        "blocks": blocks,
        "causal blocks": blocks & (j <= i),
        "documents": (document[:queries, None] == document[:keys])[None, None],
        "causal documents": ((document[:queries, None] == document[:keys]) & (j <= i))[None, None],
        "padding": (j < lengths).expand(3, queries, keys)[:, None],
        "islands": ((j % 5 < 2) & (j <= i + 9)).expand(queries, keys)[None, None],
    }
    for share in (0.1, 0.5, 0.9):
        found[f"random {share}"] = torch.rand(2, 3, queries, keys, generator=make) < share
    for shift in (-3, 0, 2):
        causal, window = j <= i + shift, j > i + shift - 4
        found[f"causal {shift}"] = causal[None, None]
        found[f"window {shift}"] = (causal & window)[None, None]
        found[f"window, later keys too {shift}"] = window.expand(queries, keys)[None, None]
        found[f"sinks {shift}"] = (causal & (window | (j < 2)))[None, None]
        found[f"causal, padding behind {shift}"] = (causal & (j < lengths))[:, None]
        found[f"sinks, padding behind {shift}"] = (causal & (window | (j < 2)) & (j < lengths))[:, None]
        found[f"causal, padding before {shift}"] = (causal & (j >= keys - lengths))[:, None]
    return found


def heads_of(mask):
    return max(mask.size(0), 2) if mask.size(0) == 1 else mask.size(0), 3


@pytest.mark.parametrize("queries, keys", SHAPES)
def test_plan_of_a_mask_shows_exactly_the_mask_and_attends_like_torch(queries, keys):
    for name, mask in masks(queries, keys).items():
        batch, heads = heads_of(mask)
        plan = convert.from_mask(mask, query_block=4, key_block=4)
        shown = convert.to_mask(plan, queries, keys, batch=batch, heads=heads)
        assert torch.equal(shown, mask.expand_as(shown)), name
        q, k, v = (torch.randn(batch, heads, n, 8) for n in (queries, keys, keys))
        wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        torch.testing.assert_close(foveate.attend(q, k, v, plan).out, wanted, msg=lambda m: f"{name}: {m}")


def test_structured_masks_are_recognised():
    i, j = torch.arange(40)[:, None], torch.arange(48)
    plan = lambda mask: convert.from_mask(mask.expand(40, 48)[None, None] if mask.dim() == 2 else mask, query_block=4, key_block=4)  # noqa: E731
    numbers = lambda rule: (rule.query_start, rule.window_left, rule.window_right, rule.sinks)  # noqa: E731
    assert numbers(plan(j <= i + 8)) == (8, None, 0, 0)
    assert numbers(plan((j <= i) & (j > i - 5))) == (0, 4, 0, 0)
    assert numbers(plan((j <= i) & ((j > i - 5) | (j < 3)))) == (0, 4, 0, 3)
    assert numbers(plan(torch.ones(40, 48).bool())) == (None, None, None, 0)
    padded = plan(((j <= i + 8) & (j < torch.tensor([48, 30])[:, None, None]))[:, None])
    assert numbers(padded) == (8, None, 0, 0) and padded.key_lengths.tolist() == [48, 30]
    assert plan(i // 7 == j // 7).row_start is not None  # documents: one range a row
    strided = (i // 4 % 3 == j // 4 % 3).expand(40, 48)
    assert isinstance(plan(strided), BlockPlan) and not plan(strided).count.any()
    causal_blocks = plan(strided & (j <= i))
    assert isinstance(causal_blocks, BlockPlan) and numbers(causal_blocks.rule) == (0, None, 0, 0)
    assert isinstance(plan((j % 24 < 12) & (i >= 0)), (BlockPlan, RunPlan))
    assert isinstance(plan(torch.rand(40, 48) < 0.5), TokenPlan)


def test_to_mask_knows_every_field_of_a_rule():
    make = torch.Generator().manual_seed(3)
    integers = lambda low, high, *shape: torch.randint(low, high, shape, generator=make)  # noqa: E731
    rules = [
        Rule(window_left=3, window_right=2, sinks=1, query_start=-2),
        Rule(head_window=torch.tensor([2, -1, 0, 5]), sinks=1),
        Rule(key_lengths=torch.tensor([7, 13]), window_right=None),
        Rule(query_documents=integers(0, 3, 2, 9), key_documents=integers(0, 3, 2, 13), window_right=None),
        Rule(row_start=integers(0, 9, 2, 1, 9), row_end=integers(3, 13, 1, 4, 9), window_right=None),
        Rule(query_order=torch.tensor([[[3, 0, -1, 8]]])),
    ]
    plans = rules + [TokenPlan(3, integers(-1, 13, 1, 2, 3, 1).int(), rule) for rule in rules[:5]]
    plans += [RunPlan(3, integers(0, 6, 2, 4, 3, 1).int(), integers(3, 13, 2, 4, 3, 1).int(), rule) for rule in rules[:5]]
    q, k, v = (torch.randn(2, h, n, 8, generator=make) for h, n in ((4, 9), (2, 13), (2, 13)))
    for plan in plans:
        mask = convert.to_mask(plan, 9, 13, batch=2, heads=4)
        wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        torch.testing.assert_close(foveate.attend(q, k, v, plan).out, wanted)


@pytest.mark.parametrize("name", ["causal", "window", "by head", "holes"])
def test_flex_block_masks_there_and_back(name):
    mask_mod = {
        "causal": lambda b, h, i, j: j <= i,
        "window": lambda b, h, i, j: (j <= i) & (i - j < 70),
        "by head": lambda b, h, i, j: (j + h * 40 <= i) & (j // 64 % 2 == b),
        "holes": lambda b, h, i, j: (j <= i) & (j % 3 != 1),
    }[name]
    queries, keys = 200, 270
    wanted = create_mask(mask_mod, 2, 2, queries, keys, device="cpu")
    blocks = create_block_mask(mask_mod, 2, 2, queries, keys, device="cpu", BLOCK_SIZE=64)
    plan = convert.from_block_mask(blocks)
    assert torch.equal(convert.to_mask(plan, queries, keys, batch=2, heads=2), wanted)
    back = convert.to_block_mask(plan, queries, keys, batch=2, heads=2, query_block=64, key_block=64)
    dense = convert.to_mask(convert.from_block_mask(back), queries, keys, batch=2, heads=2)
    assert torch.equal(dense, wanted)
    assert torch.equal(create_mask(back.mask_mod, 2, 2, queries, keys, device="cpu"), wanted)
    touched = create_block_mask(back.mask_mod, 2, 2, queries, keys, device="cpu", BLOCK_SIZE=64)
    for got, given in ((back.kv_num_blocks, touched.kv_num_blocks), (back.full_kv_num_blocks, touched.full_kv_num_blocks)):
        assert torch.equal(got.expand_as(given), given)
    q, k, v = (torch.randn(2, 2, length, 16, generator=torch.Generator().manual_seed(6)) for length in (queries, keys, keys))
    torch.testing.assert_close(flex_attention(q, k, v, block_mask=back), foveate.attend(q, k, v, plan).out, atol=1e-4, rtol=1e-4)
    if name == "causal":
        with_rule = convert.from_block_mask(blocks, Rule(query_start=0))
        assert isinstance(with_rule, BlockPlan) and torch.equal(convert.to_mask(with_rule, queries, keys, batch=2, heads=2), wanted)


def test_fa4_blocks_there_and_back():
    flags = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    mask = (flags < 0.6).repeat_interleave(8, 2).repeat_interleave(8, 3)[..., :37] & (torch.arange(37) <= torch.arange(32)[:, None] + 5)
    plan = convert.from_mask(mask, query_block=8, key_block=8)
    tensors = convert.to_fa4(plan, 37)
    assert [tuple(t.shape) for t in tensors] == [(2, 3, 4), (2, 3, 4, 5)] * 2 and all(t.dtype == torch.int32 for t in tensors)
    again = convert.from_fa4(*tensors, rule=plan.rule, query_block=8, key_block=8)
    assert torch.equal(convert.to_mask(again, 32, 37, batch=2, heads=3), mask)
    with pytest.raises(TypeError, match="to_fa4: plan must be a BlockPlan, got Rule"):
        convert.to_fa4(Rule(), 37)


def test_bsr_there_and_back():
    flags = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 1]]).bool()
    indptr, indices = torch.tensor([0, 2, 2, 4]), torch.tensor([0, 2, 1, 2])
    plan = convert.from_bsr(indptr, indices, 4, 8)
    wanted = flags.repeat_interleave(4, 0).repeat_interleave(8, 1)
    assert torch.equal(convert.to_mask(plan, 12, 24)[0, 0], wanted)
    for got, given in zip(convert.to_bsr(plan), (indptr, indices)):
        assert torch.equal(got.long(), given)
    inside = torch.rand(4, 4, 8, generator=torch.Generator().manual_seed(2)) < 0.5
    dense = torch.zeros(12, 24).bool()
    for (row, column), block in zip(((0, 0), (0, 2), (2, 1), (2, 2)), inside):
        dense[row * 4 : row * 4 + 4, column * 8 : column * 8 + 8] = block
    plan = convert.from_bsr(indptr, indices, 4, 8, inside, keys=24)
    assert torch.equal(convert.to_mask(plan, 12, 24)[0, 0], dense)
    checked = convert.from_mask(torch.ones(1, 1, 12, 24).bool().tril(17) & wanted, query_block=4, key_block=8)
    with pytest.raises(ValueError, match="to_bsr: all blocks must be seen whole"):
        convert.to_bsr(checked)


def test_csr_there_and_back():
    mask = torch.rand(17, 23, generator=torch.Generator().manual_seed(4)) < 0.3
    mask[5] = False
    indptr = torch.tensor([0, *mask.sum(1).cumsum(0).tolist()])
    indices = torch.tensor([j for row in mask.tolist() for j, seen in enumerate(row) if seen])
    plan = convert.from_csr(indptr, indices)
    assert torch.equal(convert.to_mask(plan, 17, 23)[0, 0], mask)
    for got, given in zip(convert.to_csr(plan, 17, 23), (indptr, indices)):
        assert torch.equal(got.long(), given)
    with pytest.raises(ValueError, match="indptr must be one axis from 0 to the length of indices"):
        convert.from_csr(torch.tensor([0, 3]), torch.tensor([1]))


def slice_mask(q_ranges, k_ranges, kinds, queries, keys):
    """MagiAttention's definition: kinds limit the end (causal, bottom-right) or the start (inverse causal, top-left)."""
    mask = torch.zeros(queries, keys).bool()
    for (q0, q1), (k0, k1), kind in zip(q_ranges, k_ranges, kinds):
        for i in range(q0, q1):
            for j in range(k0, k1):
                ends = kind in (0, 2) or j - k1 <= i - q1
                starts = kind in (0, 1) or j - k0 >= i - q0
                mask[i, j] |= ends and starts
    return mask


@pytest.mark.parametrize("apart", [True, False])
def test_slices_there_and_back(apart):
    q_ranges = [(0, 5), (5, 12), (12, 20), (20, 22)] if apart else [(0, 10), (0, 10), (4, 20), (15, 22)]
    k_ranges = [(0, 6), (3, 16), (9, 15), (0, 9)] if apart else [(0, 6), (6, 14), (18, 30), (0, 9)]
    for kinds in ([0, 1, 2, 3], [3, 3, 1, 1], [1, 0, 3, 2]):
        wanted = slice_mask(q_ranges, k_ranges, kinds, 24, 30)
        plan = convert.from_slices(q_ranges, k_ranges, kinds, 24, 30)
        assert isinstance(plan, Rule if apart else RunPlan)
        assert torch.equal(convert.to_mask(plan, 24, 30)[0, 0], wanted)
        again = convert.from_slices(*convert.to_slices(plan, 24, 30), 24, 30)
        assert torch.equal(convert.to_mask(again, 24, 30)[0, 0], wanted)
    with pytest.raises(ValueError, match="must not show a pair of query and key twice"):
        convert.from_slices([(0, 4), (2, 6)], [(0, 8), (7, 9)], [0, 0], 6, 9)
    with pytest.raises(ValueError, match="k_ranges must be ranges inside of 0 .. 9"):
        convert.from_slices([(0, 4)], [(0, 10)], [0], 6, 9)


def test_slices_of_a_causal_mask_are_few():
    q_ranges, k_ranges, kinds = convert.to_slices(Rule(), 50, 60)
    assert (q_ranges.tolist(), k_ranges.tolist(), kinds.tolist()) == ([[0, 50]], [[0, 60]], [1])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [(-1, -1), (3, 2), (2, -1)])
def test_packed_documents(causal, window):
    cu_q, cu_k = [0, 4, 4, 11, 20], [0, 6, 9, 14, 30]
    wanted = torch.zeros(20, 30).bool()
    for q0, q1, k0, k1 in zip(cu_q, cu_q[1:], cu_k, cu_k[1:]):
        for i in range(q0, q1):
            for j in range(k0, k1):
                distance = (j - k1) - (i - q1)  # bottom-right: 0 is the query's own key
                wanted[i, j] = (not causal or distance <= 0) and (window[0] < 0 or distance >= -window[0])
                wanted[i, j] &= causal or window[1] < 0 or distance <= window[1]
    rule = convert.from_cu_seqlens(torch.tensor(cu_q), torch.tensor(cu_k), causal=causal, window=window)
    assert torch.equal(convert.to_mask(rule, 20, 30)[0, 0], wanted)


def test_document_ids_give_cu_seqlens():
    ids = torch.tensor([4, 4, 1, 1, 1, 4, 9])
    cu_seqlens = convert.to_cu_seqlens(ids)
    assert cu_seqlens.tolist() == [0, 2, 5, 6, 7] and convert.to_cu_seqlens(ids[:0]).tolist() == [0]
    document = torch.arange(4).repeat_interleave(cu_seqlens.diff())
    mask = convert.to_mask(convert.from_cu_seqlens(cu_seqlens), 7, 7)[0, 0]
    assert torch.equal(mask, document[:, None] == document)


def test_bad_masks_are_named():
    with pytest.raises(TypeError, match="plan_of_mask: mask must be bool, got torch.float32"):
        convert.from_mask(torch.ones(1, 1, 2, 2))
    with pytest.raises(ValueError, match="plan_of_mask: mask must be \\[B\\|1, Hq\\|1, Lq, Lk\\], got \\[2, 2\\]"):
        convert.from_mask(torch.ones(2, 2).bool())
    with pytest.raises(ValueError, match="no key must be listed twice"):
        convert.to_mask(TokenPlan(1, torch.tensor([[[[1, 1]]]]).int()), 1, 3)
