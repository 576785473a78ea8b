"""Who sees whom, as data: the plans of foveate/plan/plan.h as dataclasses.  They can be pickled and copied."""

import dataclasses

from torch import Tensor


@dataclasses.dataclass(eq=False)
class Rule:
    """Visibility by arithmetic on positions; the default is causal attention over everything before.

    A query at position p sees key j iff (p - window_left <= j or j < sinks) and j <= p + window_right, and every tensor below allows it.

    query_start:     position of query 0; None: Lk - Lq (bottom-right, as FlashAttention >= 2.1)
    window_left:     >= 0, None: no limit.  A window of W keys with the query itself is W - 1
    window_right:    >= 0; 0 is causal, None sees all later keys
    sinks:           the first keys, seen in spite of window_left
    head_window:     [Hq] int64: window_left of each query head, -1 = no limit
    key_lengths:     [B] int64: keys at or behind this index are padding
    query_documents, key_documents:  [B, Lq], [B, Lk] int64: only equal ids see each other
    row_start, row_end:              [B|1, Hq|1, Lq] int64: keys in [row_start, row_end) only
    query_order:     [B|1, Hq|1, N] int64: row n of the plan is this query, -1 none; no query twice.  None: row n is query n

    >>> Rule(window_left=511, sinks=4).window_right
    0
    """

    query_start: int | None = None
    window_left: int | None = None
    window_right: int | None = 0
    sinks: int = 0
    head_window: Tensor | None = None
    key_lengths: Tensor | None = None
    query_documents: Tensor | None = None
    key_documents: Tensor | None = None
    row_start: Tensor | None = None
    row_end: Tensor | None = None
    query_order: Tensor | None = None

    @staticmethod
    def full() -> "Rule":
        """Every query sees every key."""
        return Rule(window_right=None)


@dataclasses.dataclass(eq=False)
class BlockPlan:
    """Whole blocks of keys for each block of queries, as FlexAttention and FlashAttention-4 store them.

    Head axis H in {1, Hkv, Hq}; N = ceil(rows / query_block); capacity = the longest list; entries behind the count are ignored.
    Keys of a listed block are checked by the rule; keys of a full block are seen by all rows of the query block.

    count, index:            [B|1, H, N], [B|1, H, N, capacity] int32
    full_count, full_index:  the same for full blocks
    """

    query_block: int
    key_block: int
    count: Tensor
    index: Tensor
    full_count: Tensor | None = None
    full_index: Tensor | None = None
    rule: Rule = dataclasses.field(default_factory=Rule)


@dataclasses.dataclass(eq=False)
class TokenPlan:
    """Single keys for each block of queries (query_block 1: for each query), all checked by the rule.

    index: [B|1, H, N, capacity] int32, H in {1, Hkv, Hq}, -1 = empty.  A key listed twice counts twice.
    """

    query_block: int
    index: Tensor
    rule: Rule = dataclasses.field(default_factory=Rule)


@dataclasses.dataclass(eq=False)
class RunPlan:
    """Ranges of keys for each block of queries, all checked by the rule.

    start, end: [B|1, H, N, capacity] int32, H in {1, Hkv, Hq}: keys [start, end); end <= start is empty.  A key in two ranges counts twice.
    """

    query_block: int
    start: Tensor
    end: Tensor
    rule: Rule = dataclasses.field(default_factory=Rule)


Plan = Rule | BlockPlan | TokenPlan | RunPlan


def rule_of(plan: Plan) -> Rule:
    """The rule that a plan's keys are checked by: the plan itself where it is one."""
    return plan if isinstance(plan, Rule) else plan.rule


def rule_arguments(rule: Rule) -> dict:
    """A rule as arguments of the operators."""
    return dict(
        query_start=rule.query_start,
        window_left=rule.window_left,
        window_right=rule.window_right,
        sinks=rule.sinks,
        head_window=rule.head_window,
        key_lengths=rule.key_lengths,
        query_documents=rule.query_documents,
        key_documents=rule.key_documents,
        row_start=rule.row_start,
        row_end=rule.row_end,
        query_order=rule.query_order,
    )


def plan_arguments(plan: Plan) -> dict:
    """A plan as arguments of the operators.  Raises TypeError: anything else than a plan."""
    if isinstance(plan, Rule):
        return rule_arguments(plan)
    if isinstance(plan, BlockPlan):
        lists = dict(key_block=plan.key_block, count=plan.count, index=plan.index, full_count=plan.full_count, full_index=plan.full_index)
    elif isinstance(plan, TokenPlan):
        lists = dict(index=plan.index)
    elif isinstance(plan, RunPlan):
        lists = dict(index=plan.start, run_end=plan.end)
    else:
        raise TypeError(f"attend: plan must be a Rule, BlockPlan, TokenPlan or RunPlan, got {type(plan).__name__}")
    return dict(rule_arguments(plan.rule), query_block=plan.query_block, **lists)
