"""Models of transformers with attn_implementation="foveate" against the same models in eager attention."""

import copy
import functools

import pytest
import torch

transformers = pytest.importorskip("transformers")
from transformers import masking_utils  # noqa: E402

import foveate.huggingface  # noqa: E402
from tiny_models import DECODERS, ENCODERS, LENGTH, PADDINGS, eager_model, made, padding, run, tokens, with_attention  # noqa: E402

foveate.huggingface.register()

def check(ours, peers, exact):
    """Nowhere further from the exact result than three times what attention of torch's own in the same dtype is at its worst, or a few roundings."""
    assert ours.keys() == exact.keys() and all(peer.keys() == exact.keys() for peer in peers)
    for name, want in exact.items():
        assert torch.equal(ours[name].isfinite(), want.isfinite()), name
        rounding = torch.finfo(ours[name].dtype).eps * want.abs().max().clamp_min(1)
        bound = 3 * max((peer[name].double() - want).abs().max() for peer in peers) + 4 * rounding
        error = (ours[name].double() - want).abs().max()
        assert error <= bound, f"{name}: off by {error:.3g}, bound {bound:.3g}"


def wide_eager_mask(*, dtype, **more):
    """Eager attention takes its softmax in fp32, where the least double is -inf, which makes padded rows NaN."""
    mask = masking_utils.eager_mask(dtype=torch.float, **more)
    return None if mask is None else mask.to(dtype)


def check_deep(ours, peers, exact):
    """Of 30 layers with huge activations, where a tensor's worst entry varies tenfold between eager and SDPA: each tensor's error by its norm,
    against the least exact tensor of eager attention."""
    off = lambda results: {name: ((results[name].double() - want).norm() / want.norm()).item() for name, want in exact.items()}
    bound, errors = 3 * max(max(off(peer).values()) for peer in peers), off(ours)
    worst = max(errors, key=errors.get)
    assert errors[worst] <= bound < 1e-3, f"{worst}: off by {errors[worst]:.3g}, bound {bound:.3g}"


def compare(model, dtype, ids, check=check, peers=("eager",), **more):
    eager = copy.deepcopy(model).to(dtype)
    exact = copy.deepcopy(eager).double()
    ours = with_attention(eager, "foveate")
    result = run(ours, ids, **more)
    measures = [run(with_attention(eager, peer), ids, **more) for peer in peers]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(transformers.AttentionMaskInterface._global_mapping, "eager", wide_eager_mask)
        check(result, measures, run(exact, ids, **more))
    return result


@pytest.mark.parametrize("kind", PADDINGS)
@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_logits_and_gradients_equal_eager(name, kind):
    # Where an encoder's softmax is nearly even, its queries' gradient is a small difference of large numbers, and eager attention, which
    # keeps the weights, loses less of it than any attention that recomputes them.
    peers = ("eager", "sdpa") if name in ENCODERS else ("eager",)
    compare(eager_model(name), torch.float, tokens(), peers=peers, mask=padding(kind))


@pytest.mark.parametrize("name", ["llama", "gemma3", "gemma2", "gpt oss", "bert"])
def test_bf16_is_as_near_to_the_exact_result_as_eager(name):
    compare(eager_model(name), torch.bfloat16, tokens(), mask=padding("left"))


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral"])
def test_packed_sequences_do_not_see_each_other(name):
    ids, lengths = tokens(1), [5, 11, LENGTH - 16]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    ours = compare(eager_model(name), torch.float, ids, position_ids=positions, use_cache=False)
    model = with_attention(eager_model(name), "foveate")
    alone = torch.cat([model(part).logits for part in ids.split(lengths, 1)], 1)
    torch.testing.assert_close(ours["logits"], alone, rtol=1e-4, atol=1e-4)


