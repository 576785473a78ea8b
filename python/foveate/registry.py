"""Every mechanism as a callable from its options.  The library lists mechanisms, options and their docs; the classes are made of that."""

import dataclasses
import json
from typing import ClassVar

import torch
from torch import Tensor

from foveate.operators import DEFAULT_RULE, Attended, Relative, score_arguments
from foveate.plans import Rule, rule_arguments

KINDS = {
    "row": "each row depends on its own past alone",
    "block": "the selection of a block of queries may use the block's later rows",
    "prompt": "the plan is fixed when the prompt ends, so rows may use later ones for their selection",
}
TYPES = {"int": int, "float": float, "bool": bool, "choice": str, "text": str}


@dataclasses.dataclass(frozen=True)
class Rotary:
    """How q and k were rotated: the first `dim` channels (even) by position * base^(-2i/dim) / factor / divisors[i].

    divisors: dim / 2 numbers > 0, or none for 1
    """

    dim: int
    base: float = 10000.0
    factor: float = 1.0
    divisors: tuple[float, ...] = ()


@torch.compiler.assume_constant_result  # a graph has no operators over text
def named_options(spec: str) -> tuple[str, ...]:
    """The name of a spec's mechanism, then key and value of every option that is not at its default.  Raises ValueError: no such spec."""
    return tuple(torch.ops.foveate.mechanism_options(spec))


@torch.compiler.assume_constant_result
def layer_specs(layered_spec: str, layers: int) -> tuple[str, ...]:
    return tuple(torch.ops.foveate.layer_specs(layered_spec, layers))


class Mechanism:
    """A way of not computing dense attention, by its options.  Instances are equal where their options are, and can be pickled."""

    name: ClassVar[str]  # as in a spec: dhsa
    kind: ClassVar[str]  # row, block or prompt
    options: ClassVar[dict[str, dict]]  # name -> type, default, range, doc
    spec: str  # the name and all options that are not at their defaults: dhsa:budget=512

    def __post_init__(self) -> None:
        options = (f"{field.name}={option_text(getattr(self, field.name))}" for field in dataclasses.fields(self))
        name, *given = named_options(self.name + ":" * bool(dataclasses.fields(self)) + ",".join(options))
        spec = name + ":" * bool(given) + ",".join(f"{key}={option_text(value)}" for key, value in zip(given[::2], given[1::2]))
        object.__setattr__(self, "spec", spec)

    def __reduce__(self):
        return type(self), tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        rule: Rule | None = None,
        scale: float | None = None,
        soft_cap: float | None = None,
        bias: Tensor | None = None,
        sink: Tensor | None = None,
        slopes: Tensor | None = None,
        relative: Relative | None = None,
        leaky: float | None = None,
        dropout: float = 0.0,
        dropout_seed: int | Tensor = 0,
        landmarks: Tensor | None = None,
        layer: int = 0,
        rotary: Rotary | None = None,
        first_position: int | None = None,
        ends_prompt: bool = True,
        hidden: Tensor | None = None,
        learned: dict[str, Tensor] | None = None,
    ) -> Attended:
        """Attends all rows of a segment at once (prefill and training): out [B, Hq, Lq, Dv], lse [B, Hq, Lq].

        q, k, v:         [B, Hq, Lq, D], [B, Hkv, Lk, D], [B, Hkv, Lk, Dv], rotated; as in `attend`
        rule:            what the model itself demands: causality, a layer's own window, padding, documents; None: causality
        scale .. landmarks: terms of the logit, as in `attend`
        layer:           index of the model's layer
        rotary:          how q and k were rotated, for mechanisms that move them; None: not known or not rotated
        first_position:  position of query 0 in the text; None: its key index
        ends_prompt:     False for the chunks of a prompt before its last
        hidden:          [B, Lq, width], what the layer's projections read of these rows, for mechanisms with learned parts
        learned:         their learned parts by name, see `learned_parts`; both have gradients

        lse is NaN where the mechanism changes logits, so that there is none.  Gradients as in `attend`; a selection has none.
        In torch.compile a mechanism is one opaque operator, whose backward runs the forward once more.
        Raises ValueError: options, shapes or a rule that the mechanism can not serve; TypeError: a rule that is none.
        """
        rule = DEFAULT_RULE if rule is None else rule
        if not isinstance(rule, Rule):
            raise TypeError(f"{self.name}: rule must be a foveate.Rule, got {type(rule).__name__}")
        terms = score_arguments(
            scale=scale, soft_cap=soft_cap, bias=bias, sink=sink, slopes=slopes, relative=relative, leaky=leaky, dropout=dropout,
            dropout_seed=dropout_seed, landmarks=landmarks,
        )  # fmt: skip
        rotation = [] if rotary is None else [float(rotary.dim), rotary.base, rotary.factor, *rotary.divisors]
        parts = (hidden, list(learned or ()), list((learned or {}).values()))
        position = (layer, first_position, ends_prompt, rotation)
        return Attended(*torch.ops.foveate.mechanism(self.spec, *position, *parts, q, k, v, **terms, **rule_arguments(rule)))

    def learned_parts(self, *, width: int, heads: int, kv_heads: int, head_dim: int, value_dim: int, seed: int = 0) -> dict[str, Tensor]:
        """What the mechanism learns in a layer of these sizes, as training begins: name -> fp32 tensor; none for most mechanisms."""
        names, parts = torch.ops.foveate.learned_parts(self.spec, [width, heads, kv_heads, head_dim, value_dim], seed)
        return dict(zip(names, parts))


