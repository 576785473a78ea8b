"""What foveate can not serve in transformers: refused by name, or run otherwise where that is allowed.  And what looks like it, but is served."""

import functools
import importlib.util
import types

import pytest
import torch

transformers = pytest.importorskip("transformers")
import foveate.huggingface  # noqa: E402
from foveate.huggingface import attention_forward  # noqa: E402
from foveate.huggingface_masks import make_mask  # noqa: E402

TINY = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48, vocab_size=61,
    max_position_embeddings=64, pad_token_id=0,
)  # fmt: skip
IDS = torch.randint(3, 61, (2, 12), generator=torch.Generator().manual_seed(1))
REFUSED = functools.partial(pytest.raises, ValueError)


@pytest.fixture(autouse=True)
def registered():
    foveate.huggingface.register()
    yield
    foveate.huggingface.register()


def made(family="Llama", implementation="foveate", auto=transformers.AutoModelForCausalLM, **more):
    torch.manual_seed(3)
    return auto.from_config(getattr(transformers, f"{family}Config")(**TINY | more), attn_implementation=implementation).eval()


def same(family="Llama", auto=transformers.AutoModelForCausalLM, **more):
    """The same random weights with eager attention and with ours."""
    return made(family, "eager", auto, **more), made(family, "foveate", auto, **more)


T5 = dict(d_model=32, d_kv=8, d_ff=48, num_heads=4, num_layers=2, decoder_start_token_id=0)


def test_a_model_with_an_attention_of_its_own_is_refused_and_eager_only_if_allowed(caplog):
    make = functools.partial(made, "T5", auto=transformers.AutoModelForSeq2SeqLM, **T5)
    with REFUSED(match="foveate: T5ForConditionalGeneration has an attention of its own that transformers can not exchange; use attn_imp"):
        make()
    foveate.huggingface.register(fallback=True)
    assert make().config._attn_implementation == "eager"
    assert "T5ForConditionalGeneration has an attention of its own" in caplog.text and "it runs eagerly" in caplog.text


OWN_MODEL = """
from transformers import LlamaForCausalLM

def eager_attention_forward(module, query, key, value, attention_mask, scaling, position_bias=None, **kwargs):
    return query * module.temperature, None

class OwnLlama(LlamaForCausalLM):
    pass
"""


def test_a_model_whose_eager_attention_knows_more_is_refused_by_name(tmp_path, monkeypatch):
    (tmp_path / "own_llama.py").write_text(OWN_MODEL)
    spec = importlib.util.spec_from_file_location("own_llama", tmp_path / "own_llama.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "own_llama", module)
    spec.loader.exec_module(module)
    config = transformers.LlamaConfig(**TINY)
    with REFUSED(match="the eager attention of OwnLlama uses temperature, position_bias, which is not known; use attn_implementation='eager'"):
        module.OwnLlama._from_config(config, attn_implementation="foveate")


@pytest.mark.parametrize("name", ["output_attentions", "head_mask", "alibi"])
def test_arguments_that_are_not_served_are_refused_by_name(name):
    with REFUSED(match=f"foveate: .*{name}"):
        made()(IDS, **{name: True})
    assert torch.equal(made()(IDS, **{name: None}).logits, made()(IDS).logits)  # nothing is asked for


def test_weights_asked_for_by_the_configuration_are_refused():
    model = made(implementation="eager", output_attentions=True)
    model.set_attn_implementation("foveate")
    with REFUSED(match="foveate: output_attentions must be False, got True: weights are never held; use attn_implementation='eager'"):
        model(IDS)


def test_is_causal_false_makes_decoders_see_later_keys():
    """transformers makes the mask of it, as it does for the setting."""
    eager, ours = same()
    want = eager(IDS, is_causal=False).logits
    assert (want - eager(IDS).logits).abs().max() > 1e-3
    torch.testing.assert_close(ours(IDS, is_causal=False).logits, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made(is_causal=False)(IDS).logits, want, rtol=1e-4, atol=1e-5)


def test_is_causal_false_with_a_causal_mask_is_refused():
    q, mask = torch.ones(1, 4, 5, 8), make_mask(batch_size=1, kv_length=5, cache_position=torch.arange(5))
    for spec in (None, "window:size=3"):
        module = types.SimpleNamespace(layer_idx=0, config=types.SimpleNamespace(num_hidden_layers=1))
        with REFUSED(match="foveate: is_causal must agree with the mask of SimpleNamespace, got False; set config.is_causal = False instead"):
            attention_forward(module, q, q, q, mask, spec=spec, is_causal=False)


def strided_mask():
    i, j = torch.arange(12)[:, None], torch.arange(12)
    return ((j <= i) & ((i - j) % 2 == 0)).expand(2, 1, 12, 12)


def test_masks_by_pairs_of_the_user_are_added_to_the_logits():
    eager, ours = same()
    floating = torch.zeros(2, 1, 12, 12).masked_fill(~strided_mask(), torch.finfo(torch.float).min)
    want = eager(IDS, attention_mask=floating).logits
    assert (want - eager(IDS).logits).abs().max() > 1e-3
    for mask in (floating, strided_mask()):
        torch.testing.assert_close(ours(IDS, attention_mask=mask).logits, want, rtol=1e-4, atol=1e-5)
    with REFUSED(match=r"foveate: a mask must be bool or floating point of 4 axes, got torch.int32 \[2, 1, 12, 12\]"):
        ours(IDS, attention_mask=strided_mask().int())
    with REFUSED(match=r"foveate:window:size=8: a mask must be of ranges, got torch.bool \[2, 1, 12, 12\]; use attn_implementation='foveate'"):
        made(implementation="foveate:window:size=8")(IDS, attention_mask=strided_mask())


def test_gemma_3_as_an_encoder_is_served_though_its_mask_function_is_a_lambda():
    more = dict(head_dim=8, sliding_window=5, layer_types=["sliding_attention", "full_attention"], use_bidirectional_attention=True)
    eager, ours = same("Gemma3Text", **more)
    mask = torch.ones_like(IDS)
    mask[0, :4] = 0
    torch.testing.assert_close(ours(IDS, attention_mask=mask).logits[mask.bool()], eager(IDS, attention_mask=mask).logits[mask.bool()], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("bindow:size=3", "bindow"),
        ("window:sise=3", "sise"),
        ("window:size=3@2", "2"),
        ("", "^.*: .* got"),
    ],
)
def test_wrong_specs_are_refused_when_they_are_set(spec, message):
    with REFUSED(match=message):
        made(implementation=f"foveate:{spec}")