def test_cu_seq_lens_keep_sequences_apart():
    ids, lengths = tokens(1), [5, 11, LENGTH - 16]
    model = with_attention(eager_model("llama"), "foveate")
    ends = torch.tensor([0, 5, 16, LENGTH], dtype=torch.int32)
    sequences = dict(cu_seq_lens_q=ends, cu_seq_lens_k=ends.clone(), max_length_q=11, max_length_k=11)
    packed = model(ids, **sequences).logits  # rotations are relative: where a sequence starts does not matter
    alone = torch.cat([model(part).logits for part in ids.split(lengths, 1)], 1)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)
    assert (model(ids).logits - alone).abs().max() > 0.1
    with pytest.raises(ValueError, match="cu_seq_lens_q and cu_seq_lens_k must come together with a batch of 1, got a batch of 2"):
        model(tokens(), **sequences)


def generated(model, kind, cache, new=12):
    ids, mask = tokens(), padding(kind)
    mask = torch.ones_like(ids) if mask is None else mask
    out = model.generate(
        ids, attention_mask=mask, max_new_tokens=new, do_sample=False, cache_implementation=cache, output_logits=True, return_dict_in_generate=True,
        disable_compile=True, no_repeat_ngram_size=1,  # models with random weights would say one word for ever
    )  # fmt: skip
    return out.sequences[:, LENGTH:], torch.stack(out.logits)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gemma2", "gpt2", "mistral", "phi3", "gpt oss", "cohere2", "llama 4"])
@pytest.mark.parametrize("kind", ["none", "left"])
def test_generate_gives_eagers_tokens_with_every_cache(name, kind, cache):
    want, logits = generated(eager_model(name), kind, cache)
    got, ours = generated(with_attention(eager_model(name), "foveate"), kind, cache)
    assert torch.equal(got, want)
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generate_continues_a_conversation(cache):
    """A second prompt behind a cache: several queries, more keys."""

    def turns(model):
        past = (
            transformers.DynamicCache(config=model.config)
            if cache == "dynamic"
            else transformers.StaticCache(config=model.config, max_cache_len=48)
        )
        first = model(tokens(1, 15), past_key_values=past, cache_position=torch.arange(15)).logits
        second = model(tokens(1, 9, seed=6), past_key_values=past, cache_position=torch.arange(15, 24)).logits
        return torch.cat([first, second], 1)

    for name in ("llama", "gemma3"):
        torch.testing.assert_close(turns(with_attention(eager_model(name), "foveate")), turns(eager_model(name)), rtol=1e-4, atol=1e-4)


def test_beams_give_eagers_tokens():
    options = dict(max_new_tokens=8, num_beams=3, do_sample=False, attention_mask=padding("left"))
    ours = with_attention(eager_model("llama"), "foveate")
    assert torch.equal(ours.generate(tokens(), **options), eager_model("llama").generate(tokens(), **options))


def train(model, steps=3):
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for step in range(steps):
        ids, mask = tokens(seed=step), padding("left")
        told = mask.roll(1, 1) * mask  # the first token of a text has nothing before it: its logits would be those of padding
        loss = model(ids, attention_mask=mask, labels=ids.masked_fill(told == 0, -100)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt oss"])
def test_training_steps_equal_eager_with_and_without_checkpointing(name):
    want = train(copy.deepcopy(eager_model(name)))
    assert want[-1] != want[0]
    for checkpointing in (False, True):
        model = with_attention(eager_model(name), "foveate")
        if checkpointing:
            model.gradient_checkpointing_enable(dict(use_reentrant=False))
        torch.testing.assert_close(train(model), want, rtol=1e-4, atol=1e-4)


def test_dropout_follows_torchs_seed_and_only_in_training():
    model = with_attention(made("Llama", dict(attention_dropout=0.3)), "foveate")
    same = with_attention(eager_model("llama"), "foveate")

    def trained(seed, checkpointing=False):
        model.train()
        (model.gradient_checkpointing_enable if checkpointing else model.gradient_checkpointing_disable)()
        torch.manual_seed(seed)
        return run(model, tokens())

    first, again, other, checkpointed = trained(1), trained(1), trained(2), trained(1, True)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[name], checkpointed[name]) for name in first)
    assert not torch.equal(first["logits"], other["logits"])
    assert torch.equal(model.eval()(tokens()).logits, same(tokens()).logits)


