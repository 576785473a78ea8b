"""The package around the operators: loading, plans, autocast, checkpointing, compiling, pickling."""

import copy
import dataclasses
import importlib
import os
import pathlib
import pickle
import subprocess
import sys

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import foveate
from foveate import BlockPlan, Relative, Rule, RunPlan, TokenPlan

PACKAGE = pathlib.Path(foveate.__file__).parent


def problem(dtype=torch.float, queries=9, keys=13):
    make = torch.Generator().manual_seed(5)
    shapes = [(2, 4, queries, 8), (2, 2, keys, 8), (2, 2, keys, 8)]
    return [torch.randn(shape, generator=make, dtype=dtype, requires_grad=True) for shape in shapes]


def plans(queries=9, keys=13):
    blocks = -(-queries // 4)
    index = (torch.arange(blocks)[:, None] + torch.arange(2)).int()[None, None] % (keys // 4)
    count = torch.full((1, 1, blocks), 2, dtype=torch.int32)
    return {
        "rule": Rule(window_left=3, sinks=2),
        "padding": Rule(key_lengths=torch.tensor([keys, 6])),
        "blocks": BlockPlan(4, 4, count, index, rule=Rule.full()),
        "full blocks": BlockPlan(4, 4, torch.zeros_like(count), index[..., :1], count, index),
        "tokens": TokenPlan(4, index * 2),
        "runs": RunPlan(4, index[..., :1], index[..., :1] + 5, Rule.full()),
    }


def mask_of(plan, queries=9, keys=13):
    return foveate.convert.to_mask(plan, queries, keys, batch=2, heads=4)


@pytest.mark.parametrize("name", plans())
def test_attend_over_every_plan_equals_torch(name):
    q, k, v = problem()
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask_of(plans()[name]), enable_gqa=True)
    out, lse = foveate.attend(q, k, v, plans()[name])
    torch.testing.assert_close(out, wanted)
    logits = (q @ k.repeat_interleave(2, 1).mT * 8**-0.5).masked_fill(~mask_of(plans()[name]), -torch.inf)
    torch.testing.assert_close(lse, logits.logsumexp(-1))


def test_every_argument_reaches_the_operator():
    """Each argument of attend changes the result, so none is ignored."""
    q, k, v = problem()
    places = dict(queries=torch.arange(9)[None], keys=torch.arange(13)[None])
    arguments = dict(
        scale=0.1, soft_cap=0.5, bias=torch.randn(1, 4, 9, 13), sink=torch.randn(4), slopes=torch.rand(4),
        relative=Relative(torch.randn(2, 4, 9, 5), **places, sizes=[5]), leaky=0.1, dropout=0.5,
        landmarks=(torch.arange(13) % 4 == 3)[None], key_heads=torch.tensor([1, 0, 0, 1]),
    )  # fmt: skip
    plain = foveate.attend(q, k, v).out
    for name, value in arguments.items():
        assert not torch.allclose(foveate.attend(q, k, v, **{name: value}).out, plain), name
    heads = dict(key_heads=torch.tensor([0, 0, 1, 1]))
    assert torch.allclose(foveate.attend(q, k, v, **heads).out, plain)
    assert not torch.allclose(foveate.attend(q, k, v, **heads, value_heads=torch.tensor([1, 0, 0, 1])).out, plain)
    drop = lambda seed: foveate.attend(q, k, v, dropout=0.5, dropout_seed=seed).out  # noqa: E731
    assert not torch.equal(drop(1), drop(2)) and torch.equal(drop(1), drop(torch.tensor([1])))
    fields = dict(
        query_start=2, window_left=2, window_right=None, head_window=torch.tensor([1, 2, -1, 0]), key_lengths=torch.tensor([5, 13]),
        row_start=torch.full((1, 1, 9), 2), row_end=torch.full((1, 1, 9), 4), query_order=torch.tensor([[[3, 1]]]),
    )  # fmt: skip
    for name, value in fields.items():
        assert not torch.allclose(foveate.attend(q, k, v, Rule(**{name: value})).out, plain), name
    window = Rule(window_left=2)
    documents = Rule(query_documents=torch.zeros(2, 9).long(), key_documents=torch.arange(13).expand(2, 13) // 8)
    assert not torch.allclose(foveate.attend(q, k, v, documents).out, plain)
    assert not torch.allclose(foveate.attend(q, k, v, dataclasses.replace(window, sinks=2)).out, foveate.attend(q, k, v, window).out)
    assert {field.name for field in dataclasses.fields(Rule)} == {*fields, "sinks", "query_documents", "key_documents"}


def test_bad_plans_and_terms_are_named():
    q, k, v = problem()
    with pytest.raises(TypeError, match="attend: plan must be a Rule, BlockPlan, TokenPlan or RunPlan, got dict"):
        foveate.attend(q, k, v, {})
    with pytest.raises(TypeError, match="attend: relative must be a foveate.Relative, got Tensor"):
        foveate.attend(q, k, v, relative=torch.zeros(1))
    with pytest.raises(ValueError, match="rule: window_left must be 0 .. 2\\^48, got -1"):
        foveate.attend(q, k, v, Rule(window_left=-1))
    with pytest.raises(TypeError, match="unexpected keyword argument 'windw'"):
        foveate.attend(q, k, v, windw=3)
    with pytest.raises(TypeError, match="attend: dropout_seed must be an int or a tensor, got float"):
        foveate.attend(q, k, v, dropout=0.5, dropout_seed=1.5)


@pytest.mark.parametrize("value", [*plans().values(), Relative(torch.ones(1), torch.zeros(1), torch.zeros(1), [1])], ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("again", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))], ids=["copied", "pickled"])
def test_plans_are_copied_and_pickled(value, again):
    def flat(value):
        return {k: flat(v) if dataclasses.is_dataclass(v) else v for k, v in vars(value).items()}

    def equal(a, b):
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
        return torch.equal(a, b) and a is not b if isinstance(a, torch.Tensor) else a == b

    assert equal(flat(again(value)), flat(value)) and type(again(value)) is type(value)


