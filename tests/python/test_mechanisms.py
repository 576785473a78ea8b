"""Every mechanism of the library's list as a Python callable: options, gradients, torch.compile, opcheck."""

import ast
import copy
import functools
import json
import os
import pathlib
import pickle
import subprocess
import sys

import pytest
import torch

import foveate
from foveate import Rule
from foveate.registry import CLASSES, listed_mechanisms

# A small budget, so that the mechanism leaves keys out of 96.  A mechanism that is not here fails: give it one.
SMALL = {
    "dense": "dense",
    "window": "window:size=8,sinks=2",
    "neighborhood": "neighborhood:kernel=8,dilation=3,stride=2",
    "dhsa": "dhsa:budget=32,query_block=8,chunk=4,global_tokens=4,local_tokens=4",
    "dhsa_blocks": "dhsa_blocks:density=0.5,query_block=16,key_block=16",
    "nsa": "nsa:compress=4,stride=2,block=4,blocks=5,window=6,phi=weighted",
    "duo": "duo:size=8,sinks=2,full_heads=1",
    "flux": "flux:route=cheap,cheap=(window:size=8,sinks=2)",
    "vertical_slash": "vertical_slash:vertical=8,slash=6,first_columns=2,first_distances=3,block=16",
    "flexprefill": "flexprefill:gamma=0.5,min_budget=16,block=16",
    "hisa": "hisa:topk=24,block=8,block_topk=4,heads=2,dim=16,rope_dims=8,dtype=fp32",
    "hyper": "hyper:min_seq_len=8,block_size=4,sample_size=6",
    "block_topk": "block_topk:query_block=8,block=8,blocks=3",
    "xattention": "xattention:block=8,stride=4,tau=0.5",
    "quest": "quest:page=4,budget=12,rows=each",
    "triangle": "triangle:size=8,sinks=2,last=8",
    "cca": "cca:group=4,window=8",
    "superlinear": "superlinear:num_spans=2,sw_index=2,backward_factor=1,forward_factor=0,search_power=0.5",
    "landmark": "landmark:block=4,top_k=2,chunk=8,positions=text",
}


# Where the budget covers everything; other mechanisms leave nothing out.
FULL = {
    "window": "window:size=96",
    "neighborhood": "neighborhood:kernel=96",
    "dhsa": "dhsa:budget=1024",
    "dhsa_blocks": "dhsa_blocks:density=1",
    "nsa": "nsa:blocks=100,phi=mean,gates=selected",
    "duo": "duo:full_heads=all",
    "flux": "flux:route=full",
    "vertical_slash": "vertical_slash",
    "flexprefill": "flexprefill:gamma=1,min_budget=16,block=16",
    "hisa": "hisa:topk=96,heads=2,dim=16",
    "hyper": "hyper:min_seq_len=96",
    "block_topk": "block_topk:density=1",
    "xattention": "xattention:tau=1",
    "quest": "quest:rows=each,budget=96",
    "triangle": "triangle:size=96",
    "cca": "cca:window=96",
    "superlinear": "superlinear",
    "landmark": "landmark:mode=nomem",  # else blocks count as their landmarks do
}


@pytest.fixture(autouse=True)
def fresh_graphs():
    torch.compiler.reset()  # one code object is compiled for every mechanism: more often than dynamo does by itself


def problem(dtype=torch.float, queries=96, keys=96):
    make = torch.Generator().manual_seed(21)
    shapes = [(2, 4, queries, 8), (2, 2, keys, 8), (2, 2, keys, 8)]
    return [torch.randn(shape, generator=make, dtype=dtype, requires_grad=True) for shape in shapes]


def extras(spec, q):
    """hidden and learned parts, a little off their start, for mechanisms that have such."""
    make, like = torch.Generator().manual_seed(22), dict(dtype=q.dtype)
    parts = foveate.mechanism(spec).learned_parts(width=12, heads=4, kv_heads=2, head_dim=8, value_dim=8)
    if not parts:
        return {}
    parts = {n: (t.to(q.dtype) + 0.3 * torch.randn(t.shape, generator=make, **like)).requires_grad_() for n, t in parts.items()}
    return dict(hidden=torch.randn(q.shape[0], q.shape[2], 12, generator=make, **like).requires_grad_(), learned=parts)


def with_extras(spec, given, *leaves):
    """A call of the mechanism whose hidden state and learned parts are `leaves` again."""
    hidden, *parts = leaves or (None,)
    learned = dict(zip(given.get("learned", ()), parts)) if leaves else None
    return functools.partial(foveate.mechanism(spec), hidden=hidden, learned=learned)


def leaves_of(given):
    return [given["hidden"], *given["learned"].values()] if given else []


