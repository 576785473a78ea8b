"""foveate as an attention of transformers:

    import foveate.huggingface
    foveate.huggingface.register()
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="foveate")           # every key the model itself shows
    model.set_attn_implementation("foveate:dense@0-1;window:size=512,sinks=4")                   # a mechanism, or one for each layer
"""

import ast
import functools
import inspect
import logging
import sys
import textwrap

import torch
from torch import Tensor

try:
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
except ModuleNotFoundError as error:
    if error.name != "transformers":
        raise
    raise ImportError("foveate.huggingface: transformers >= 5.2 must be installed, found none; run `pip install transformers`") from None

from foveate.huggingface_masks import HEADER, is_packed, make_mask, rule_of_mask
from foveate.huggingface_mechanisms import NAME, know, mechanism_forward, mechanism_of, needs_causality, rotation_of
from foveate.operators import attend, draw_seed
from foveate.plans import Rule

logger = logging.getLogger(NAME)

# What models hand on to their attention without meaning to change it.
WITHOUT_EFFECT = {
    "position_ids": "rotations are done, and packed sequences are in the mask",
    "cache_position": "positions are in the mask",
    "sliding_window": "is in the mask, where there is one",
    "max_length_q": "follows from cu_seq_lens_q",
    "max_length_k": "follows from cu_seq_lens_k",
    "deterministic": "the operator always is",
    "use_cache": "concerns the cache",
    "output_hidden_states": "concerns the model's output",
    "output_router_logits": "concerns the model's output",
    "return_dict": "concerns the model's output",
    "num_items_in_batch": "concerns the loss",
}


def register(*, fallback: bool = False) -> None:
    """Makes attn_implementation="foveate" and "foveate:SPEC" known to transformers, with a mask of its own.  May be called again.

    SPEC is a mechanism, or one for each layer, as in `foveate compare --attention`: window:size=512,sinks=4 or dense@0-1,29;dhsa:budget=1024.
    Mechanisms serve causal self-attention.  A single query behind cached keys is a generated token: mechanisms of class block and prompt
    decode it densely, unless their options say decode=block.
    positions=cache must know how a model rotates; models and rope_types that it does not know raise ValueError when they run.

    fallback: what can not be mapped runs in another way, with a warning: a model whose attention transformers can not exchange runs
              eagerly, a mask whose rows are no ranges of keys is added to the logits.  Without it both raise ValueError.
    """
    AttentionMaskInterface.register(NAME, functools.partial(make_mask, fallback=fallback))
    AttentionInterface.register(NAME, functools.partial(attention_forward, spec=None))
    original = getattr(PreTrainedModel.get_correct_attn_implementation, "original", PreTrainedModel.get_correct_attn_implementation)

    # transformers asks here whether a model may use a name: the one place where "foveate:SPEC" can be made known on demand.
    @functools.wraps(original)
    def get_correct_attn_implementation(self, requested_attention, *arguments, **options):
        if isinstance(requested_attention, str) and requested_attention.partition(":")[0] == NAME:
            reason = reason_against(type(self))
            if reason and not fallback:
                raise ValueError(f"{NAME}: {reason}; use attn_implementation='eager', or register(fallback=True), which does so")
            if reason:
                logger.warning("%s: %s; it runs eagerly", NAME, reason)
                return original(self, "eager", *arguments, **options)
            add_spec(requested_attention, self.config, fallback)
        return original(self, requested_attention, *arguments, **options)

    get_correct_attn_implementation.original = original
    PreTrainedModel.get_correct_attn_implementation = get_correct_attn_implementation


def add_spec(name: str, config, fallback: bool) -> None:
    """Registers "foveate:SPEC".  Raises ValueError: the spec is not one, or names layers that the model has not."""
    _, colon, spec = name.partition(":")
    if not colon:
        return
    for layers in {getattr(part, "num_hidden_layers", None) for part in (config, config.get_text_config())} - {None}:
        know(spec, layers)
    AttentionMaskInterface.register(name, functools.partial(make_mask, fallback=fallback))
    AttentionInterface.register(name, functools.partial(attention_forward, spec=spec))


