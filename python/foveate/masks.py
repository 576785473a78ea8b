"""Boolean masks as the most structured plan that says exactly the same, and plans as boolean masks."""

import dataclasses

import torch
from torch import Tensor

from foveate.plans import BlockPlan, Plan, Rule, RunPlan, TokenPlan, rule_of


def plan_of_mask(mask: Tensor, *, query_block: int = 128, key_block: int = 128) -> Plan:
    """A plan that shows exactly the keys that a boolean mask shows, the most structured of these:

    1. Rule by numbers: full, causal, window, sinks, padding at the end (key_lengths, where the mask has a batch)
    2. Rule by row: one range of keys for each row (packed documents, padding at the front, prefixes)
    3. BlockPlan: blocks of query_block x key_block, each seen whole or in part; the parts are one range of keys for each row
    4. RunPlan by row where rows see a few ranges, else TokenPlan by row

    mask: bool [B|1, Hq|1, Lq, Lk], True = visible.  Raises TypeError, ValueError: another dtype or count of axes.

    >>> plan = plan_of_mask(torch.ones(1, 1, 4, 6, dtype=torch.bool).tril(2))
    >>> plan.query_start, plan.window_left, plan.window_right
    (2, None, 0)
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"plan_of_mask: mask must be bool, got {mask.dtype}")
    if mask.dim() != 4:
        raise ValueError(f"plan_of_mask: mask must be [B|1, Hq|1, Lq, Lk], got {list(mask.shape)}")
    plan = structured_plan(mask, query_block, key_block)
    if plan is not None:
        return plan
    start, end = runs(mask)
    longest = int(mask.sum(-1).amax())
    if 4 * start.size(-1) <= longest:
        return RunPlan(1, start, end, Rule.full())
    return TokenPlan(1, listed(mask), Rule.full())


def structured_plan(mask: Tensor, query_block: int = 128, key_block: int = 128) -> Plan | None:
    """Steps 1 to 3 of plan_of_mask; None where the mask is none of these.  mask: bool [B|1, Hq|1, Lq, Lk]."""
    if mask.numel() == 0:
        return Rule.full()
    if mask.size(3) >= 2**24:
        return None  # hulls counts in floats
    first, last, broken = hulls(mask)
    if not bool(broken.any()):
        return numbered_rule(first, last, mask.size(3)) or Rule(window_right=None, row_start=first, row_end=last)
    return sink_rule(mask, broken) or block_plan(mask, first, last, query_block, key_block)


def hulls(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's first key and the one behind its last, both 0 in empty rows, and whether it sees not all between: [B|1, Hq|1, Lq].

    Keys must be fewer than 2^24: counted in floats, whose sums torch vectorises (a third of the time of sums of bool).
    """
    keys = mask.size(3)
    ones, key = mask.float(), torch.arange(keys, device=mask.device)
    last = (ones * (key + 1)).amax(-1).long()
    first = (keys - (ones * (keys - key)).amax(-1).long()).where(last > 0, 0)
    return first, last, ones.sum(-1).long() != last - first


def numbered_rule(first: Tensor, last: Tensor, keys: int) -> Rule | None:
    """The rule by numbers (full, causal, window, key_lengths) of rows that see [first, last); None where there is none."""
    lengths = [None] if first.size(0) == 1 else [None, last.amax((1, 2))]
    for key_lengths in lengths:
        rule = proposed_rule(first, last, keys, key_lengths)
        if rule is not None and all(torch.equal(a.expand_as(b), b) for a, b in zip(bounds_of(rule, first.size(2), keys, first.device), (first, last))):
            return rule
    return None


def proposed_rule(first: Tensor, last: Tensor, keys: int, key_lengths: Tensor | None) -> Rule | None:
    """The only rule by numbers that may fit: rows that end early set the diagonal, rows that start late the window."""
    row = torch.arange(first.size(2), device=first.device)
    end = keys if key_lengths is None else key_lengths[:, None, None]
    early, late = (last > first) & (last < end), (last > first) & (first > 0)
    rule = Rule(window_right=None, key_lengths=key_lengths)
    left = int((first - row)[late].amin()) if late.any() else None
    if early.any():
        rule = dataclasses.replace(rule, query_start=int((last - row)[early].amin()) - 1, window_right=0)
    elif left is not None:
        rule = dataclasses.replace(rule, query_start=left)
    if left is None:
        return rule
    return dataclasses.replace(rule, window_left=rule.query_start - left) if rule.query_start >= left else None


