"""Mechanisms in models of transformers: positions in the cache, and one graph for torch.compile."""

import copy
import itertools
import sys

import pytest
import torch

transformers = pytest.importorskip("transformers")

import foveate.huggingface  # noqa: E402
from foveate.huggingface_masks import make_mask  # noqa: E402
from foveate.huggingface_mechanisms import ROTATED_BY_HALVES, rotation_of  # noqa: E402
from tiny_models import DECODERS, HYBRID, LENGTH, eager_model, made, padding, run, tokens, with_attention  # noqa: E402

foveate.huggingface.register()

SIZE, SINKS = 5, 2
IN_CACHE = f"foveate:window:size={SIZE},sinks={SINKS},positions=cache"
LLAMA3 = dict(rope_type="llama3", rope_theta=1e3, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
ROTATIONS = {
    "llama": ("Llama", dict(rope_parameters=dict(rope_type="default", rope_theta=50.0))),
    "llama linear": ("Llama", dict(rope_parameters=dict(rope_type="linear", rope_theta=1e3, factor=4.0))),
    "llama 3": ("Llama", dict(rope_parameters=LLAMA3)),
    "mistral": ("Mistral", dict(sliding_window=None, head_dim=16)),
    "qwen2": ("Qwen2", {}),
    "qwen3": DECODERS["qwen3"],
    "gemma2": DECODERS["gemma2"],
    "gemma3": DECODERS["gemma3"],
    "olmo2": ("Olmo2", {}),
    "phi3": ("Phi3", dict(sliding_window=9, rope_parameters=dict(rope_type="default", rope_theta=1e3, partial_rotary_factor=0.5))),
    "gpt neox": ("GPTNeoX", dict(hidden_dropout=0.0, attention_dropout=0.0,
                                 rope_parameters=dict(rope_type="default", rope_theta=1e3, partial_rotary_factor=0.5))),
}  # fmt: skip


def attention_by_slots(rotate, key_mask):
    """StreamingLLM by loops (2309.17453, section 3.2): sinks and window stand at the places that they have in the cache.  q and k come
    before rotation.  A model's own window hides sinks that are outside of it."""

    def attention(module, query, key, value, mask, scaling, softcap=None, sliding_window=None, **_):
        out = torch.zeros(query.size(0), query.size(2), query.size(1), value.size(3))
        key, value = (t.repeat_interleave(query.size(1) // key.size(1), 1) for t in (key, value))
        for b in range(query.size(0)):
            text = int(key_mask[b].int().argmax())  # where it begins
            for i in range(query.size(2)):
                kept = [j for j in range(i + 1) if i - j < SIZE or j < text + SINKS]
                kept = [j for j in kept if key_mask[b, j] and (sliding_window is None or i - j < sliding_window)]
                if not kept:
                    continue
                own = min(i - text, SINKS + SIZE - 1)
                slots = torch.tensor([j - text if j < text + SINKS else own - (i - j) for j in kept])
                q, k = rotate(module, query[b, None, :, i, None], torch.tensor([own])), rotate(module, key[b, None, :, kept], slots)
                logits = (q @ k.mT)[0, :, 0] * scaling
                logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
                out[b, i] = (logits.softmax(-1)[:, None] @ value[b, :, kept])[:, 0]
        return out, None

    return attention


def by_slots(model, ids, mask):
    """Logits of a model whose attention is the loops above, rotated by the model's own functions."""
    model = copy.deepcopy(model)
    modeling, rotary = sys.modules[type(model).__module__], model.base_model.rotary_emb
    apply = modeling.apply_rotary_pos_emb

    def rotate(module, x, positions):
        kinds = getattr(rotary, "layer_types", None)
        more = [model.config.layer_types[module.layer_idx]] if kinds and hasattr(rotary, f"{kinds[0]}_inv_freq") else []
        return apply(x, x, *rotary(x, positions[None], *more))[0]

    key_mask = torch.ones_like(ids) if mask is None else mask
    transformers.AttentionInterface.register("slots", attention_by_slots(rotate, key_mask))
    transformers.AttentionMaskInterface.register("slots", lambda **_: None)
    model.set_attn_implementation("slots")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling, "apply_rotary_pos_emb", lambda q, k, *_, **__: (q, k))
        return model(ids, attention_mask=mask).logits


@pytest.mark.parametrize("name", ROTATIONS)
@torch.no_grad()
def test_positions_in_the_cache_equal_a_loop_over_slots(name):
    model = made(*ROTATIONS[name])
    ours, elsewhere = with_attention(model, IN_CACHE), with_attention(model, IN_CACHE.replace("cache", "original"))
    mask = padding("left")  # of one row of the batch
    want, got = by_slots(model, tokens(), mask)[mask.bool()], ours(tokens(), attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert (ours(tokens()).logits - elsewhere(tokens()).logits).abs().max() > 0.01


def test_every_model_that_rotates_by_halves_is_tried_here():
    configurations = [getattr(transformers, f"{family}Config") for family, _ in ROTATIONS.values()]
    assert {configuration.model_type for configuration in configurations} == set(ROTATED_BY_HALVES)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@torch.no_grad()
def test_positions_in_the_cache_are_the_same_token_by_token(cache):
    for name in ("llama", "gemma3"):
        model, ids = with_attention(made(*ROTATIONS[name]), IN_CACHE), tokens()
        make = {"dynamic": transformers.DynamicCache, "static": transformers.StaticCache}[cache]
        past = make(config=model.config, **(dict(max_cache_len=40) if cache == "static" else {}))
        parts = [slice(0, 9), *(slice(i, i + 1) for i in range(9, LENGTH))]
        steps = [model(ids[:, p], past_key_values=past, cache_position=torch.arange(LENGTH)[p]).logits for p in parts]
        torch.testing.assert_close(torch.cat(steps, 1), model(ids).logits, rtol=1e-4, atol=1e-4)


def test_rotations_that_are_not_known_are_refused_by_name():
    cohere = with_attention(eager_model("cohere2"), IN_CACHE)
    with pytest.raises(ValueError, match=r"foveate: positions=cache must know how the model rotates \(gemma2 .*\), got cohere2"):
        cohere(tokens())
    yarn = made("Llama", dict(rope_parameters=dict(rope_type="yarn", rope_theta=1e4, factor=2.0, original_max_position_embeddings=32)))
    with pytest.raises(ValueError, match=r"foveate: positions=cache must know the rope_type \(default linear llama3\), got yarn"):
        with_attention(yarn, IN_CACHE)(tokens())
    with pytest.raises(ValueError, match="window: positions=cache needs a model with rotary embedding, got one without"):
        with_attention(eager_model("gpt2"), IN_CACHE)(tokens())
    assert rotation_of(eager_model("gpt2").config, 0, 8) == []


SPARSE = {
    "dense": "foveate",
    "window": "foveate:window:size=5,sinks=2",
    "cache": IN_CACHE,
    "neighborhood": "foveate:neighborhood:kernel=4,dilation=2",
    "dhsa": "foveate:dhsa:budget=8,query_block=4,chunk=2,global_tokens=2,local_tokens=2",
    "dhsa_blocks": "foveate:dhsa_blocks:density=0.5,query_block=16,key_block=16",
    "duo": "foveate:duo:size=5,sinks=2,full_heads=0",
    "flux": "foveate:flux:route=cheap,cheap=(window:size=5,sinks=2)",
    "vertical_slash": "foveate:vertical_slash:vertical=8,slash=6,first_columns=2,first_distances=3,block=16",
    "flexprefill": "foveate:flexprefill:gamma=0.5,min_budget=16,block=16",
    "hyper": "foveate:hyper:min_seq_len=3,block_size=2,sample_size=2",
    "block_topk": "foveate:block_topk:query_block=4,block=4,blocks=2",
    "xattention": "foveate:xattention:block=4,stride=2,tau=0.5",
    "triangle": "foveate:triangle:size=5,sinks=2,last=3",
    "quest": "foveate:quest:page=4,budget=8,least_pages=2",
    "layers": "foveate:dense@0;window:size=5",
}
# What a generated row attends by, where that is not the prompt's own rule.
DECODED = {"dhsa": "foveate", "dhsa_blocks": "foveate", "vertical_slash": "foveate", "flexprefill": "foveate", "hyper": "foveate", "xattention": "foveate",
           "triangle": "foveate", "quest": "pages", "flux": SPARSE["window"], "block_topk": SPARSE["block_topk"]}  # fmt: skip


def attention_by_pages(module, query, key, value, mask, scaling, **_):
    """Quest (2406.10774, algorithm 1) for one row, by loops: the pages of 4 keys with the two largest bounds, the row's own among them."""
    out = torch.zeros(query.size(0), 1, query.size(1), value.size(3))
    key, value = (t.repeat_interleave(query.size(1) // key.size(1), 1) for t in (key, value))
    for b, h in itertools.product(range(query.size(0)), range(query.size(1))):
        pages = [range(first, min(first + 4, key.size(2))) for first in range(0, key.size(2), 4)]
        bounds = [torch.maximum(query[b, h, 0] * key[b, h, p].amax(0), query[b, h, 0] * key[b, h, p].amin(0)).sum() for p in pages[:-1]]
        kept = [*pages[max(range(len(bounds)), key=bounds.__getitem__)], *pages[-1]]
        out[b, 0, h] = (query[b, h, 0] @ key[b, h, kept].T * scaling).softmax(-1) @ value[b, h, kept]
    return out, None


@pytest.mark.parametrize("spec", DECODED)
@torch.no_grad()
def test_a_generated_row_goes_by_the_rule_of_decoding(spec):
    transformers.AttentionInterface.register("pages", attention_by_pages)
    transformers.AttentionMaskInterface.register("pages", lambda **_: None)
    model = eager_model("llama")
    past = transformers.DynamicCache(config=model.config)
    with_attention(model, SPARSE[spec])(tokens(), past_key_values=past)

    def step(attention):
        return with_attention(model, attention)(tokens()[:, :1], past_key_values=copy.deepcopy(past), cache_position=torch.tensor([LENGTH])).logits

    torch.testing.assert_close(step(SPARSE[spec]), step(DECODED[spec]), rtol=1e-4, atol=1e-4)
    assert DECODED[spec] == "foveate" or (step(SPARSE[spec]) - step("foveate")).abs().max() > 0.01


DROPPING = {
    "llama": ("Llama", dict(attention_dropout=0.3)),
    "gemma3": ("Gemma3Text", DECODERS["gemma3"][1] | dict(attention_dropout=0.3)),
    "gpt oss": ("GptOss", DECODERS["gpt oss"][1] | dict(attention_dropout=0.3)),
}


def trained(model, kind):
    torch.manual_seed(7)
    return run(model.train(), tokens(), mask=padding(kind), use_cache=False)


# Paddings are all one to a compiled graph; eager mode says them by ranges or key by key.
PADDED_LEFT = ("dense", "dhsa_blocks", "vertical_slash", "flexprefill")
MEETING = [(spec, "none") for spec in SPARSE] + [(spec, "left" if spec in PADDED_LEFT else "holes") for spec in SPARSE if spec not in ("layers", "hyper")]


@pytest.mark.parametrize("spec, kind", MEETING)
def test_training_with_dropout_is_one_compiled_graph(spec, kind):
    """The same seed drops the same weights, and all gradients are those of eager mode."""
    torch._dynamo.reset()
    model = with_attention(made(*DROPPING["gpt oss" if spec == "window" else "gemma3"]), SPARSE[spec])
    model.set_experts_implementation("batched_mm")  # eager experts loop over data
    want, compiled = trained(model, kind), copy.deepcopy(model)
    compiled.compile(backend="aot_eager", fullgraph=True)
    for key, value in trained(compiled, kind).items():
        torch.testing.assert_close(value, want[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", ["dense", "dhsa"])
def test_no_graph_is_cut(spec):
    torch._dynamo.reset()
    model = with_attention(made(*DROPPING["llama"]), SPARSE[spec]).train()
    explained = torch._dynamo.explain(model)(tokens(), attention_mask=padding("left"), use_cache=False)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0), explained.break_reasons


@pytest.mark.parametrize("spec", ["dense", "dhsa"])
def test_a_compiled_step_with_a_static_cache_gives_the_same(spec):
    torch._dynamo.reset()
    model = with_attention(eager_model("llama"), SPARSE[spec])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)

    def step(run):
        past = transformers.StaticCache(config=model.config, max_cache_len=40)
        model(tokens(), past_key_values=past, cache_position=torch.arange(LENGTH))
        return run(tokens()[:, :1], past_key_values=past, cache_position=torch.tensor([LENGTH])).logits

    with torch.no_grad():
        torch.testing.assert_close(step(compiled), step(model), rtol=1e-4, atol=1e-4)


def test_autocast_compiled_is_autocast():
    torch._dynamo.reset()
    model = with_attention(eager_model("llama"), SPARSE["window"])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(compiled(tokens()).logits, model(tokens()).logits, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("spec", ["window:size=3,sinks=1", "window:size=3,sinks=1,positions=cache", "dhsa:budget=4,query_block=2,chunk=2,global_tokens=1,local_tokens=1"])
def test_opcheck(spec):
    make = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, heads, 6, 8, generator=make, requires_grad=True) for heads in (4, 2, 2))
    mask = make_mask(batch_size=2, kv_length=6, cache_position=torch.arange(2, 8), kv_offset=2)
    sink = torch.randn(4, generator=make, requires_grad=True)
    call = (mask, sink, torch.tensor(3), spec, 0, "Attention", None, [8.0, 1e4, 1.0], 0.4, 2.0, 0.25)
    torch.library.opcheck(torch.ops.foveate.model_mechanism, (q, k, v, *call))
    q, k, v, sink = (t.detach() for t in (q, k, v, sink))
    out = torch.ops.foveate.model_mechanism(q, k, v, *call)
    torch.library.opcheck(torch.ops.foveate.model_mechanism_backward, (torch.ones_like(out), q, k, v, mask, sink, *call[2:]))