def operator_arguments(spec, q, k, v):
    given = extras(spec, q)
    learned = given.get("learned", {})
    if given and q.requires_grad:  # what a selection alone reads has no gradient in eager mode, and zeros in a graph
        out = foveate.mechanism(spec)(q, k, v, **given).out
        for leaf, found in zip(leaves_of(given), torch.autograd.grad(out.sum(), leaves_of(given), allow_unused=True)):
            leaf.requires_grad_(found is not None)
    parts = (given.get("hidden"), list(learned), list(learned.values()))
    return (spec, 0, None, True, [], *parts, q, k, v), dict(window_right=0, scale=0.3)


def test_every_listed_mechanism_is_tried_here():
    assert set(SMALL) == set(CLASSES) == {info["name"] for info in listed_mechanisms()}


def test_a_missing_adapter_is_said():
    learning = [spec for spec in SMALL.values() if extras(spec, problem()[0])]
    assert {foveate.mechanism(spec).name for spec in learning} == {"hisa", "nsa"}
    for spec in learning:
        with pytest.raises(ValueError, match=": has learned parts, got no adapter|hidden state, got none"):
            foveate.mechanism(spec)(*problem())


@pytest.mark.parametrize("spec", [SMALL["hisa"], SMALL["nsa"], "duo:size=8,sinks=2", "superlinear:search=learned", "flux"])
def test_learned_parts_that_do_not_fit_are_named(spec):
    q, k, v = problem()
    made, given = foveate.mechanism(spec), extras(spec, q)
    learned = given["learned"]
    first = next(iter(learned))
    made(q, k, v, **given)
    for parts, message in [
        ({n: t for n, t in learned.items() if n != first}, f"{made.name}: (the adapter must have {first}, got none|has learned parts, got no adapter)"),
        (learned | {first: learned[first][..., :-1]}, rf"{made.name}: {first} must be \[.*\], got \["),
        (learned | {"another": learned[first]}, f"{made.name}: has no learned part another, got one"),
    ]:
        with pytest.raises(ValueError, match=message):
            made(q, k, v, hidden=given["hidden"], learned=parts)
    with pytest.raises(ValueError, match=r"mechanism: hidden must be \[2, 96, width\], got \[2, 95, 12\]"):
        made(q, k, v, hidden=given["hidden"][:, 1:], learned=learned)


def test_keys_in_8_bits_have_the_learned_parts_of_their_numbers():
    spec = SMALL["nsa"]
    make = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, heads, 96, 32, generator=make) for heads in (4, 2, 2))
    parts = foveate.mechanism(spec).learned_parts(width=12, heads=4, kv_heads=2, head_dim=32, value_dim=32)
    hidden = torch.randn(1, 96, 12, generator=make)
    packed = [torch.ops.foveate.quantise_rows(t) for t in (k, v)]
    call = lambda k, v: torch.ops.foveate.mechanism(spec, 0, None, True, [], hidden, list(parts), list(parts.values()), q, k, v, window_right=0)[0]  # noqa: E731
    torch.testing.assert_close(call(*packed), call(*(torch.ops.foveate.dequantise_rows(t, torch.float) for t in packed)), atol=1e-4, rtol=1e-4)


def test_the_command_line_lists_the_same(build):
    listed = subprocess.run([build / "foveate", "list", "--json"], capture_output=True, check=True).stdout
    assert json.loads(listed) == listed_mechanisms()


@pytest.mark.parametrize("spec", SMALL.values())
def test_gradients_match_finite_differences_under_a_fixed_selection(spec):
    """A selection is constant near random points, so the gradient is that of attention over the chosen keys."""
    q, k, v = (t.detach()[:1, :, :24].requires_grad_() for t in problem(torch.double))
    spec = spec.replace("budget=32", "budget=16")
    given = extras(spec, q)
    run = lambda q, k, v, *more: with_extras(spec, given, *more)(q, k, v, rule=Rule(), scale=0.5).out  # noqa: E731
    assert torch.autograd.gradcheck(run, (q, k, v, *leaves_of(given)), fast_mode=True)


@pytest.mark.parametrize("spec", SMALL.values())
def test_opcheck_forward_and_backward(spec):
    tensors = problem()
    arguments, named = operator_arguments(spec, *tensors)
    out, lse = torch.ops.foveate.mechanism(*arguments, **named)
    traced = [] if lse.isnan().any() else ["test_aot_dispatch_dynamic"]  # opcheck holds NaN, no lse, different from itself
    checks = ["test_schema", "test_autograd_registration", "test_faketensor", *traced]
    torch.library.opcheck(torch.ops.foveate.mechanism, arguments, named, test_utils=checks)
    arguments, named = operator_arguments(spec, *(t.detach() for t in tensors))
    out, lse = torch.ops.foveate.mechanism(*arguments, **named)
    sink = torch.randn(4)
    given = (torch.randn_like(out), torch.randn_like(lse), [False, True, False, False])
    torch.library.opcheck(torch.ops.foveate.mechanism_backward, (*given, *arguments), dict(named, sink=sink))