def test_mechanisms_refuse_attention_that_sees_later_keys():
    encoder = made("Bert", "foveate:window:size=4", transformers.AutoModelForMaskedLM)
    with REFUSED(match="foveate:window:size=4: mechanisms serve causal attention, got BertSelfAttention that sees later keys; use 'foveate'"):
        encoder(IDS)
    ends = torch.tensor([0, 5, 12], dtype=torch.int32)
    with REFUSED(match="foveate:window:size=4: sequences must be packed by position_ids, got cu_seq_lens_q"):
        made(implementation="foveate:window:size=4")(IDS[:1], cu_seq_lens_q=ends, cu_seq_lens_k=ends)


CAUSAL = types.SimpleNamespace(is_causal=True, layer_idx=0, config=types.SimpleNamespace(num_hidden_layers=1))


def bare(module=CAUSAL, queries=5, keys=5, spec=None, **more):
    make = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(1, heads, length, 8, generator=make) for heads, length in ((4, queries), (2, keys), (2, keys)))
    return attention_forward(module, q, k, v, None, spec=spec, **more)[0], (q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))


def test_without_a_mask_causality_is_kept_or_the_call_is_refused():
    sdpa = torch.nn.functional.scaled_dot_product_attention
    for module, options in ((CAUSAL, {}), (CAUSAL, dict(spec="dense")), (types.SimpleNamespace(), dict(is_causal=True))):
        out, qkv = bare(module, **options)
        torch.testing.assert_close(out, sdpa(*qkv, is_causal=True).transpose(1, 2))
    out, qkv = bare(is_causal=False, keys=9)
    torch.testing.assert_close(out, sdpa(*qkv).transpose(1, 2))
    out, qkv = bare(queries=1, keys=9)
    torch.testing.assert_close(out, sdpa(*qkv).transpose(1, 2))
    window = torch.ones(5, 5, dtype=torch.bool).tril().triu(-1)
    for spec in (None, "dense"):
        out, qkv = bare(sliding_window=2, spec=spec)
        torch.testing.assert_close(out, sdpa(*qkv, attn_mask=window).transpose(1, 2))
    with REFUSED(match="without a mask causal SimpleNamespace must have one query or as many as keys, got 5 and 9; pass a mask"):
        bare(keys=9)
    with REFUSED(match="without a mask SimpleNamespace must say is_causal, got neither"):
        bare(types.SimpleNamespace())
    with REFUSED(match="without a mask a window must be causal, got 2 of 5 keys both ways"):
        bare(is_causal=False, sliding_window=2)


def test_registering_twice_wraps_transformers_once():
    foveate.huggingface.register()
    assert not hasattr(transformers.PreTrainedModel.get_correct_attn_implementation.original, "original")


def test_other_names_are_still_transformers_own():
    with REFUSED(match='Specified `attn_implementation="foveated"` is not supported'):
        made(implementation="foveated")
    assert made(implementation="sdpa").config._attn_implementation == "sdpa"
