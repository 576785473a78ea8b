"""Masks by ranges of keys against transformers' own masks by pairs, for every mask function it has."""

import pytest
import torch

pytest.importorskip("transformers")
from transformers import masking_utils as mu  # noqa: E402

from foveate.huggingface_masks import HEADER, causal_rule_of_mask, is_packed, make_mask, rule_of_mask  # noqa: E402

BATCH = 2
IDS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2, 2], [0, 0, 0, 0, 0, 0, 0, 1, 1, 1]])


def picture(words):
    """Padding from a drawing: # is a token, . is padding."""
    return torch.tensor([[letter == "#" for letter in word] for word in words.split()])


FUNCTIONS = {
    "causal": mu.causal_mask_function,
    "bidirectional": mu.bidirectional_mask_function,
    "sliding": mu.sliding_window_causal_mask_function(4),
    "sliding both ways": mu.sliding_window_bidirectional_mask_function(2),
    "chunked": mu.chunked_causal_mask_function(3, torch.tensor([0, 2])),
    "packed": mu.and_masks(mu.causal_mask_function, mu.packed_sequence_mask_function(IDS)),
    "packed sliding": mu.and_masks(mu.sliding_window_causal_mask_function(2), mu.packed_sequence_mask_function(IDS)),
}
# queries at first .. last, keys, first key
PLACES = {
    "prompt": (0, 10, 10, 0),
    "chunk": (4, 10, 10, 0),
    "one": (9, 10, 10, 0),
    "static": (3, 5, 16, 0),
    "evicted": (6, 10, 8, 2),
    "short": (0, 3, 4, 0),
}
PADDINGS = {
    "none": None,
    "left": picture("..######## ##########"),
    "right": picture("########.. #########."),
    "holes": picture(".##.###### ######..##"),
    "all": picture(".......... ##########"),
    "long": picture("..############ ############.."),
}


def arguments(place, padding=None, **more):
    first, end, keys, offset = PLACES[place]
    return dict(batch_size=BATCH, cache_position=torch.arange(first, end), kv_length=keys, kv_offset=offset, attention_mask=padding, **more)


def shown(mask, queries, keys):
    """[B, Lq, Lk] bool of a packed mask, by loops."""
    rule = rule_of_mask(mask, queries, keys)
    out = torch.zeros(mask.size(0), queries, keys, dtype=torch.bool)
    for b in range(mask.size(0)):
        for i in range(queries):
            for j in range(int(rule.row_start[b, 0, i]), int(rule.row_end[b, 0, i])):
                out[b, i, j] = rule.key_documents is None or rule.key_documents[b, j] == rule.query_documents[b, i]
    return out


# transformers packs sequences only where there is no cache
MEETING = [(function, place) for function in FUNCTIONS for place in PLACES if not ("packed" in function and place == "static")]


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("function, place", MEETING)
def test_ranges_show_what_the_mask_by_pairs_shows(function, padding, place):
    given = arguments(place, PADDINGS[padding])
    mask = make_mask(mask_function=FUNCTIONS[function], **given)
    queries, keys = len(given["cache_position"]), given["kv_length"]
    expected = mu.sdpa_mask(mask_function=FUNCTIONS[function], allow_is_causal_skip=False, **given)
    assert is_packed(mask, queries) and mask.size(0) == BATCH
    assert (mask.size(2) > HEADER + queries) == (padding == "holes" and place != "short")
    assert torch.equal(shown(mask, queries, keys), expected.expand(BATCH, 1, queries, keys)[:, 0])


@pytest.mark.parametrize("padding", ["none", "left", "holes"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_compiled_masks_show_the_same(function, padding):
    torch._dynamo.reset()
    compiled = torch.compile(make_mask, backend="eager", fullgraph=True, dynamic=True)
    given = arguments("prompt", PADDINGS[padding], mask_function=FUNCTIONS[function])
    assert torch.equal(shown(compiled(**given), 10, 10), shown(make_mask(**given), 10, 10))


def test_newer_calls_give_lengths_and_offsets_instead_of_positions():
    newer = dict(batch_size=BATCH, q_length=6, q_offset=4, kv_length=10, attention_mask=PADDINGS["left"])
    assert torch.equal(make_mask(**newer), make_mask(**arguments("chunk", PADDINGS["left"])))


def test_a_mask_by_pairs_is_never_taken_for_ranges():
    for queries in range(1, 7):
        for keys in range(1, 20):
            assert not is_packed(torch.ones(1, 1, queries, keys, dtype=torch.int64), queries)
            assert not is_packed(torch.ones(1, 1, 1, keys, dtype=torch.int64), queries)


def test_a_mask_for_other_keys_is_refused():
    for padding in ("none", "holes"):
        with pytest.raises(ValueError, match="foveate: the mask must be for the keys of the layer, got a mask for 10 keys and 9 keys"):
            rule_of_mask(make_mask(**arguments("prompt", PADDINGS[padding])), 10, 9)


def test_mechanisms_get_causality_and_window_as_numbers_and_ranges_only_where_they_say_more():
    def asked(function, place, padding=None):
        given = arguments(place, padding, mask_function=FUNCTIONS[function])
        return causal_rule_of_mask(make_mask(**given), len(given["cache_position"]), given["kv_length"])

    rule, first = asked("causal", "static")
    assert (rule.query_start, rule.window_left, rule.window_right, rule.row_start, first) == (3, None, 0, None, 3)
    rule, first = asked("sliding", "evicted")
    assert (rule.query_start, rule.window_left, rule.window_right, rule.row_start, first) == (4, 3, 0, None, 6)
    for function, padding in (("packed", None), ("chunked", None), ("sliding", PADDINGS["left"])):
        rule, _ = asked(function, "prompt", padding)
        assert rule.window_right == 0 and rule.row_start is not None
    for function in ("bidirectional", "sliding both ways"):
        assert asked(function, "prompt") is None


def every_second(batch, head, query, key):
    return (query - key) % 2 == 0


PREFIX = mu.or_masks(mu.causal_mask_function, lambda batch, head, query, key: key < 3)


def test_a_function_of_the_user_is_mapped_where_its_rows_are_ranges():
    mask = make_mask(mask_function=PREFIX, use_vmap=True, **arguments("prompt", PADDINGS["left"]))
    expected = mu.sdpa_mask(mask_function=PREFIX, allow_is_causal_skip=False, **arguments("prompt", PADDINGS["left"]))
    assert torch.equal(shown(mask, 10, 10), expected[:, 0])


def test_a_function_with_other_rows_is_refused_by_name_and_added_only_if_allowed():
    strided = mu.and_masks(mu.causal_mask_function, every_second)
    given = arguments("prompt", PADDINGS["left"], mask_function=strided, use_vmap=True)
    with pytest.raises(ValueError, match=r"got transformers\.masking_utils\.causal_mask_function and .*every_second; use register"):
        make_mask(**given)
    added = make_mask(fallback=True, dtype=torch.bfloat16, **given)
    assert added.dtype == torch.bfloat16
    expected = mu.sdpa_mask(allow_is_causal_skip=False, **given)
    assert torch.equal(added == 0, expected) and torch.equal(added == -torch.inf, ~expected)


def test_arguments_that_are_not_known_are_refused():
    with pytest.raises(ValueError, match="foveate: a mask must be asked for in known terms, got block_size, paged"):
        make_mask(paged=1, block_size=2, **arguments("prompt"))