def test_autocast_casts_as_torch_does():
    q, k, v = problem()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        out, lse = foveate.attend(q, k, v, Rule.full())
        mixed = foveate.attend(q.bfloat16(), k, v.half(), Rule.full()).out
        double = foveate.attend(q.double(), k.double(), v.double()).out
        window = foveate.Window(size=4)(q, k, v)
    assert (out.dtype, lse.dtype, mixed.dtype, double.dtype) == (wanted.dtype, torch.float, torch.bfloat16, torch.double)
    assert (window.out.dtype, window.lse.dtype) == (torch.bfloat16, torch.float)
    cast = [t.bfloat16() for t in (q, k, v)]
    assert torch.equal(out, foveate.attend(*cast, Rule.full()).out)
    gradients = torch.autograd.grad(out.float().square().sum(), (q, k, v))
    for got, wanted in zip(gradients, torch.autograd.grad(foveate.attend(*cast, Rule.full()).out.float().square().sum(), (q, k, v))):
        assert got.dtype == torch.float and torch.equal(got, wanted)


@pytest.mark.parametrize("name", ["tokens", "mechanism"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(name, reentrant):
    q, k, v = problem()

    def layer(q, k, v):
        if name == "mechanism":
            return foveate.Window(size=4)(q * 1.5, k, v).out
        return foveate.attend(q * 1.5, k, v, plans()["tokens"], dropout=0.3, dropout_seed=7).out

    wanted = torch.autograd.grad(layer(q, k, v).square().sum(), (q, k, v))
    checkpoint(layer, q, k, v, use_reentrant=reentrant).square().sum().backward()
    for t, gradient in zip((q, k, v), wanted):
        assert torch.equal(t.grad, gradient)


@pytest.mark.parametrize("name", plans())
def test_compiles_as_one_graph_with_plans_from_outside_and_inside(name):
    def loss(q, k, v, plan):
        inner = Rule(window_left=5, key_lengths=torch.full((2,), k.size(2)))
        return foveate.attend(q, k, v, plan).out.square().sum() + foveate.attend(q, k, v, inner, soft_cap=3.0).lse.sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for queries in (9, 11):
        q, k, v = problem(queries=queries, keys=queries + 4)
        plan = plans(queries, queries + 4)[name]
        wanted = torch.autograd.grad(loss(q, k, v, plan), (q, k, v))
        for got, gradient in zip(torch.autograd.grad(compiled(q, k, v, plan), (q, k, v)), wanted):
            torch.testing.assert_close(got, gradient)


@pytest.mark.parametrize("attend", [foveate.attend, foveate.Window(size=4)], ids=["attend", "mechanism"])
def test_a_seed_is_drawn_inside_of_a_compiled_graph(attend):
    """Backward drops what forward dropped, and the next call something else."""

    def loss(q, k, v):
        return attend(q, k, v, dropout=0.4, dropout_seed=torch.randint(2**62, ())).out.square().sum()

    def steps(loss):
        torch.manual_seed(6)
        return [g for _ in range(2) for g in torch.autograd.grad(loss(*tensors), tensors)]

    tensors = problem(queries=13)
    got, wanted = steps(torch.compile(loss, fullgraph=True, backend="aot_eager")), steps(loss)
    for a, b in zip(got, wanted):
        torch.testing.assert_close(a, b)
    assert not torch.allclose(got[0], got[3])


def test_every_operator_is_known_to_these_tests():
    """An operator over tensors has opcheck here, in test_operator.py, test_mechanisms.py or test_huggingface_mechanisms.py: a new one needs it too."""
    importlib.import_module("foveate.huggingface")
    names = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("foveate::")}
    texts = {"version", "list_mechanisms", "mechanism_options", "layer_specs", "learned_parts", "explain_neighborhood"}
    tensors = {"attend", "attend_backward", "mechanism", "mechanism_backward", "quantise_rows", "dequantise_rows", "model_mechanism", "model_mechanism_backward"}
    tensors |= {"halo_attend", "weigh_offsets", "weigh_offsets_backward"}  # test_halo.py, test_attender.py
    tensors |= {"neighborhood", "neighborhood_backward", "neighborhood_qk", "neighborhood_av", "merge_by_lse"}  # test_neighborhood.py
    tensors |= {"sorted_group_attention", "first_centres", "refine_centres", "nearest_centres", "sort_by_centre"}  # test_sorted_groups.py
    assert names == tensors | texts


def test_backward_passes_opcheck():
    q, k, v = (t.detach() for t in problem())
    out, lse = foveate.attend(q, k, v)
    given = (torch.ones_like(out), torch.ones_like(lse), out, lse, [False] * 4, q, k, v)
    torch.library.opcheck(torch.ops.foveate.attend_backward, given, dict(window_right=0))


def run(code, **environment):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment})


def test_import_says_in_one_sentence_what_is_missing(tmp_path, build):
    path = dict(PYTHONPATH=str(PACKAGE.parent))
    missing = run("import foveate", **path, FOVEATE_BUILD=str(tmp_path))
    assert f"ImportError: foveate: libfoveate.so must lie in {tmp_path}, found none; run" in missing.stderr
    (tmp_path / "libfoveate.so").symlink_to(build / "libfoveate.so")
    no_note = run("import foveate", **path, FOVEATE_BUILD=str(tmp_path))
    assert "libfoveate.torch must say which torch libfoveate.so was built for" in no_note.stderr
    (tmp_path / "libfoveate.torch").write_text("1.13.1\n")
    other = run("import foveate", **path, FOVEATE_BUILD=str(tmp_path))
    assert f"libfoveate.so was built for torch 1.13, got torch {torch.__version__}; run `pip install . --no-build-isolation`" in other.stderr
    without = run("import sys; sys.modules['torch'] = None; import foveate", **path)
    assert without.stderr.splitlines()[-1] == "ImportError: foveate: torch must be installed, found none; run `pip install torch`"