@pytest.mark.parametrize("spec", SMALL.values())
def test_compiled_is_one_graph_with_the_gradients_of_eager(spec):
    spec = FULL["landmark"] if spec.startswith("landmark") else spec  # fetched blocks know no bias
    tensors = problem()
    given = extras(spec, tensors[0])
    learned = dict(sink=torch.randn(4), bias=torch.randn(1, 4, 1, 96), slopes=torch.rand(4))
    if spec.startswith("cca"):  # a core token has no place
        learned = dict(sink=torch.randn(4), bias=torch.randn(1, 4, 96, 1))
    learned = {name: t.requires_grad_() for name, t in learned.items()}

    def loss(q, k, v, terms, *more):
        out, lse = with_extras(spec, given, *more)(q, k, v, rule=Rule(window_left=60), soft_cap=4.0, dropout=0.2, dropout_seed=3, **terms)
        return out.square().sum() + lse.sum()

    more = leaves_of(given)
    inputs = [*tensors, *learned.values(), *more]
    unused = dict(allow_unused=True, materialize_grads=True)  # a selection has no gradient
    wanted = torch.autograd.grad(loss(*tensors, learned, *more), inputs, **unused)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(*tensors, learned, *more), inputs, **unused)
    for i, (a, b) in enumerate(zip(got, wanted)):
        assert b.abs().sum() > 0 or i >= len(inputs) - len(more)
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("spec", SMALL.values())
def test_full_budget_is_dense_and_a_small_one_is_not(spec):
    q, k, v = problem()
    dense = foveate.attend(q, k, v).out
    full = FULL.get(spec.split(":")[0], spec)
    torch.testing.assert_close(foveate.mechanism(full)(q, k, v, **extras(full, q)).out, dense)
    assert spec == "dense" or not torch.allclose(foveate.mechanism(spec)(q, k, v, **extras(spec, q)).out, dense)


def test_window_equals_its_rule_and_the_models_rule_counts():
    q, k, v = problem()
    wanted = foveate.attend(q, k, v, Rule(window_left=7, sinks=2))
    got = foveate.Window(size=8, sinks=2)(q, k, v)
    assert torch.equal(got.out, wanted.out) and torch.equal(got.lse, wanted.lse)
    lengths = Rule(key_lengths=torch.tensor([96, 50]))
    wanted = foveate.attend(q, k, v, Rule(window_left=7, sinks=2, key_lengths=torch.tensor([96, 50])))
    assert torch.equal(foveate.Window(size=8, sinks=2)(q, k, v, rule=lengths).out, wanted.out)


def rotated(x, positions, base=100.0):
    angles = positions[:, None] * base ** -(torch.arange(4) / 4)
    cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
    return x * cos + torch.cat([-x[..., 4:], x[..., :4]], -1) * sin


@pytest.mark.parametrize("first", [0, 1000])
def test_window_with_positions_in_the_cache_moves_queries(first):
    """StreamingLLM: a row sees sinks and window at the places they have in the cache, here 0 .. 9.  There is no lse: NaN."""
    q, k, v = problem()
    row, slot, index = 40, torch.arange(10), torch.arange(96)
    m = foveate.Window(size=8, sinks=2, positions="cache")
    keys = rotated(k, torch.where(index < 2, index, index + first))  # the sinks are the first of the text
    out, lse = m(rotated(q, index + first), keys, v, rotary=foveate.Rotary(8, base=100.0), first_position=first)
    assert lse.isnan().all()
    kept = torch.tensor([0, 1, *range(row - 7, row + 1)])
    one = rotated(q[:, :, row : row + 1], slot[-1:])
    wanted = torch.nn.functional.scaled_dot_product_attention(one, rotated(k[:, :, kept], slot), v[:, :, kept], enable_gqa=True)
    torch.testing.assert_close(out[:, :, row : row + 1], wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="window: positions=cache needs a model with rotary embedding, got one without"):
        m(q, k, v)
    with pytest.raises(ValueError, match="rotary"):
        m(q, k, v, rotary=foveate.Rotary(3))


def test_a_prompts_end_counts():
    q, k, v = problem()
    m = foveate.mechanism(SMALL["dhsa"] + ",instruction_tokens=16")
    last, middle = m(q, k, v), m(q, k, v, ends_prompt=False)
    assert torch.equal(last.out[:, :, :80], middle.out[:, :, :80]) and not torch.allclose(last.out, middle.out)


