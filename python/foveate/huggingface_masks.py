"""Masks of transformers as a range of keys for each query: O(L) numbers instead of a tensor of L x L.

transformers describes a mask by a function of (batch, head, query, key) and a padding mask, and carries what a mask interface returns through
models, `generate` and gradient checkpointing, where it must be a tensor of 4 axes.  So ours is one, int64 [B, 1, 3 + Lq (+ Lk), 2], which no
mask by pairs can be (its third axis is Lq or 1):

    row 0            position of query 0 in the text, and among the keys
    row 1            Lk, and the window in keys before the query (-1: none)
    row 2            1 if rows end at their own position (causal), and 1 if they say no more than causality and that window
    rows 3 ..        [start, end) of the keys that each query sees inside of that window
    rows 3 + Lq ..   (only where padding has holes) 1 for keys that are no padding
"""

import dataclasses
import inspect

import torch
from torch import Tensor
from transformers import masking_utils

from foveate.masks import hulls
from foveate.plans import Rule

HEADER = 3
CELLS = 1 << 22  # of a mask by pairs that are held at a time


@dataclasses.dataclass(eq=False)
class Ranges:
    """What a mask shows: keys [start, end) of each query, less those in front of its window and those that `visible` says are padding."""

    start: Tensor  # [B|1, Lq] int64
    end: Tensor
    visible: Tensor | None = None  # [B, Lk] bool
    window: int | Tensor | None = None  # keys before the query that rows are limited to (a tensor: -1 is none)
    causal: bool | Tensor = False  # rows end at the query's own position, or before
    plain: bool | Tensor = False  # rows say no more than `causal` and `window`


# What the functions of transformers.masking_utils show, by name of the function and of what its inner function holds.  p: positions [1, Lq].
def shown_by_causal(p: Tensor) -> Ranges:
    return Ranges(torch.zeros_like(p), p + 1, causal=True, plain=True)


def shown_by_bidirectional(p: Tensor) -> Ranges:
    return Ranges(torch.zeros_like(p), torch.full_like(p, torch.iinfo(p.dtype).max))


def shown_by_window(p: Tensor, sliding_window: int) -> Ranges:
    return dataclasses.replace(shown_by_bidirectional(p), window=sliding_window - 1, plain=True)


def shown_by_window_both_ways(p: Tensor, sliding_window: int) -> Ranges:
    return Ranges(p - sliding_window, p + sliding_window + 1)


def shown_by_chunks(p: Tensor, chunk_size: int, left_padding: Tensor) -> Ranges:
    first = left_padding[:, None]
    start = first + (p - first).div(chunk_size, rounding_mode="floor") * chunk_size
    return Ranges(start, start + chunk_size)


def shown_by_packing(p: Tensor, packed_sequence_mask: Tensor) -> Ranges:
    """Ids [B, L] grow along a row: transformers counts the jumps of position_ids."""
    ids = packed_sequence_mask.contiguous()
    own = ids[:, p[0]]
    return Ranges(torch.searchsorted(ids, own), torch.searchsorted(ids, own, right=True))


def code_of(maker: str, *arguments):
    made = getattr(masking_utils, maker, None)  # older versions have fewer
    return None if made is None else (made(*arguments) if arguments else made).__code__


KNOWN = {
    code_of("causal_mask_function"): shown_by_causal,
    code_of("bidirectional_mask_function"): shown_by_bidirectional,
    code_of("sliding_window_overlay", 1): shown_by_window,
    code_of("sliding_window_bidirectional_overlay", 1): shown_by_window_both_ways,
    code_of("chunked_overlay", 1, None): shown_by_chunks,
    code_of("packed_sequence_mask_function", None): shown_by_packing,
}
BOTH = code_of("and_masks", masking_utils.causal_mask_function)
EITHER = code_of("or_masks", masking_utils.causal_mask_function)


def held_by(function) -> dict:
    """What an inner function holds of the function that made it, by name."""
    return dict(zip(function.__code__.co_freevars, (cell.cell_contents for cell in function.__closure__ or ())))


def described(function) -> str:
    code = getattr(function, "__code__", None)
    if code in (BOTH, EITHER):
        return (" and " if code is BOTH else " or ").join(described(part) for part in held_by(function)["mask_functions"])
    name = getattr(function, "__qualname__", type(function).__qualname__).replace(".<locals>", "")
    return f"{getattr(function, '__module__', '?')}.{name}"


def both(a: Ranges, b: Ranges) -> Ranges:
    window = min((w for w in (a.window, b.window) if w is not None), default=None)
    return Ranges(torch.maximum(a.start, b.start), torch.minimum(a.end, b.end), None, window, a.causal or b.causal, a.plain and b.plain)