# All that the eager attentions of transformers take and ask of their module, and that is served here.
SERVED_ARGUMENTS = {"module", "query", "key", "value", "attention_mask", "scaling", "dropout", "softcap", "sliding_window", "kwargs"}
SERVED_ATTRIBUTES = {
    "num_key_value_groups", "training", "head_dim", "layer_idx", "attn_dropout", "sinks", "scale_attn_weights", "scale_attn_by_inverse_layer_idx",
}  # fmt: skip


@functools.cache
def reason_against(model_class: type) -> str | None:
    """Why the attention of a model can not be exchanged; None where it can."""
    if not model_class._can_set_attn_implementation():
        return f"{model_class.__name__} has an attention of its own that transformers can not exchange"
    eager = getattr(sys.modules[model_class.__module__], "eager_attention_forward", None)
    if eager is None:
        return None
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(eager)))
    except OSError:  # no source to read; what it passes on is still checked in every call
        return None
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "module"}
    extra = sorted(names - SERVED_ATTRIBUTES) + sorted(inspect.signature(eager).parameters.keys() - SERVED_ARGUMENTS)
    return f"the eager attention of {model_class.__name__} uses {', '.join(extra)}, which is not known" if extra else None


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    spec: str | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    **others,
) -> tuple[Tensor, None]:
    """The attention interface of transformers (AttentionInterface).

    query [B, Hq, Lq, D], key [B, Hkv, Lk, D], value [B, Hkv, Lk, Dv] -> out [B, Lq, Hq, Dv], and no weights

    attention_mask: of make_mask; or bool (True = visible) or floating point [B|1, Hq|1, Lq|1, Lk|1], which is added to the logits.  None:
                    the module's is_causal and the lengths say what is visible
    scaling:        of logits; None: 1 / sqrt(D), and what GPT-2's configuration says
    softcap, s_aux: soft cap, and a logit per head that joins the denominator alone
    cu_seq_lens_q, cu_seq_lens_k: int [n + 1] of packed sequences, of a batch of one
    A row that sees no key (a padded query) is 0.  Dropout is drawn from torch's default generator, so torch.manual_seed repeats it
    (torch.compile's inductor draws other numbers than eager torch for the same seed, here as everywhere).
    Raises ValueError: weights are asked for, an argument that is not served, a mask or lengths that are ambiguous.
    """
    check_served(module, others)
    seed = draw_seed() if dropout != 0 else None
    scale, window = scale_of(module, scaling), others.get("sliding_window")
    if spec:
        if cu_seq_lens_q is not None or cu_seq_lens_k is not None:
            raise ValueError(f"{NAME}:{spec}: sequences must be packed by position_ids, got cu_seq_lens_q")
        call = mechanism_arguments(module, spec, query, key, attention_mask, is_causal, window)
        out = mechanism_forward(query, key, value, attention_mask, s_aux, seed, *call, scale, softcap, dropout)
    else:
        rule, bias = rule_and_bias(module, query, key, attention_mask, is_causal, window)
        if cu_seq_lens_q is not None or cu_seq_lens_k is not None:
            keep_sequences(rule, query, cu_seq_lens_q, cu_seq_lens_k)
        terms = {} if seed is None else dict(dropout=dropout, dropout_seed=seed)
        out = attend(query, key, value, rule, bias=bias, scale=scale, soft_cap=softcap, sink=s_aux, **terms).out
    return out.transpose(1, 2).contiguous(), None


def check_served(module: torch.nn.Module, others: dict) -> None:
    if others.pop("output_attentions", None) or getattr(getattr(module, "config", None), "output_attentions", False):
        raise ValueError(f"{NAME}: output_attentions must be False, got True: weights are never held; use attn_implementation='eager'")
    unknown = sorted(name for name, value in others.items() if value is not None and name not in WITHOUT_EFFECT)
    if unknown:
        raise ValueError(
            f"{NAME}: {type(module).__name__} must pass known arguments, got {', '.join(unknown)}; "
            "drop them from the call, or use attn_implementation='eager'"
        )


def scale_of(module: torch.nn.Module, scaling: float | None) -> float | None:
    """None is 1 / sqrt(D).  GPT-2 passes no scaling: its eager attention reads the module."""
    if scaling is not None or not hasattr(module, "scale_attn_weights"):
        return scaling
    scale = module.head_dim**-0.5 if module.scale_attn_weights else 1.0
    return scale / (module.layer_idx + 1) if module.scale_attn_by_inverse_layer_idx else scale