def bounds_of(rule: Rule, queries: int, keys: int, device) -> tuple[Tensor, Tensor]:
    """first and last [B|1, 1, Lq] of a rule made of query_start, windows and key_lengths; both 0 in empty rows."""
    position = torch.arange(queries, device=device) + (keys - queries if rule.query_start is None else rule.query_start)
    end = torch.full((1, 1, 1), keys, device=device) if rule.key_lengths is None else rule.key_lengths[:, None, None].clamp(max=keys)
    last = end.expand(-1, 1, queries) if rule.window_right is None else torch.minimum(position + rule.window_right + 1, end)
    first = torch.zeros_like(last) if rule.window_left is None else (position - rule.window_left).clamp(min=0).expand_as(last)
    return first.where(last > first, 0), last.where(last > first, 0)


def sink_rule(mask: Tensor, broken: Tensor) -> Rule | None:
    """A window with sinks, or None: all `broken` rows see the sinks, and behind the sinks every row is one range of keys."""
    keys = mask.size(3)
    sinks = int((~mask[broken]).view(torch.uint8).argmax(-1).amin())
    if sinks == 0:
        return None
    rest = mask[..., sinks:]
    first, last, broken = hulls(rest)
    if bool(broken.any()):
        return None
    found = numbered_rule(first, last, keys - sinks)
    if found is None or found.window_left is None:
        return None
    lengths = None if found.key_lengths is None else found.key_lengths + sinks
    rule = dataclasses.replace(found, query_start=found.query_start + sinks, sinks=sinks, key_lengths=lengths)
    return rule if torch.equal(rule_mask(rule, mask.size(2), keys, mask.device).expand_as(mask), mask) else None


def block_plan(mask: Tensor, first: Tensor, last: Tensor, query_block: int, key_block: int) -> BlockPlan | None:
    """Blocks, or None where blocks seen in part are no ranges of keys by row, [first, last) being all that a row sees."""
    some, every = block_flags(mask, query_block, key_block)
    part = some & ~every
    if bool(part.all()):
        return None  # no block is empty or whole: then ranges by row would be all there is, and they were tried
    rule = Rule.full()
    if bool(part.any()):
        tall = part[..., :, None, :, None].expand(-1, -1, -1, query_block, -1, key_block)
        inside = tall.flatten(4).flatten(2, 3)[..., : mask.size(2), : mask.size(3)]
        rule = part_rule(mask, inside, first, last)
        if rule is None:
            return None
    lists = [(flags.sum(-1).int(), listed(flags).clamp(min=0)) for flags in (part, every)]
    return BlockPlan(query_block, key_block, *lists[0], *lists[1], rule)


def part_rule(mask: Tensor, inside: Tensor, first: Tensor, last: Tensor) -> Rule | None:
    """The rule that tells the mask where `inside`: by numbers if it is the right limit alone, else by row."""
    key = torch.arange(mask.size(3), device=mask.device)
    fits = lambda low, high: not bool(((((key >= low[..., None]) & (key < high[..., None])) != mask) & inside).any())  # noqa: E731
    zero = torch.zeros_like(first)
    numbers = numbered_rule(zero, last, mask.size(3)) if bool((last > 0).all()) else None
    if numbers is not None and fits(zero, last):
        return numbers
    return Rule(window_right=None, row_start=first, row_end=last) if fits(first, last) else None


def block_flags(mask: Tensor, query_block: int, key_block: int) -> tuple[Tensor, Tensor]:
    """Whether some key, and every key, of each block is visible: bool [B|1, H|1, query blocks, key blocks]."""
    queries, keys = mask.shape[-2:]
    padded = torch.nn.functional.pad(mask, (0, -keys % key_block, 0, -queries % query_block)).float()
    seen = padded.unflatten(3, (-1, key_block)).sum(4).unflatten(2, (-1, query_block)).sum(3)
    sizes = [(n - torch.arange(0, n, block, device=mask.device)).clamp(max=block) for n, block in ((queries, query_block), (keys, key_block))]
    return seen > 0, seen == sizes[0][:, None] * sizes[1]


def listed(flags: Tensor) -> Tensor:
    """The places of True along the last axis, in order: int32 [..., longest list (at least 1)], -1 behind the end."""
    count = flags.sum(-1, keepdim=True)
    longest = max(1, int(count.amax())) if flags.numel() else 1
    places = torch.sort(flags.view(torch.uint8), dim=-1, descending=True, stable=True).indices[..., :longest]
    if places.size(-1) < longest:
        return places.new_full((*flags.shape[:-1], longest), -1, dtype=torch.int32)
    return places.where(torch.arange(longest, device=flags.device) < count, -1).int()