def known_ranges(function, p: Tensor) -> Ranges | None:
    """What a mask function shows, in positions of the text; None where it is made of something that is not known."""
    code = getattr(function, "__code__", None)
    if code is BOTH:
        parts = [known_ranges(part, p) for part in held_by(function)["mask_functions"]]
        whole = parts[0] if parts else None
        for part in parts[1:]:
            whole = None if whole is None or part is None else both(whole, part)
        return whole
    return KNOWN[code](p, **held_by(function)) if code in KNOWN else None


def by_pairs(function, batch: int, positions: Tensor, keys: int, key_offset, padding: Tensor | None, use_vmap: bool) -> Tensor:
    """A mask function evaluated for every pair: bool [B, 1, Lq, Lk], True = visible."""
    if "cache_position" in inspect.signature(masking_utils.sdpa_mask).parameters:
        queries = dict(cache_position=positions)
    else:  # newer versions of transformers
        queries = dict(q_length=positions.size(0), q_offset=positions[0])
    return masking_utils.sdpa_mask(
        batch_size=batch, kv_length=keys, kv_offset=key_offset, mask_function=function, attention_mask=padding, allow_is_causal_skip=False,
        allow_is_bidirectional_skip=False, use_vmap=use_vmap, **queries,
    )  # fmt: skip