def is_causal_without_mask(module: torch.nn.Module, query: Tensor, key: Tensor, is_causal: bool | None) -> bool:
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", None)
    name = type(module).__name__
    if causal is None:
        raise ValueError(f"{NAME}: without a mask {name} must say is_causal, got neither; pass a mask")
    queries, keys = query.size(2), key.size(2)
    if causal and queries not in (1, keys):
        raise ValueError(f"{NAME}: without a mask causal {name} must have one query or as many as keys, got {queries} and {keys}; pass a mask")
    return causal


def rule_and_bias(module, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool | None, window: int | None):
    """Who sees whom, and what is added to the logits."""
    queries, keys = query.size(2), key.size(2)
    if mask is None:
        if is_causal_without_mask(module, query, key, is_causal):
            return Rule(window_left=None if window is None else window - 1), None
        if window is not None and window < keys:
            raise ValueError(f"{NAME}: without a mask a window must be causal, got {window} of {keys} keys both ways; pass a mask")
        return Rule.full(), None
    if is_packed(mask, queries):
        check_causality(module, mask, is_causal, queries, keys)
        return rule_of_mask(mask, queries, keys), None
    if mask.dim() != 4 or not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise ValueError(f"{NAME}: a mask must be bool or floating point of 4 axes, got {mask.dtype} {list(mask.shape)}")
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=torch.float, device=mask.device).masked_fill_(~mask, -torch.inf)
    return Rule.full(), mask


def check_causality(module: torch.nn.Module, mask: Tensor, is_causal: bool | None, queries: int, keys: int) -> None:
    """is_causal=False as an argument of a decoder's call: eager attention ignores it, SDPA follows it where there is no padding."""
    if is_causal is not False or torch.compiler.is_compiling():
        return
    hides = mask[0, 0, HEADER : HEADER + queries, 1] < keys  # a later key from a query
    if int(mask[0, 0, 2, 0]) and bool(hides.any()):
        raise ValueError(f"{NAME}: is_causal must agree with the mask of {type(module).__name__}, got False; set config.is_causal = False instead")


def keep_sequences(rule: Rule, query: Tensor, of_queries: Tensor | None, of_keys: Tensor | None) -> None:
    """Narrows a rule to sequences packed one behind the other."""
    if of_queries is None or of_keys is None or query.size(0) != 1:
        raise ValueError(f"{NAME}: cu_seq_lens_q and cu_seq_lens_k must come together with a batch of 1, got a batch of {query.size(0)}")
    if rule.query_documents is not None:
        raise ValueError(f"{NAME}: cu_seq_lens_q must come without padding that has holes, got both")
    at = torch.arange(query.size(2), device=query.device)
    sequence = torch.searchsorted(of_queries.to(at), at, right=True) - 1
    start, end = (of_keys.to(at)[sequence + side].view(1, 1, -1) for side in (0, 1))
    rule.row_start = start if rule.row_start is None else torch.maximum(start, rule.row_start)
    rule.row_end = end if rule.row_end is None else torch.minimum(end, rule.row_end)


def mechanism_arguments(module, spec: str, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool | None, window: int | None) -> tuple:
    """What a layer's mechanism is told beside tensors and terms of the logit: spec, layer, module's name, window, rotation."""
    mechanism, name = mechanism_of(module, spec), type(module).__name__
    if mask is None:
        if not is_causal_without_mask(module, query, key, is_causal):
            raise ValueError(needs_causality(mechanism.spec, name))
    elif not is_packed(mask, query.size(2)):
        raise ValueError(
            f"{NAME}:{mechanism.spec}: a mask must be of ranges, got {mask.dtype} {list(mask.shape)}; use attn_implementation='{NAME}'"
        )
    else:
        check_causality(module, mask, is_causal, query.size(2), key.size(2))
    rotated = getattr(mechanism, "positions", None) == "cache"
    rotation = rotation_of(module.config, module.layer_idx, query.size(3)) if rotated else []
    return mechanism.spec, module.layer_idx, name, window, rotation