def test_options_are_checked_by_the_library():
    for match, wrong in {
        "dhsa: budget must be >= 1, got 0": lambda: foveate.Dhsa(budget=0),
        "dhsa: budget must be >= 1, got '1.5'": lambda: foveate.Dhsa(budget=1.5),
        "global_tokens \\+ local_tokens must be <= budget": lambda: foveate.Dhsa(budget=1),
        "pooling must be avgpool_norm \\| avgpool \\| maxpool, got 'sum'": lambda: foveate.Dhsa(pooling="sum"),
        "dhsa: unknown option 'bugdet', known: query_block budget": lambda: foveate.mechanism("dhsa:bugdet=1"),
        "unknown mechanism 'dsha', known: dense window neighborhood triangle dhsa": lambda: foveate.mechanism("dsha"),
        "only one mechanism may go without '@layers'": lambda: foveate.mechanisms("dense;window", 2),
    }.items():
        with pytest.raises(ValueError, match=match):
            wrong()
    with pytest.raises(TypeError, match="unexpected keyword argument 'bugdet'"):
        foveate.Dhsa(bugdet=1)


def test_calls_are_checked():
    q, k, v = problem()
    with pytest.raises(TypeError, match="window: rule must be a foveate.Rule, got TokenPlan"):
        foveate.Window()(q, k, v, rule=foveate.TokenPlan(1, torch.zeros(1, 1, 96, 1).int()))
    with pytest.raises(ValueError, match="query heads must be a multiple of key heads"):
        foveate.Dhsa()(q[:, :3], k, v)
    lists = dict(query_block=1, index=torch.zeros(1, 1, 96, 1).int())
    with pytest.raises(ValueError, match="mechanism: the plan must be a rule, got lists"):
        torch.ops.foveate.mechanism("dense", 0, None, True, [], None, [], [], q, k, v, **lists)
    with pytest.raises(ValueError, match="mechanism: key_heads and value_heads must not be given"):
        torch.ops.foveate.mechanism("dense", 0, None, True, [], None, [], [], q, k, v, key_heads=torch.zeros(4).long())


@pytest.mark.parametrize("spec", SMALL.values())
def test_specs_pickles_and_copies_give_the_same_mechanism(spec):
    m = foveate.mechanism(spec)
    for same in (foveate.mechanism(m.spec), pickle.loads(pickle.dumps(m)), copy.deepcopy(m), copy.copy(m)):
        assert same == m and same.spec == m.spec and hash(same) == hash(m) and type(same) is type(m)
    assert type(m) is getattr(foveate, type(m).__name__) and repr(m).startswith(type(m).__name__)
    assert all(option["doc"] in type(m).__doc__ for option in type(m).options.values())
    if spec != "dense":
        assert m != type(m)()


def test_layers():
    layers = foveate.mechanisms("dense@0,3;window:size=64", 4)
    assert layers == [foveate.Dense(), foveate.Window(size=64), foveate.Window(size=64), foveate.Dense()]


MAKERS = {
    "class": lambda: foveate.Window(size=4, sinks=2),
    "spec": lambda: foveate.mechanism(SMALL["dhsa"]),
    "layers": lambda: foveate.mechanisms("dense@0;window:size=3", 2)[1],
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_mechanism_may_be_made_inside_of_a_graph(name):
    (q, k, v), make = problem(), MAKERS[name]
    loss = lambda q: make()(q, k, v).out.square().sum()  # noqa: E731
    got, wanted = (torch.autograd.grad(run(q), q)[0] for run in (torch.compile(loss, fullgraph=True, backend="aot_eager"), loss))
    torch.testing.assert_close(got, wanted)


def test_second_derivatives_are_refused_when_compiled():
    q, k, v = problem()
    compiled = torch.compile(lambda q: foveate.Window(size=4)(q, k, v).out.square().sum(), backend="eager")
    (gradient,) = torch.autograd.grad(compiled(q), q, create_graph=True)
    with pytest.raises((RuntimeError, ValueError), match="has no second derivative"):
        gradient.square().sum().backward()


def test_stubs_name_every_class_and_option(tmp_path):
    package = pathlib.Path(foveate.__file__).parents[1]
    program = package.parent / "tools" / "make_stubs.py"
    subprocess.run([sys.executable, program, tmp_path / "catalogue.pyi"], check=True, env={**os.environ, "PYTHONPATH": str(package)})
    tree = ast.parse((tmp_path / "catalogue.pyi").read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    assert set(classes) == set(foveate.catalogue.__all__)
    for name, node in classes.items():
        fields = [item.target.id for item in node.body if isinstance(item, ast.AnnAssign)]
        assert fields == list(getattr(foveate, name).options)
        assert ast.get_docstring(node) == getattr(foveate, name).__doc__