def test_dropout_keeps_eagers_mean():
    """One layer's attention, many draws: the mean over draws is the output without dropout."""
    module = with_attention(eager_model("llama"), "foveate").model.layers[0].self_attn
    q, k, v = (torch.randn(64, heads, 5, 8, generator=torch.Generator().manual_seed(heads)) for heads in (4, 2, 2))
    q, k, v = (t[:1].expand(4096, -1, -1, -1) for t in (q, k, v))
    torch.manual_seed(0)
    call = functools.partial(foveate.huggingface.attention_forward, module, q, k, v, None, spec=None, is_causal=True)
    plain, dropped = call()[0][0], call(dropout=0.25)[0]
    deviation = dropped.std(0) / 4096**0.5
    assert (deviation > 0).all()
    assert ((dropped.mean(0) - plain).abs() < 5 * deviation).all()


def visible(size, sinks, padded=None):
    """[B, 1, L, L] bool of a window with sinks, the first tokens that are no padding, by loops."""
    out = torch.zeros(2, 1, LENGTH, LENGTH, dtype=torch.bool)
    for b in range(2):
        first = 0 if padded is None else int(padded[b].int().argmax())
        for i in range(LENGTH):
            for j in range(i + 1):
                out[b, 0, i, j] = i - j < size or j < first + sinks
    return out if padded is None else out & padded.bool()[:, None, None]


def added(mask):
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float).min)


@pytest.mark.parametrize("kind", ["none", "left", "right"])
def test_a_window_changes_who_is_seen_exactly(kind):
    model, ids, mask = eager_model("llama"), tokens(), padding(kind)
    kept = slice(None) if mask is None else mask.bool()
    positions = torch.arange(LENGTH)[None]
    dense = model(ids, attention_mask=mask, position_ids=positions).logits[kept]
    want = model(ids, attention_mask=added(visible(5, 2, mask)), position_ids=positions).logits[kept]
    ours = with_attention(model, "foveate:window:size=5,sinks=2")(ids, attention_mask=mask, position_ids=positions).logits[kept]
    torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-4)
    assert (want - dense).abs().max() > 0.1


def test_layers_follow_their_own_specs():
    model, ids = eager_model("llama"), tokens()
    masks = {"window": added(visible(4, 0)), "dense": added(visible(LENGTH, 0))}

    def with_masks(kinds):
        other = copy.deepcopy(model)
        for layer, kind in zip(other.model.layers, kinds):
            layer.register_forward_pre_hook(lambda _, args, kwargs, kind=kind: (args, kwargs | {"attention_mask": masks[kind]}), with_kwargs=True)
        return other(ids).logits

    for spec, kinds in (("window:size=4,sinks=0@0", ("window", "dense")), ("dense@0;window:size=4,sinks=0", ("dense", "window"))):
        torch.testing.assert_close(with_attention(model, f"foveate:{spec}")(ids).logits, with_masks(kinds), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(with_masks(("window", "dense")), with_masks(("dense", "window")), atol=0.1)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("kind", ["none", "left"])
def test_a_window_generates_what_a_model_with_that_window_generates(kind, cache):
    """Mistral's own window of 7 keys is the oracle; its cache may evict, ours sees the window alone."""
    want, logits = generated(eager_model("mistral"), kind, cache)
    unlimited = copy.deepcopy(eager_model("mistral"))
    unlimited.config.sliding_window = None
    got, ours = generated(with_attention(unlimited, "foveate:window:size=7,sinks=0"), kind, cache)
    assert torch.equal(got, want)
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4)
    assert not torch.equal(generated(with_attention(unlimited, "foveate"), kind, cache)[0], want)


