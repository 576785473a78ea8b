"""Plans from and to the sparse formats of other libraries.  Every conversion is exact; what a format can not say is an error.

Boolean masks: `from_mask` (the most structured plan that says the same) and `to_mask`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.masks import block_counts, block_flags, listed, mask_of_plan, plan_of_mask, rule_mask, runs
from foveate.plans import BlockPlan, Plan, Rule, RunPlan, TokenPlan, rule_of

from_mask, to_mask = plan_of_mask, mask_of_plan
SLICE_KINDS = ("full", "causal", "inverse causal", "bicausal")  # MagiAttention's AttnMaskType 0 .. 3


def from_block_mask(block_mask, rule: Rule | None = None) -> Plan:
    """A plan of FlexAttention's BlockMask.

    rule: says the same as the block mask's mask_mod in its partial blocks (which is then not asked, and no L x L mask is made).
    Without it mask_mod is evaluated densely, for the batch rows and heads that the block mask has.

    >>> from torch.nn.attention.flex_attention import create_block_mask
    >>> blocks = create_block_mask(lambda b, h, i, j: j <= i, None, None, 256, 256, device="cpu")
    >>> from_block_mask(blocks, Rule()).index.shape
    torch.Size([1, 1, 2, 2])
    """
    query_block, key_block = block_mask.BLOCK_SIZE
    lists = (block_mask.kv_num_blocks, block_mask.kv_indices, block_mask.full_kv_num_blocks, block_mask.full_kv_indices)
    if rule is not None:
        return BlockPlan(query_block, key_block, *lists, rule)
    from torch.nn.attention.flex_attention import create_mask

    queries, keys = block_mask.seq_lengths
    count, index, full_count, full_index = lists
    batch, heads = count.shape[:2]
    size = dict(queries=queries, keys=keys, batch=batch, heads=heads, device=count.device)
    mask = mask_of_plan(BlockPlan(query_block, key_block, count, index, rule=Rule.full()), **size)
    mask &= create_mask(block_mask.mask_mod, batch, heads, queries, keys, device=count.device)
    if full_count is not None:
        mask |= mask_of_plan(BlockPlan(query_block, key_block, full_count, full_index, rule=Rule.full()), **size)
    return plan_of_mask(mask, query_block=query_block, key_block=key_block)


def to_block_mask(plan: Plan, queries: int, keys: int, *, batch: int = 1, heads: int = 1, query_block: int = 128, key_block: int = 128):
    """FlexAttention's BlockMask of a plan.  A BlockPlan keeps its own blocks; other plans are cut into query_block x key_block
    by their dense mask [batch, heads, queries, keys].  Raises ValueError: query_order, which a BlockMask can not say.
    """
    from torch.nn.attention.flex_attention import BlockMask

    refuse_order(plan, "to_block_mask")
    if isinstance(plan, BlockPlan):
        checked, sure = block_tables(plan, keys)
        mask_mod = block_mask_mod(plan, checked, sure, queries, keys)
        query_block, key_block = plan.query_block, plan.key_block
    else:
        mask = mask_of_plan(plan, queries, keys, batch=batch, heads=heads)
        some, sure = block_flags(mask, query_block, key_block)
        checked = some & ~sure
        mask_mod = rule_mask_mod(plan, queries, keys) if isinstance(plan, Rule) else lambda b, h, i, j: mask[b, h, i, j]
    sticking_out = torch.zeros_like(sure)  # FlexAttention wants blocks that stick out to be partial
    sticking_out[..., -1:, :] |= queries % query_block > 0
    sticking_out[..., -1:] |= keys % key_block > 0
    lists = []
    for flags in (checked | (sure & sticking_out), sure & ~sticking_out):
        lists += [flags.sum(-1).int(), widened(listed(flags).clamp(min=0), flags.size(-1))]
    return BlockMask.from_kv_blocks(*lists, (query_block, key_block), mask_mod, (queries, keys))


def block_tables(plan: BlockPlan, keys: int) -> tuple[Tensor, Tensor]:
    """Which blocks are checked by the rule and which are seen whole: bool [B|1, H|1, query blocks, key blocks]."""
    blocks = -(-keys // plan.key_block)
    checked = block_counts(plan.count, plan.index, 1, blocks)
    sure = torch.zeros_like(checked) if plan.full_index is None else block_counts(plan.full_count, plan.full_index, 1, blocks)
    if bool((checked + sure > 1).any()):
        raise ValueError("convert: no block must be listed twice, got one that counts twice")
    checked, sure = torch.broadcast_tensors(checked > 0, sure > 0)
    return checked, sure.clone()


def block_mask_mod(plan: BlockPlan, checked: Tensor, sure: Tensor, queries: int, keys: int):
    """All that a BlockPlan shows as a mask_mod: kernels ask it in partial blocks only, but unfused FlexAttention reads no lists."""
    rule_says = rule_mask_mod(plan.rule, queries, keys)

    def mask_mod(b, h, i, j):
        place = (b if checked.size(0) > 1 else 0, h if checked.size(1) > 1 else 0, i // plan.query_block, j // plan.key_block)
        return (checked[place] & rule_says(b, h, i, j)) | sure[place]

    return mask_mod


def rule_mask_mod(rule: Rule, queries: int, keys: int):
    """A rule as FlexAttention's mask_mod(b, h, q_idx, kv_idx) for problems of these lengths."""
    start = keys - queries if rule.query_start is None else rule.query_start
    at = lambda t, b, h, i: t[b if t.size(0) > 1 else 0, h if t.size(1) > 1 else 0, i]  # noqa: E731

    def mask_mod(b, h, i, j):
        position, seen = i + start, j >= 0
        for window in (rule.window_left, None if rule.head_window is None else rule.head_window[h]):
            if window is not None:
                seen = seen & ((j >= position - window) | (j < rule.sinks) | torch.as_tensor(window < 0))
        if rule.window_right is not None:
            seen = seen & (j <= position + rule.window_right)
        if rule.key_lengths is not None:
            seen = seen & (j < rule.key_lengths[b])
        if rule.query_documents is not None:
            seen = seen & (rule.query_documents[b, i] == rule.key_documents[b, j])
        if rule.row_start is not None:
            seen = seen & (j >= at(rule.row_start, b, h, i))
        if rule.row_end is not None:
            seen = seen & (j < at(rule.row_end, b, h, i))
        return seen

    return mask_mod