def evaluated_ranges(function, batch: int, positions: Tensor, keys: int, key_offset, use_vmap: bool) -> tuple[Ranges, Tensor]:
    """What any mask function shows, from all pairs (some rows of them at a time), as indices of keys; and whether a row is no single range."""
    parts = [positions] if torch.compiler.is_compiling() else positions.split(max(1, CELLS // max(1, keys)))
    found = [hulls(by_pairs(function, batch, part, keys, key_offset, None, use_vmap)) for part in parts]
    start, end, broken = (torch.cat(pieces, -1)[:, 0] for pieces in zip(*found))
    return numbered(start, end, positions - key_offset, keys), broken.any()


def numbered(start: Tensor, end: Tensor, positions: Tensor, keys: int) -> Ranges:
    """Ranges of keys with what they say in numbers, all as tensors; positions [Lq] count keys."""
    window = torch.where(start > 0, positions - start, -1).amax()  # the only one there can be
    same = start == torch.where(window < 0, 0, (positions - window).clamp(min=0))
    plain = same.all() & (end == (positions + 1).clamp(max=keys)).all()
    start = torch.where(same.all(), 0, start)
    return Ranges(start, end, None, torch.where(same.all(), window, -1), (end <= positions + 1).all(), plain)


def without_padding(shown: Ranges, visible: Tensor) -> Ranges:
    """Ranges less keys that are padding (visible [B, Lk] bool, False = padding)."""
    if torch.compiler.is_compiling():  # values are not known: say it key by key
        return dataclasses.replace(shown, visible=visible, plain=False)
    count = visible.sum(-1)
    if bool((count == visible.size(1)).all()):
        return shown
    first = visible.int().argmax(-1)
    last = torch.where(count > 0, visible.size(1) - visible.flip(-1).int().argmax(-1), 0)
    holes = bool((count > 0).logical_and(last - first != count).any())
    start, end = torch.maximum(shown.start, first[:, None]), torch.minimum(shown.end, last[:, None])
    return dataclasses.replace(shown, start=start, end=end, visible=visible if holes else None, plain=False)


def packed(shown: Ranges, batch: int, keys: int, first_position, query_start) -> Tensor:
    """The tensor at the top of this file; `shown` counts keys."""
    device, queries = shown.start.device, shown.start.size(-1)
    window = -1 if shown.window is None else shown.window
    numbers = (first_position, query_start, keys, window, shown.causal, shown.plain)
    header = torch.stack([torch.as_tensor(n, device=device).long().reshape(()) for n in numbers]).view(1, 1, HEADER, 2)
    rows = torch.stack([shown.start.clamp(0, keys), shown.end.clamp(0, keys)], -1)
    parts = [header.expand(batch, 1, HEADER, 2), rows[:, None].expand(batch, 1, queries, 2)]
    if shown.visible is not None:
        parts.append(shown.visible.long()[:, None, :, None].expand(batch, 1, keys, 2))
    return torch.cat(parts, 2)


def is_packed(mask: Tensor, queries: int) -> bool:
    return mask.dtype == torch.int64 and mask.dim() == 4 and mask.size(3) == 2 and mask.size(2) >= HEADER + queries


def rule_of_mask(mask: Tensor, queries: int, keys: int, windowed: bool = True) -> Rule:
    """A packed mask as a rule over ranges of keys; nothing in it depends on values, so that it can be compiled.

    windowed: ranges end with the window; else it is left to the caller
    """
    rows = mask[:, :, HEADER : HEADER + queries]
    start = rows[..., 0]
    if windowed:
        window, position = mask[:, :, 1, 1:], mask[:, :, 0, 1:] + torch.arange(queries, device=mask.device)
        start = torch.maximum(start, torch.where(window < 0, 0, position - window))
    rule = Rule(window_right=None, row_start=start, row_end=rows[..., 1])
    if mask.size(2) > HEADER + queries:
        rule.key_documents = mask[:, 0, HEADER + queries :, 0]
        rule.query_documents = torch.ones_like(rows[:, 0, :, 0])
        held = rule.key_documents.size(1)
    elif torch.compiler.is_compiling() or mask.device.type != "cpu":
        held = keys  # reading it would break the graph, or wait for the device
    else:
        held = int(mask[0, 0, 1, 0])
    if held != keys:
        raise ValueError(f"foveate: the mask must be for the keys of the layer, got a mask for {held} keys and {keys} keys")
    return rule


def causal_rule_of_mask(mask: Tensor, queries: int, keys: int) -> tuple[Rule, int] | None:
    """A packed mask as what mechanisms ask for: causality and window as numbers, ranges only where they say more; and the position of
    query 0 in the text.  None where the mask is not causal."""
    (first_position, query_start), (_, window), (causal, plain) = mask[0, 0, :HEADER].tolist()
    if not causal:
        return None
    rule = Rule() if plain else dataclasses.replace(rule_of_mask(mask, queries, keys, windowed=False), window_right=0)
    return dataclasses.replace(rule, query_start=query_start, window_left=None if window < 0 else window), first_position


# Arguments that say nothing which the mask function does not: when a mask may be left out, and what it is like.
TOLD_BY_FUNCTION = {"allow_is_causal_skip", "allow_is_bidirectional_skip", "allow_torch_fix", "local_size", "config", "device"}


def make_mask(
    batch_size: int,
    kv_length: int,
    kv_offset: int = 0,
    mask_function=masking_utils.causal_mask_function,
    attention_mask: Tensor | None = None,
    cache_position: Tensor | None = None,
    q_length: int | None = None,
    q_offset: int = 0,
    use_vmap: bool = False,
    dtype: torch.dtype = torch.float32,
    fallback: bool = False,
    **others,
) -> Tensor:
    """The mask interface of transformers (AttentionMaskInterface): never None, so that causality can not be lost.

    Causal, sliding, chunked, bidirectional and packed masks and padding cost O(L).  Any other mask function, and all of them in torch.compile,
    are evaluated pair by pair, once a forward pass; where a row is not one range of keys, the mask can not be had by ranges.

    fallback: add such a mask to the logits (dtype [B, 1, Lq, Lk]) instead of raising
    Raises ValueError: an argument that is not known, a mask function that shows a row more than one range.
    """
    unknown = sorted(others.keys() - TOLD_BY_FUNCTION)
    if unknown:
        raise ValueError(f"foveate: a mask must be asked for in known terms, got {', '.join(unknown)}; use attn_implementation='eager'")
    positions = cache_position
    if positions is None:
        positions = torch.arange(q_length, device=None if attention_mask is None else attention_mask.device) + q_offset
    shown = None if torch.compiler.is_compiling() else known_ranges(mask_function, positions[None])
    if shown is not None:
        shown = dataclasses.replace(shown, start=shown.start - kv_offset, end=shown.end - kv_offset)
    else:
        shown, broken = evaluated_ranges(mask_function, batch_size, positions, kv_length, kv_offset, use_vmap)
        if torch.compiler.is_compiling():
            torch._assert_async(~broken, "foveate: a mask must show each query one range of keys, got another in torch.compile")
        elif bool(broken):
            if not fallback:
                raise ValueError(
                    f"foveate: a mask must show each query one range of keys, got {described(mask_function)}; "
                    "use register(fallback=True), which adds it to the logits, or attn_implementation='eager'"
                )
            pairs = by_pairs(mask_function, batch_size, positions, kv_length, kv_offset, attention_mask, use_vmap)
            return torch.zeros(pairs.shape, dtype=dtype, device=pairs.device).masked_fill_(~pairs, -torch.inf)
    if attention_mask is not None:
        padding = masking_utils.prepare_padding_mask(attention_mask.bool(), kv_length, kv_offset)
        shown = without_padding(shown, padding[:, kv_offset : kv_offset + kv_length])
    return packed(shown, batch_size, kv_length, positions[0], positions[0] - kv_offset)