def option_text(value) -> str:
    """As a spec has it: a text that would end there, such as a nested spec, stands in brackets."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"({text})" if any(c in text for c in ",;@()") else text


def option_value(option: dict, text: str):
    return text == "true" if option["type"] == "bool" else TYPES[option["type"]](text)


def listed_mechanisms() -> list[dict]:
    """What the library lists: {name, class, summary, options: [{name, type, default, range, doc}]}, as `foveate list --json`."""
    return json.loads(torch.ops.foveate.list_mechanisms())


def class_name(name: str) -> str:
    """DhsaBlocks of dhsa_blocks."""
    return "".join(word.capitalize() for word in name.split("_"))


def class_doc(info: dict) -> str:
    lines = [f"{info['summary']}.", "", f"class {info['class']}: {KINDS[info['class']]}"]
    lines += [f"{o['name']}: {o['doc']}; {o['range']}, default {o['default']}" for o in info["options"]]
    return "\n".join(lines)


def make_class(info: dict) -> type[Mechanism]:
    fields = [(o["name"], TYPES[o["type"]], option_value(o, o["default"])) for o in info["options"]]
    options = {option["name"]: option for option in info["options"]}
    namespace = {"name": info["name"], "kind": info["class"], "options": options, "__doc__": class_doc(info)}
    made = dataclasses.make_dataclass(class_name(info["name"]), fields, bases=(Mechanism,), namespace=namespace, frozen=True)
    made.__module__ = "foveate.catalogue"
    return made


CLASSES = {info["name"]: make_class(info) for info in listed_mechanisms()}


def mechanism(spec: str) -> Mechanism:
    """The mechanism of a spec: name:key=value,key=value.  Raises ValueError: unknown name or option, a value that is not legal.

    >>> mechanism("dhsa:budget=512").spec
    'dhsa:budget=512'
    >>> mechanism("window:size=64").size
    64
    """
    name, *given = named_options(spec)
    options = CLASSES[name].options
    return CLASSES[name](**{key: option_value(options[key], text) for key, text in zip(given[::2], given[1::2])})


def mechanisms(layered_spec: str, layers: int) -> list[Mechanism]:
    """One mechanism for each of `layers` layers: spec@layers;spec, e.g. dense@0-1,29;dhsa:budget=1024.

    A part without @ serves the layers that no other part names; where there is none, they are dense.
    Raises ValueError: a layer out of range or named twice, two parts without @, and what `mechanism` raises.

    >>> [m.name for m in mechanisms("dense@0;window:size=64", 3)]
    ['dense', 'window', 'window']
    """
    return [mechanism(spec) for spec in layer_specs(layered_spec, layers)]
