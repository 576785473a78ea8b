"""Writes docs/long-context.md from what the suite of mechanisms measured, wins and losses alike.

    foveate bench attention --suite mechanisms --threads 2 --json > out/mechanisms.jsonl
    python3 bench/long_context.py out/mechanisms.jsonl > docs/long-context.md

Several files may be given: lengths can be measured one after the other.
"""

import json
import sys

HEAD = """# What mechanisms cost at length

Selection and attention of one layer: reading a prompt, and one more token, as a model's layer calls them (`State::prefill`, `State::decode`), so
that choosing keys, summaries and the cache are inside of every figure. `over` is the time of the other over the mechanism's own: 2.00x is twice as fast, 0.50x
half as fast. Dense is foveate's own, SDPA torch's in the same process (decoding with a group's heads as rows, its faster way). `density` is the share of causal pairs
looked at, `read` the share of dense's bytes read for a token, `kept mass` the share of dense attention's weight on what was looked at, on made-up data with topics
and sinks (`layer_inputs` in `foveate/eval/bench_mechanisms.h`): it says that something was selected, not how good a model is; `foveate compare` says that.
Before it is timed each mechanism is run on at most 1,000 tokens with a budget that covers everything and must equal dense attention (`check`: the relative
difference; - where no option is known to cover everything). Learned parts hold their starting values. Medians of several runs.
"""


def ratio(other: float | None, own: float) -> str:
    return "-" if not other else f"**{other / own:.2f}x**" if other > own else f"{other / own:.2f}x"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def row(case: dict) -> str:
    check = f"{case['full_budget_error']:.0e}" if "full_budget" in case else "-"
    name = f"`{case['attention']}`"
    if "error" in case:
        return f"| {name} | {check} | not timed: {case['error']} |" + " |" * 8
    cells = [
        name,
        check,
        percent(case["density"]),
        percent(case["kept_mass"]),
        f"{case['prefill_seconds'] * 1e3:,.1f}",
        ratio(case["dense_prefill_seconds"], case["prefill_seconds"]),
        ratio(case.get("sdpa_prefill_seconds"), case["prefill_seconds"]),
        f"{case['decode_seconds'] * 1e6:,.0f}",
        ratio(case["dense_decode_seconds"], case["decode_seconds"]),
        ratio(case.get("sdpa_decode_seconds"), case["decode_seconds"]),
        percent(case["decode_read"]),
    ]
    return "| " + " | ".join(cells) + " |"


def main(paths: list[str]) -> None:
    groups: dict[tuple, list[dict]] = {}
    runs = []
    for path in paths:
        with open(path, encoding="utf-8") as lines:
            machine, *cases = [json.loads(line) for line in lines]
        runs.append(machine)
        for case in cases:
            case["dtype"] = machine["dtype"]
            shape = tuple(case[key] for key in ("tokens", "heads", "kv_heads", "dim", "dtype", "threads"))
            groups.setdefault(shape, []).append(case)
    print(HEAD)
    for machine in runs:
        print(f"`{machine['command']}`, {machine['cpu']}, kernels {machine['level']}, torch {machine['torch']}, {machine['date'][:10]}\n")
    for (tokens, heads, kv_heads, dim, dtype, threads), cases in sorted(groups.items()):
        print(f"## {tokens:,} tokens, {heads}/{kv_heads} heads of {dim}, {dtype}, {threads} thread{'s' * (threads > 1)}\n")
        first = cases[0]
        dense = f"Dense: {first['dense_prefill_seconds'] * 1e3:,.1f} ms, {first['dense_decode_seconds'] * 1e6:,.0f} us a token"
        if "sdpa_prefill_seconds" in first:
            dense += f"; SDPA: {first['sdpa_prefill_seconds'] * 1e3:,.1f} ms, {first['sdpa_decode_seconds'] * 1e6:,.0f} us"
        print(dense + ".\n")
        print("| attention | check | density | kept mass | prefill ms | over dense | over SDPA | decode us | over dense | over SDPA | read |")
        print("|---|" + "---:|" * 10)
        for case in sorted(cases, key=lambda case: case.get("prefill_seconds", float("inf"))):
            print(row(case))
        print()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