def from_fa4(
    mask_block_cnt: Tensor,
    mask_block_idx: Tensor,
    full_block_cnt: Tensor | None = None,
    full_block_idx: Tensor | None = None,
    *,
    rule: Rule,
    query_block: int = 128,
    key_block: int = 128,
) -> BlockPlan:
    """A plan of FlashAttention-4's block tensors [B|1, H|1, N], [B|1, H|1, N, width]; rule: what its mask_mod says in partial blocks."""
    return BlockPlan(query_block, key_block, mask_block_cnt, mask_block_idx, full_block_cnt, full_block_idx, rule)


def to_fa4(plan: BlockPlan, keys: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """FlashAttention-4's mask_block_cnt, mask_block_idx, full_block_cnt, full_block_idx (int32, lists as wide as there are key blocks).
    The plan's rule is for its mask_mod to say (`rule_mask_mod`).  Raises TypeError: no BlockPlan; ValueError: query_order.
    """
    if not isinstance(plan, BlockPlan):
        raise TypeError(f"to_fa4: plan must be a BlockPlan, got {type(plan).__name__}; from_mask(to_mask(plan, ...)) may give one")
    refuse_order(plan, "to_fa4")
    width = -(-keys // plan.key_block)
    full_count = torch.zeros_like(plan.count) if plan.full_count is None else plan.full_count
    full_index = torch.zeros_like(plan.index) if plan.full_index is None else plan.full_index
    return plan.count.int(), widened(plan.index, width), full_count.int(), widened(full_index, width)


def widened(index: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(index[..., :width].int(), (0, max(0, width - index.size(-1))))


def refuse_order(plan: Plan, name: str) -> None:
    if rule_of(plan).query_order is not None:
        raise ValueError(f"{name}: the plan must keep queries in order, got query_order")


def from_bsr(indptr: Tensor, indices: Tensor, query_block: int, key_block: int, mask: Tensor | None = None, *, keys: int | None = None) -> Plan:
    """A plan of block-sparse rows as FlashInfer has them (R = query_block, C = key_block), for every batch row and head.

    indptr [N + 1], indices [blocks]: row n of blocks lists key blocks indices[indptr[n] : indptr[n + 1]]
    mask: bool [blocks, R, C], what is visible inside them (`keys` must then be given); None: all

    >>> from_bsr(torch.tensor([0, 1, 3]), torch.tensor([0, 0, 1]), 64, 64).full_count.tolist()
    [[[1, 2]]]
    """
    count, index = padded_lists(indptr, indices)
    zeros = torch.zeros_like(count)
    plan = BlockPlan(query_block, key_block, zeros, torch.zeros_like(index[..., :1]), count, index.clamp(min=0), Rule.full())
    if mask is None:
        return plan
    if keys is None or mask.dtype != torch.bool or mask.shape != (indices.numel(), query_block, key_block):
        raise ValueError(
            f"from_bsr: mask must be bool [{indices.numel()}, {query_block}, {key_block}] and keys be given, got {list(mask.shape)}, keys {keys}"
        )
    rows = torch.repeat_interleave(torch.arange(count.size(-1), device=indices.device), count.flatten())
    dense = torch.zeros(count.size(-1), -(-keys // key_block), query_block, key_block, dtype=torch.bool, device=indices.device)
    dense[rows, indices.long()] = mask
    dense = dense.transpose(1, 2).flatten(2).flatten(0, 1)[:, :keys]
    return plan_of_mask(dense[None, None], query_block=query_block, key_block=key_block)


def to_bsr(plan: BlockPlan) -> tuple[Tensor, Tensor]:
    """indptr, indices (int32) of a plan of whole blocks with one list for all batch rows and heads.

    Raises TypeError: no BlockPlan; ValueError: lists by batch row or head, or blocks that are seen in part.
    """
    if not isinstance(plan, BlockPlan):
        raise TypeError(f"to_bsr: plan must be a BlockPlan, got {type(plan).__name__}")
    refuse_order(plan, "to_bsr")
    if plan.count.shape[:2] != (1, 1):
        raise ValueError(f"to_bsr: batch rows and heads must share one list, got lists {list(plan.count.shape[:2])}")
    if bool(plan.count.any()) and plan.rule.__dict__ != Rule.full().__dict__:
        raise ValueError("to_bsr: all blocks must be seen whole, got blocks that are checked by a rule")
    flags = torch.zeros(plan.count.size(2), 1, dtype=torch.bool)
    for count, index in ((plan.count, plan.index), (plan.full_count, plan.full_index)):
        if count is None:
            continue
        listed_ = index[0, 0].long().where(torch.arange(index.size(-1)) < count[0, 0, :, None], -1)
        width = max(flags.size(1), int(listed_.amax()) + 2)
        flags = torch.nn.functional.pad(flags, (0, width - flags.size(1))).scatter(1, listed_.where(listed_ >= 0, width - 1), True)
        flags[:, width - 1] = False  # where empty entries went
    return ragged(flags)


def from_csr(indptr: Tensor, indices: Tensor) -> TokenPlan:
    """A plan of compressed rows: query i sees keys indices[indptr[i] : indptr[i + 1]], in every batch row and head.

    indptr [Lq + 1], indices [pairs].  A key listed twice counts twice.

    >>> from_csr(torch.tensor([0, 1, 3]), torch.tensor([0, 0, 1])).index.tolist()
    [[[[0, -1], [0, 1]]]]
    """
    return TokenPlan(1, padded_lists(indptr, indices)[1], Rule.full())


def to_csr(plan: Plan, queries: int, keys: int) -> tuple[Tensor, Tensor]:
    """indptr, indices (int32) of the pairs that a plan shows, by its dense mask.  Raises ValueError: lists by batch row or head."""
    return ragged(one_mask(plan, queries, keys, "to_csr"))


def ragged(flags: Tensor) -> tuple[Tensor, Tensor]:
    indptr = torch.nn.functional.pad(flags.sum(-1).cumsum(0), (1, 0)).int()
    return indptr, flags.nonzero()[:, 1].int()


def padded_lists(indptr: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """count [1, 1, N] and index [1, 1, N, longest list, at least 1] int32, -1 behind the end."""
    if indptr.dim() != 1 or indices.dim() != 1 or indptr.numel() < 1 or int(indptr[0]) != 0 or int(indptr[-1]) != indices.numel():
        raise ValueError(f"convert: indptr must be one axis from 0 to the length of indices ({indices.numel()}), got {indptr.tolist()[:8]}")
    count = indptr.diff()
    if bool((count < 0).any()):
        raise ValueError(f"convert: indptr must not decrease, got {indptr.tolist()[:8]}")
    index = torch.full((count.numel(), max(1, int(count.max()) if count.numel() else 1)), -1, dtype=torch.int32, device=indices.device)
    index[torch.arange(index.size(1), device=indices.device) < count[:, None]] = indices.int()
    return count.int()[None, None], index[None, None]


def one_mask(plan: Plan, queries: int, keys: int, name: str) -> Tensor:
    """The dense mask [queries, keys] of a plan that is the same for all batch rows and heads."""
    rule = rule_of(plan)
    refuse_order(plan, name)
    lists = None if isinstance(plan, Rule) else plan.start if isinstance(plan, RunPlan) else plan.index
    batch, heads = rule_mask(rule, queries, keys).shape[:2]
    if batch > 1 or heads > 1 or (lists is not None and lists.shape[:2] != (1, 1)):
        raise ValueError(f"{name}: the plan must be the same for all batch rows and heads, got one that differs; convert them one by one")
    return mask_of_plan(plan, queries, keys)[0, 0]


def from_slices(q_ranges: Tensor, k_ranges: Tensor, kinds: Sequence[int] | Tensor, queries: int, keys: int) -> Rule | RunPlan:
    """A plan of MagiAttention's slices: queries [q0, q1) see keys [k0, k1), by kind

    0 full   1 causal (the last query sees all)   2 inverse causal (the first query sees all)   3 bicausal (both limits)

    q_ranges, k_ranges [slices, 2].  A Rule where no query is in two slices, else a RunPlan.
    Raises ValueError: a range outside of the lengths, an unknown kind, slices that show a pair twice.
    """
    q, k, kinds = (torch.as_tensor(t).long().cpu() for t in (q_ranges, k_ranges, kinds))
    check_slices(q, k, kinds, queries, keys)
    row = torch.arange(queries)
    inside = (row >= q[:, :1]) & (row < q[:, 1:])  # [slices, queries]
    limits_end, limits_start = ((kinds & bit).bool()[:, None] for bit in (1, 2))
    start = torch.where(limits_start, k[:, :1] + row - q[:, :1], k[:, :1])
    end = torch.where(limits_end, k[:, 1:] - (q[:, 1:] - 1 - row), k[:, 1:])
    inside &= end > start  # others show nothing
    slots = inside.cumsum(0) - 1
    capacity = max(1, int(inside.sum(0).max())) if inside.numel() else 1
    starts, ends = (torch.zeros(queries, capacity, dtype=torch.int64) for _ in range(2))
    slice_, at = inside.nonzero(as_tuple=True)
    starts[at, slots[slice_, at]], ends[at, slots[slice_, at]] = start[slice_, at], end[slice_, at]
    if capacity == 1:
        return Rule(window_right=None, row_start=starts.view(1, 1, -1), row_end=ends.view(1, 1, -1))
    check_apart(starts, ends, keys)
    return RunPlan(1, starts.int()[None, None], ends.int()[None, None], Rule.full())


def check_slices(q: Tensor, k: Tensor, kinds: Tensor, queries: int, keys: int) -> None:
    if q.shape != k.shape or q.dim() != 2 or q.size(-1) != 2 or kinds.shape != q.shape[:1]:
        shapes = f"{list(q.shape)}, {list(k.shape)}, {list(kinds.shape)}"
        raise ValueError(f"from_slices: q_ranges, k_ranges must be [slices, 2] and kinds [slices], got {shapes}")
    if kinds.numel() and not 0 <= int(kinds.min()) <= int(kinds.max()) < len(SLICE_KINDS):
        raise ValueError(f"from_slices: kinds must be 0 .. 3 ({', '.join(SLICE_KINDS)}), got {kinds.tolist()}")
    for name, ranges, size in (("q_ranges", q, queries), ("k_ranges", k, keys)):
        if bool(((ranges < 0) | (ranges > size)).any() or (ranges[:, 0] > ranges[:, 1]).any()):
            raise ValueError(f"from_slices: {name} must be ranges inside of 0 .. {size}, got {ranges.tolist()}")


def check_apart(starts: Tensor, ends: Tensor, keys: int) -> None:
    """Ranges [queries, capacity] of one query must not meet; empty ones are put behind the keys."""
    order = starts.where(ends > starts, keys).sort(-1)
    if bool((ends.gather(-1, order.indices)[:, :-1] > order.values[:, 1:]).any()):
        raise ValueError("from_slices: slices must not show a pair of query and key twice, got some that overlap")


def to_slices(plan: Plan, queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    """q_ranges, k_ranges [slices, 2] and kinds [slices] (int32) that show what a plan shows, by its dense mask.

    Rows whose ranges are equal or move by one key a row become one slice.  Raises ValueError: lists by batch row or head.
    """
    start, end = (t[0, 0].tolist() for t in runs(one_mask(plan, queries, keys, "to_slices")[None, None]))
    slices = []
    for column in range(len(start[0]) if start else 0):
        ranges = [(row[column], high[column]) for row, high in zip(start, end)]
        first = 0
        while first < queries:
            step, stop = moved(ranges, first)
            if ranges[first][1] > ranges[first][0]:
                slices.append((first, stop, ranges[first][0], ranges[stop - 1][1], step[1] + 2 * step[0]))
            first = stop
    table = torch.tensor(slices, dtype=torch.int32).view(-1, 5)
    return table[:, :2], table[:, 2:4], table[:, 4]


def moved(ranges: list[tuple[int, int]], first: int) -> tuple[tuple[int, int], int]:
    """How ranges move from row to row (0 or 1 for start and end), and the first row that does not follow."""
    if first + 1 == len(ranges):
        return (0, 0), first + 1
    difference = lambda i: (ranges[i + 1][0] - ranges[i][0], ranges[i + 1][1] - ranges[i][1])  # noqa: E731
    step, stop = difference(first), first + 1
    if step[0] not in (0, 1) or step[1] not in (0, 1) or ranges[first + 1][1] <= ranges[first + 1][0]:
        return (0, 0), first + 1
    while stop < len(ranges) and difference(stop - 1) == step and ranges[stop][1] > ranges[stop][0]:
        stop += 1
    return step, stop


def from_cu_seqlens(
    cu_seqlens_q: Tensor, cu_seqlens_k: Tensor | None = None, *, causal: bool = False, window: tuple[int, int] = (-1, -1)
) -> Rule:
    """The rule of packed documents, as FlashAttention's varlen functions: pack q to [1, Hq, total, D], k and v alike.

    cu_seqlens_q, cu_seqlens_k: [documents + 1] from 0 to the total; document n of queries sees document n of keys.  None: the same
    causal:  bottom-right in each document;   window: (left, right) keys beside the query's own, -1 = no limit

    >>> from_cu_seqlens(torch.tensor([0, 2, 5]), causal=True).row_start.tolist()
    [[[0, 0, 2, 2, 2]]]
    """
    cu_q = check_cu_seqlens(cu_seqlens_q, "cu_seqlens_q")
    cu_k = cu_q if cu_seqlens_k is None else check_cu_seqlens(cu_seqlens_k, "cu_seqlens_k")
    if cu_q.shape != cu_k.shape:
        raise ValueError(f"from_cu_seqlens: queries and keys must have as many documents, got {cu_q.numel() - 1} and {cu_k.numel() - 1}")
    row = torch.arange(int(cu_q[-1]), device=cu_q.device)
    document = torch.searchsorted(cu_q, row, right=True) - 1
    start, end = cu_k[document], cu_k[document + 1]
    position = end - (cu_q[document + 1] - row)  # of the query's own key: bottom-right
    left, right = window[0], 0 if causal else window[1]
    if right >= 0:
        end = torch.minimum(end, position + right + 1)
    if left >= 0:
        start = torch.maximum(start, position - left)
    return Rule(window_right=None, row_start=start[None, None], row_end=torch.maximum(start, end)[None, None])


def check_cu_seqlens(cu_seqlens: Tensor, name: str) -> Tensor:
    if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 1 or int(cu_seqlens[0]) != 0 or bool((cu_seqlens.diff() < 0).any()):
        raise ValueError(f"from_cu_seqlens: {name} must be one axis that starts with 0 and does not decrease, got {cu_seqlens.tolist()[:8]}")
    return cu_seqlens.long()


def to_cu_seqlens(documents: Tensor) -> Tensor:
    """cu_seqlens (int32) of document ids [L] (Rule.query_documents of one batch row): a document ends where the id changes.

    >>> to_cu_seqlens(torch.tensor([7, 7, 3, 3, 3])).tolist()
    [0, 2, 5]
    """
    if documents.dim() != 1:
        raise ValueError(f"to_cu_seqlens: documents must be [L], got {list(documents.shape)}")
    changes = (documents.diff() != 0).nonzero()[:, 0] + 1
    edges = [torch.zeros(1, dtype=torch.int64), changes.cpu(), torch.tensor([documents.numel()] if documents.numel() else [], dtype=torch.int64)]
    return torch.cat(edges).int().to(documents.device)
