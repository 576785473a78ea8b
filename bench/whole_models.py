"""Writes docs/whole-models.md from what `foveate compare` measured, wins and losses alike.

    foveate compare --context 8000 --haystacks 25 --needles 4 --attention dense ... --out out/smollm2
    foveate bench model --model gemma3 --tokens 32000 --attention dense ... --json > out/gemma3.jsonl
    python3 bench/whole_models.py out/smollm2/compare.json out/gemma3.jsonl > docs/whole-models.md

A .jsonl file gives speeds alone, under its own name.
"""

import json
import pathlib
import re
import statistics
import sys

HEAD = """# What mechanisms gain and lose on whole models

Reading a prompt with all of a model, matrices included, over the same with dense attention, and what is lost. `needle first` is the share of questions whose right answer
scores above {distractors} wrong ones, teacher-forced; `kept` is that share over dense's, and beside it the paired 95 % interval of the difference in points. `nats` is the loss
on the text over dense's: rows of block and prompt mechanisms may use later tokens to choose keys, which flatters them. Decoding is the mechanism's own rule.
"""


def row(case: dict, dense: dict) -> str:
    if case["error"]:
        return f"| `{case['attention']}` | {case['error']} |" + " |" * 7
    needles = ["-"] * 3
    if (score := case["needle_score"]) is not None:
        low, high = case["needle_vs_dense_low"], case["needle_vs_dense_high"]
        needles = [
            f"{100 * score:.0f} % of {case['needle_total']}",
            f"{100 * score / dense['needle_score']:.0f} %",
            f"{100 * low:+.1f} .. {100 * high:+.1f}",
        ]
    cells = [
        f"`{case['attention']}`",
        f"{case['prefill_tokens_per_s']:,.0f}",
        f"{case['prefill_vs_dense']:.2f}x",
        f"{100 * case['density']:.1f} %",
        f"{100 * case['kept_mass']:.1f} %",
        *needles,
        f"{case['nats_vs_dense']:+.4f}",
    ]
    return "| " + " | ".join(cells) + " |"


def print_speeds(path: pathlib.Path) -> None:
    cases = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    median = lambda case, key: statistics.median(case[key])  # noqa: E731
    dense, *_ = [case for case in cases if case["attention"] == "dense"]
    specs = " ".join(f"--attention '{case['attention']}'" for case in cases)
    options = f"--tokens {dense['tokens']} --decoded {dense['decoded']} --repeats {len(dense['prefill_tokens_per_s'])}"
    print(f"## {path.stem}, {dense['tokens']:,} tokens, speed alone\n")
    print(f"`foveate bench model --model {path.stem} {options} {specs} --json`, {dense['threads']} threads\n")
    print("| attention | prefill tok/s | over dense | attention ms | over dense |")
    print("|---|---:|---:|---:|---:|")
    for case in cases:
        speed, seconds = median(case, "prefill_tokens_per_s"), median(case, "prefill_attention_seconds")
        over = speed / median(dense, "prefill_tokens_per_s"), median(dense, "prefill_attention_seconds") / seconds
        print(f"| `{case['attention']}` | {speed:,.0f} | {over[0]:.2f}x | {seconds * 1e3:,.0f} | {over[1]:.2f}x |")
    print()


def main(paths: list[pathlib.Path]) -> None:
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.suffix == ".json"]
    print(HEAD.format(distractors=runs[0]["needle_distractors"]))
    for run in runs:
        dense, *_ = [case for case in run["rows"] if case["attention"] == "dense"]
        command = re.sub(r" --out \S+", "", run["command"])
        print(f"## {run['model']['name']}, {run['context']:,} tokens\n")
        print(f"`{command}`, {run['machine']['cpu']}, {run['threads']} threads, {run['date'][:10]}\n")
        print("| attention | prefill tok/s | over dense | density | kept mass | needle first | kept | points (95 %) | nats |")
        print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
        for case in run["rows"]:
            print(row(case, dense))
        print()
    for path in paths:
        if path.suffix == ".jsonl":
            print_speeds(path)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main([pathlib.Path(path) for path in sys.argv[1:]])