def runs(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's ranges of keys [start, end), int32 [B|1, H|1, Lq, the most ranges of a row]; 0 and 0 behind the last."""
    before = torch.nn.functional.pad(mask, (1, 0))[..., :-1]
    behind = torch.nn.functional.pad(mask, (0, 1))[..., 1:]
    return listed(mask & ~before).clamp(min=0), listed(mask & ~behind) + 1


def mask_of_plan(plan: Plan, queries: int, keys: int, *, batch: int = 1, heads: int = 1, device=None) -> Tensor:
    """The keys that a plan shows as a boolean mask [batch, heads, queries, keys]: for looking at, and for other libraries.

    Plans with a head axis between 1 and `heads` share their lists by groups.  Raises ValueError: a key listed twice.

    >>> mask_of_plan(Rule(window_left=1), 3, 3)[0, 0].int().tolist()
    [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    """
    rule = rule_of(plan)
    mask = rule_mask(rule, queries, keys, device).expand(batch, heads, queries, keys)
    order = rule.query_order
    rows = queries if order is None else order.size(2)
    if order is not None:
        order = order.expand(batch, heads, rows)
        mask = mask.gather(2, order.clamp(min=0)[..., None].expand(-1, -1, -1, keys)) & (order >= 0)[..., None]
    if not isinstance(plan, Rule):
        checked, sure = (counts.expand(batch, -1, -1, -1).repeat_interleave(heads // counts.size(1), 1) for counts in list_counts(plan, keys))
        if bool((checked + sure > 1).any()):
            raise ValueError("mask_of_plan: no key must be listed twice, got one that counts twice")
        wide = lambda counts: (counts > 0).repeat_interleave(plan.query_block, 2)[:, :, :rows]  # noqa: E731
        mask = (mask & wide(checked)) | wide(sure)
    if order is None:
        return mask.clone()
    shown = torch.zeros(batch, heads, queries + 1, keys, dtype=torch.bool, device=device)  # row `queries` takes what is none
    place = order.where(order >= 0, queries)[..., None].expand(-1, -1, -1, keys)
    return shown.scatter(2, place, mask)[:, :, :queries]


def list_counts(plan: BlockPlan | TokenPlan | RunPlan, keys: int) -> tuple[Tensor, Tensor]:
    """How often the lists name each key, checked by the rule and not: two of int64 [B|1, H, N, Lk]."""
    if isinstance(plan, BlockPlan):
        checked = block_counts(plan.count, plan.index, plan.key_block, keys)
        full = plan.full_index is not None
        return checked, block_counts(plan.full_count, plan.full_index, plan.key_block, keys) if full else torch.zeros_like(checked)
    if isinstance(plan, TokenPlan):
        checked = counted(plan.index.long(), keys)
    else:
        key = torch.arange(keys, device=plan.start.device)
        checked = ((key >= plan.start[..., None]) & (key < plan.end[..., None])).sum(-2)
    return checked, torch.zeros_like(checked)


def block_counts(count: Tensor, index: Tensor, key_block: int, keys: int) -> Tensor:
    blocks = -(-keys // key_block)
    place = torch.arange(index.size(-1), device=index.device)
    return counted(index.long().where(place < count[..., None], -1), blocks).repeat_interleave(key_block, -1)[..., :keys]


def counted(index: Tensor, size: int) -> Tensor:
    """How often each of 0 .. size - 1 is in the last axis of index; -1 is none."""
    counts = torch.zeros(*index.shape[:-1], size + 1, dtype=torch.int64, device=index.device)
    return counts.scatter_add(-1, index.where(index >= 0, size), torch.ones_like(index))[..., :size]


def rule_mask(rule: Rule, queries: int, keys: int, device=None) -> Tensor:
    """What a rule shows, without query_order: bool [B|1, Hq|1, Lq, Lk]."""
    position = (torch.arange(queries, device=device) + (keys - queries if rule.query_start is None else rule.query_start))[:, None]
    key = torch.arange(keys, device=device)
    mask = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device)
    if rule.head_window is not None:
        window = rule.head_window[:, None, None]
        mask = mask & ((window < 0) | (key >= position - window) | (key < rule.sinks))
    if rule.window_left is not None:
        mask = mask & ((key >= position - rule.window_left) | (key < rule.sinks))
    if rule.window_right is not None:
        mask = mask & (key <= position + rule.window_right)
    if rule.key_lengths is not None:
        mask = mask & (key < rule.key_lengths[:, None, None, None])
    if rule.query_documents is not None:
        mask = mask & (rule.query_documents[:, None, :, None] == rule.key_documents[:, None, None, :])
    if rule.row_start is not None:
        mask = mask & (key >= rule.row_start[..., None])
    if rule.row_end is not None:
        mask = mask & (key < rule.row_end[..., None])
    return mask