@pytest.mark.parametrize("name", ["gemma3", "gemma2", "gpt oss"])
def test_a_mechanism_keeps_the_models_own_terms(name):
    """Windows, soft caps and sinks under a mechanism that keeps every key."""
    ids, mask = tokens(), padding("left")
    want = eager_model(name)(ids, attention_mask=mask).logits[mask.bool()]
    ours = with_attention(eager_model(name), "foveate:dhsa:budget=64,query_block=8,chunk=4,global_tokens=4,local_tokens=4")
    torch.testing.assert_close(ours(ids, attention_mask=mask).logits[mask.bool()], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generated_tokens_of_a_block_mechanism_are_dense(cache):
    """The prompt is thinned out, what follows it is not: one step behind the same cache."""
    sparse = with_attention(eager_model("llama"), "foveate:dhsa:budget=8,query_block=4,chunk=2,global_tokens=2,local_tokens=2")
    dense, ids = with_attention(eager_model("llama"), "foveate"), tokens()

    def step(model, past):
        return model(ids[:, :1], past_key_values=past, cache_position=torch.tensor([LENGTH])).logits

    def prompt(model):
        config = dict(config=model.config)
        past = transformers.DynamicCache(**config) if cache == "dynamic" else transformers.StaticCache(**config, max_cache_len=40)
        return past, model(ids, past_key_values=past, cache_position=torch.arange(LENGTH)).logits

    (one, sparse_logits), (other, _), (_, dense_logits) = prompt(sparse), prompt(sparse), prompt(dense)
    assert (sparse_logits - dense_logits).abs().max() > 0.05
    torch.testing.assert_close(step(sparse, one), step(dense, other))


def test_a_mechanism_has_gradients_and_dropout():
    model = with_attention(made("Llama", dict(attention_dropout=0.3)), "foveate:window:size=64")
    dense = with_attention(model, "foveate")
    for training in (False, True):
        results = []
        for each in (model, dense):
            each.train(training)
            torch.manual_seed(4)
            results.append(run(each, tokens()))
        for name, want in results[1].items():
            torch.testing.assert_close(results[0][name], want)


def test_an_encoder_and_decoder_with_padding_equal_eager():
    more = dict(d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
                decoder_ffn_dim=48, dropout=0.0, decoder_start_token_id=1, forced_eos_token_id=None)  # fmt: skip
    model = made("Bart", more, transformers.AutoModelForSeq2SeqLM)
    for kind in ("none", "left", "holes"):
        options = dict(attention_mask=padding(kind), decoder_input_ids=tokens(length=9, seed=8))
        torch.testing.assert_close(with_attention(model, "foveate")(tokens(), **options).logits, model(tokens(), **options).logits, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def smollm2(cache):
    pytest.importorskip("gguf")
    path = cache / "models" / "smollm2.gguf"
    if not path.exists():
        pytest.skip(f"{path} is not there: python3 tools/fetch.py --all")
    return transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float, attn_implementation="eager").eval()


def words(length):
    ids = torch.randint(100, 40000, (2, length), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, : length // 3] = 0
    return ids, mask


def test_logits_and_gradients_of_smollm2_equal_eager(smollm2):
    ids, mask = words(24)
    compare(smollm2, torch.float, ids, check_deep, mask=mask)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_smollm2_generates_eagers_tokens(smollm2, kind):
    ids, mask = words(64)
    options = dict(max_new_tokens=8, do_sample=False, cache_implementation=kind, output_logits=True, return_dict_in_generate=True)
    ours = with_attention(smollm2, "foveate")
    want, got = (model.generate(ids, attention_mask=mask, disable_compile=True, **options) for model in (smollm2, ours))
    assert torch.equal(got.sequences, want.sequences)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits), rtol=1e-4, atol=1e-3)
