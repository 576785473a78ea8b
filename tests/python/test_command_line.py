"""The command line as a user meets it: results, their files, and one-line errors with exit status 2."""

import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def foveate(build, cache):
    if not (cache / "models" / "smollm2.gguf").exists() or not (cache / "texts" / "book.txt").exists():
        pytest.skip("smollm2 or book is not there: python3 tools/fetch.py smollm2 book")

    def run(*words, stdin=b"", code=0, **more):
        done = subprocess.run([build / "foveate", *words], input=stdin, capture_output=True, timeout=600, **more)
        assert done.returncode == code, done.stderr.decode()
        return done

    return run


ROOT = Path(__file__).parents[2]
LEVELS = {"definition", "portable", "avx2", "avx512", "avx512_bf16"}
SMALL = ["--context", "256", "--continuation", "32", "--haystacks", "0", "--passkeys", "0"]


def test_version_names_the_kernel_level(foveate):
    words = foveate("--version").stdout.decode().split()
    assert words[words.index("level") + 1].rstrip(",") in LEVELS
    forced = dict(os.environ, FOVEATE_BACKEND="portable")
    assert b"kernel level portable" in foveate("--version", env=forced).stdout
    refused = foveate("--version", env=dict(os.environ, FOVEATE_BACKEND="avx1024"), code=2).stderr.decode()
    assert refused.startswith("foveate: FOVEATE_BACKEND: this machine has no level 'avx1024'") and refused.count("\n") == 1


def test_bench_checks_and_measures(foveate):
    sizes = ["--dim", "32", "--length", "256", "--seconds", "0"]
    output = foveate("bench", "attention", "--suite", "dense", "sparse", "--json", *sizes).stdout
    machine, *cases = [json.loads(line) for line in output.splitlines()]
    assert machine["level"] in LEVELS and machine["peak_fp32_gflops"] > 0 and machine["read_gb_per_second"] > 0
    assert len(cases) == 2 * (4 + 2 * (1 + 8 + 1))  # dtypes x (dense cases and, twice, the sparse suite)
    assert all(case["seconds"] > 0 and case["gflops"] > 0 and case["of_peak"] > 0 for case in cases)
    assert any("sdpa_seconds" in case for case in cases) and any("of_reference" in case for case in cases)
    table = foveate("bench", "attention", "--forward-only", "--no-peers", "--dtype", "fp32", *sizes).stdout.decode()
    assert "of peak" in table and "causal L 256 D 32 forward fp32 1t" in table
    primitives = foveate("bench", "primitives", "--length", "256", "--seconds", "0", "--json").stdout.splitlines()
    assert {json.loads(line)["case"].split(",")[0].split(" ")[0] for line in primitives} >= {"select_top", "attention_sums", "pair_scores"}
    assert b"multiple of 64, got 100" in foveate("bench", "primitives", "--length", "100", code=2).stderr
    assert b"unknown suite 'dens'" in foveate("bench", "attention", "--suite", "dens", code=2).stderr
    assert b"length must be >= 1" in foveate("bench", "attention", "--length", "0", code=2).stderr


def test_bench_of_mechanisms_checks_times_and_writes_a_page(foveate, tmp_path):
    words = ["bench", "attention", "--suite", "mechanisms", "--repeats", "1", "--decoded", "2", "--length", "512"]
    output = foveate(*words, "--json", "--attention", "dense", "--attention", "window:size=n/16").stdout
    machine, dense, window = [json.loads(line) for line in output.splitlines()]
    assert machine["level"] in LEVELS and dense["density"] == 1 and window["attention"] == "window:size=32"
    assert 0 < window["density"] < 0.15 and window["full_budget"] == "window:size=512" and window["full_budget_error"] < 0.01
    assert all(case[key] > 0 for case in (dense, window) for key in ("prefill_seconds", "decode_seconds", "sdpa_prefill_seconds"))
    (tmp_path / "cases").write_bytes(output)
    page = subprocess.run([sys.executable, ROOT / "bench" / "long_context.py", tmp_path / "cases"], capture_output=True, check=True).stdout.decode()
    assert "## 512 tokens, 9/3 heads of 64, bf16, 1 thread\n" in page and page.count("| `window:size=32` |") == 1
    failed = foveate(*words, "6128", "--no-peers", "--attention", "dhsa:budget=n/16", code=2).stderr.decode()
    assert "not timed: dhsa:budget=32, 512 tokens" in failed and "1 of the cases" in failed
    for more in (["--dim", "64"], ["--suite", "dense"], ["--dtype", "bf16", "fp32"]):
        assert b"mechanisms" in foveate(*words, *more, code=2).stderr
    assert b"needs --suite mechanisms" in foveate("bench", "attention", "--repeats", "1", code=2).stderr


def test_compare_sweeps_maps_and_ruler(foveate, tmp_path):
    words = ["compare", "--json", "--out", tmp_path, *SMALL, "--sweep", "window:size=32..64", "--sweep", "dhsa:budget=400,512"]
    rows = json.loads(foveate(*words).stdout)["rows"]
    assert [row["attention"] for row in rows] == ["dense", "window:size=32", "window:size=64", "dhsa:budget=400", "dhsa:budget=512"]
    assert rows[2]["sweep"] == "window:size=32..64" and rows[2]["sweep_value"] == "64" and len(rows[2]["kept_mass_by_layer"]) == 30
    assert b"foveate: dhsa: " in foveate(*words, "--sweep", "dhsa:budget=8,512", code=2).stderr  # before anything runs
    assert (tmp_path / "compare.html").read_text().count("The frontier") == 3
    words = ["compare", "--json", "--out", tmp_path, *SMALL, "--attention", "window:size=32"]
    maps = json.loads(foveate(*words, "--heat-map", "--heat-lengths", "256,400", "--heat-depths", "2", "--heat-prompts", "1").stdout)
    assert maps["heat_map"] == {"lengths": [256, 400], "depth_percent": [0, 100], "prompts": 1}
    assert [len(row["needle_heat"]) for row in maps["rows"]] == [2, 2] and maps["rows"][0]["passkey_heat"][0][1] == 1
    ruler = json.loads(foveate(*words, "--ruler", "niah_single_1,vt", "--ruler-lengths", "768", "--ruler-samples", "1").stdout)["rows"][0]["ruler"]
    assert [(cell["task"], cell["length"]) for cell in ruler] == [("niah_single_1", 768), ("vt", 768)]
    assert all(0 <= cell[key] <= 1 for cell in ruler for key in ("score", "ranked_first"))
    assert b"unknown task 'qa_1'" in foveate(*words, "--ruler", "qa_1", code=2).stderr
    assert b"need --heat-map" in foveate(*words, "--heat-depths", "3", code=2).stderr
    assert b"need --ruler" in foveate(*words, "--ruler-samples", "3", code=2).stderr
    assert b"ascending numbers" in foveate("compare", "--sweep", "dhsa:budget=9..3", code=2).stderr


def test_a_sweep_whose_values_fail_is_still_a_sweep(foveate, tmp_path):
    words = ["compare", "--json", "--out", tmp_path, *SMALL, "--sweep", "duo:full_heads=0,99,size=64"]
    done = foveate(*words, code=2)
    rows = json.loads(done.stdout)["rows"]
    assert [(row["sweep_value"], bool(row.get("error"))) for row in rows if row.get("sweep")] == [("0", False), ("99", True)]
    assert "key heads 0 .. 2, got 99" in rows[2]["error"] and b"got 99" in done.stderr


def test_heat_maps_of_short_contexts_have_lengths_of_their_own(foveate, tmp_path):
    words = ["compare", "--json", "--out", tmp_path, *SMALL[2:], "--context", "300", "--heat-map", "--heat-depths", "1",
             "--heat-prompts", "1", "--attention", "dense"]  # fmt: skip
    lengths = json.loads(foveate(*words).stdout)["heat_map"]["lengths"]
    assert len(lengths) == 6 and lengths[0] == 256 and lengths[-1] == 300


def test_patterns_are_found_and_read_back(foveate, tmp_path):
    lines, gates = tmp_path / "lines.json", tmp_path / "gates.tsv"
    text = ["--context", "256"]
    said = foveate("find-patterns", *text, "--density", "0.8", "-o", lines).stderr.decode()
    assert f"vertical_slash:heads={lines}" in said
    layers = json.loads(lines.read_text())
    assert len(layers) == 30 and all(len(layer) == 9 and layer["0"][0] == "vertical_and_slash" for layer in layers)
    said = foveate("find-patterns", *text, "--for", "duo", "--size", "32", "--sinks", "4", "-o", gates).stderr.decode()
    assert f"--attention duo:pattern={gates},size=32,sinks=4\n" in said
    rows = [[float(word) for word in line.split("\t")] for line in gates.read_text().splitlines()]
    assert len(rows) == 30 and all(len(row) == 3 and all(0 <= gate < 1 for gate in row) for row in rows)
    assert len({gate for row in rows for gate in row}) > 60
    score = ["score", "--context", "256", "--stride", "256", "-"]
    note = ("The old town was quiet in the rain. " * 30).encode()
    losses = {
        spec: json.loads(foveate(*score, "--attention", spec, stdin=note).stdout.splitlines()[-1])["mean_nats"]
        for spec in ("dense", f"vertical_slash:heads={lines}", f"duo:pattern={gates},size=32,sinks=4,sparsity=0.5")
    }
    assert len(set(losses.values())) == 3
    assert b"density must be in (0, 1], got 2" in foveate("find-patterns", *text, "--density", "2", "-o", lines, code=2).stderr
    assert b"--out" in foveate("find-patterns", code=2).stderr
    for mechanism, option, value in (("duo", "--by", "kept_mass"), ("duo", "--density", "0.5"), ("vertical_slash", "--size", "9"), ("vertical_slash", "--sinks", "9")):
        refused = foveate("find-patterns", *text, "--for", mechanism, option, value, "-o", lines, code=2).stderr.decode()
        assert f"find-patterns: {option} must come with --for " in refused and refused.count("\n") == 1


def test_explain_says_what_ran(foveate):
    spoken = foveate("run", "--raw", "--max-tokens", "2", "--explain", "one two three").stderr.decode()
    assert "forward" in spoken and "calls" in spoken


@pytest.mark.parametrize("command", ["compare", "run", "score", "tokenize", "list", "bench", "find-patterns"])
def test_help_shows_examples(foveate, command):
    assert b"Examples:" in foveate(command, "--help").stdout


def test_list_shows_every_option(foveate):
    infos = {info["name"]: info for info in json.loads(foveate("list", "--json").stdout)}
    readme = (pathlib.Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (row|block|prompt) \|", readme, re.MULTILINE))
    assert rows == {name: info["class"] for name, info in infos.items()}
    assert infos["dhsa"]["class"] == "block"
    budget = next(o for o in infos["dhsa"]["options"] if o["name"] == "budget")
    assert budget["default"] == "1024" and budget["range"] == ">= 1" and budget["doc"]
    assert b"query_block" in foveate("list", "dhsa").stdout
    assert infos["dhsa_blocks"]["class"] == "prompt"
    shown = foveate("list", "dhsa_blocks").stdout
    for word in (b"decode dense", b"density", b"topk | a | vs | vsb", b"vertical_slash_ratio", b"own_blocks"):
        assert word in shown


def test_tokenize_and_back(foveate):
    text = "Hello, wörld! 12\n\n  ok".encode()
    ids = foveate("tokenize", "-", stdin=text).stdout
    assert all(isinstance(i, int) for i in json.loads(ids))
    assert foveate("tokenize", "--decode", "-", stdin=ids).stdout == text


def test_score_writes_a_line_per_token_and_a_sum(foveate):
    lines = foveate("score", "-", stdin=b"In the beginning God created the heaven and the earth.").stdout.splitlines()
    tokens, last = [json.loads(line) for line in lines[:-1]], json.loads(lines[-1])
    assert tokens[0]["logprob"] is None and all(t["logprob"] < 0 for t in tokens[1:])
    assert "".join(t["text"] for t in tokens).startswith("In the beginning")
    mean = -sum(t["logprob"] for t in tokens[1:]) / (len(tokens) - 1)
    assert last["tokens"] == len(tokens) - 1 and abs(last["mean_nats"] - mean) < 1e-4
    assert last["perplexity"] == pytest.approx(math.exp(mean), rel=1e-4)


def test_score_windows_score_every_token_once(foveate):
    text = b"The quick brown fox jumps over the lazy dog. " * 20
    lines = foveate("score", "--context", "64", "--stride", "32", "-", stdin=text).stdout.splitlines()
    ids = json.loads(foveate("tokenize", "-", stdin=text).stdout)
    assert [json.loads(line)["token"] for line in lines[:-1]] == ids


def test_streaming_scores_what_windows_score(foveate):
    text = b"The quick brown fox jumps over the lazy dog. " * 12
    windows, stream = (json.loads(foveate("score", *more, "-", stdin=text).stdout.splitlines()[-1]) for more in ([], ["--streaming"]))
    assert stream["tokens"] == windows["tokens"] and abs(stream["mean_nats"] - windows["mean_nats"]) < 0.02
    assert windows["bits_per_byte"] == pytest.approx(windows["mean_nats"] * windows["tokens"] / math.log(2) / (len(text) - 3), rel=0.02)
    bounded = json.loads(foveate("score", "--streaming", "--attention", "window:size=16,positions=cache", "-", stdin=text).stdout.splitlines()[-1])
    assert bounded["mean_nats"] > stream["mean_nats"]
    assert b"leave --context" in foveate("score", "--streaming", "--context", "64", "-", stdin=text, code=2).stderr


def test_run_is_reproducible_and_stops(foveate):
    words = ["run", "--temperature", "0.9", "--top-p", "0.9", "-n", "24", "Name a colour."]
    first, again = foveate(*words, "--seed", "5").stdout, foveate(*words, "--seed", "5").stdout
    assert first == again and first != foveate(*words, "--seed", "6").stdout
    assert foveate("run", "--raw", "-n", "8", "--stop", ",", "One, two").stdout.count(b",") == 0
    window = foveate("run", "--attention", "window:size=64", "-n", "8", "Say hello.").stdout
    assert window.strip()


def test_chat_remembers(foveate):
    question = "Which language do people speak there?"
    done = foveate("run", "--chat", "-n", "40", stdin=f"What is the capital of France?\n{question}\n".encode())
    assert b"French" in done.stdout.splitlines()[-1]
    assert b"French" not in foveate("run", "-n", "40", question).stdout


def test_a_session_goes_on_from_its_file(foveate, tmp_path):
    path, plain = tmp_path / "session", ["run", "--raw", "-n", "6"]
    words = [*plain, "--attention", "window:size=64"]
    story = "Once upon a time there was a king who had three daughters. The eldest"
    wanted = foveate(*words, story).stdout
    assert foveate(*words, "--session", path, story).stdout == wanted and path.stat().st_size > 100_000
    kept = path.read_bytes()
    assert foveate(*words, "--session", path, story).stdout == wanted
    assert foveate(*words, "--session", path, story + " daughter").stdout == foveate(*words, story + " daughter").stdout
    path.write_bytes(kept)
    for changed, option in (([*plain, "--attention", "dense"], "attention"), ([*words, "--cache", "q8"], "cache"), ([*words, "--dtype", "fp32"], "dtype")):
        refused = foveate(*changed, "--session", path, story, code=2).stderr.decode()
        assert f"choose the same --{option}" in refused and refused.count("\n") == 1
    locked = tmp_path / "a file"
    locked.write_bytes(b"")
    assert b"output folder" in foveate(*words, "--session", locked / "session", story, code=2).stderr
    path.write_bytes(kept[:-1])
    assert str(path).encode() in foveate(*words, "--session", path, story, code=2).stderr


def test_a_cache_in_8_bits_halves_memory_and_keeps_the_loss(foveate, tmp_path):
    def row(*more):
        words = ["compare", "--attention", "dense", "--json", "--out", tmp_path, *SMALL, *more]
        return json.loads(foveate(*words).stdout)["rows"][0]

    own, small = row(), row("--cache", "q8")
    assert "q8 cache" in json.loads((tmp_path / "compare.json").read_text())["model"]["dtype"]
    assert small["kv_bytes"] < 0.55 * own["kv_bytes"] and own["nats_vs_dense"] == 0
    assert 0 < small["kl_vs_dense"] < 0.01 and small["top1_agreement"] > 0.95  # measured: 0.003, 0.99
    text = b"The quick brown fox jumps over the lazy dog. " * 4  # 40 tokens: single ones move by a tenth of a nat
    own, small = (json.loads(foveate("score", *more, "-", stdin=text).stdout.splitlines()[-1]) for more in ([], ["--cache", "q8"]))
    assert 0 < abs(small["mean_nats"] - own["mean_nats"]) < 0.05
    assert b"--cache" in foveate("run", "--cache", "q4", "hello", code=2).stderr


def test_bench_model_measures_prefill_decode_and_attention(foveate):
    words = ["bench", "model", "--tokens", "32", "64", "--decoded", "4", "--repeats", "2", "--attention", "dense", "--attention", "window:size=16"]
    rows = [json.loads(line) for line in foveate(*words, "--json").stdout.splitlines()]
    assert [(row["attention"], row["tokens"]) for row in rows] == [(a, n) for a in ("dense", "window:size=16") for n in (32, 64)]
    for row in rows:
        assert len(row["prefill_tokens_per_s"]) == len(row["decode_tokens_per_s"]) == 2 and min(row["decode_tokens_per_s"]) > 0
        assert 0 < max(row["prefill_attention_seconds"]) < row["tokens"] / min(row["prefill_tokens_per_s"])
    assert "attention ms" in foveate(*words).stdout.decode()
    assert b"tokens must be >= 1, got 0" in foveate("bench", "model", "--tokens", "0", code=2).stderr


def test_compare_writes_what_it_promises(foveate, tmp_path):
    specs = ["dense", "window:size=64,sinks=4", "dhsa:query_block=32,budget=96,global_tokens=8,local_tokens=8"]
    words = ["compare", "--context", "512", "--continuation", "64", "--haystacks", "5", "--needles", "5", "--passkeys", "1"]
    done = foveate(*words, *[w for s in specs for w in ("--attention", s)], "--out", str(tmp_path))
    report = json.loads((tmp_path / "compare.json").read_text())
    for key in ("machine", "versions", "level", "model", "text", "context", "seed", "rows"):
        assert report[key] not in (None, ""), key
    assert [row["attention"] for row in report["rows"]] == specs
    for row in report["rows"]:
        for key in ("prefill_tokens_per_s", "decode_tokens_per_s", "kv_bytes", "kv_bytes_read_per_token", "peak_bytes",
                    "density", "perplexity", "nats_vs_dense", "top1_agreement", "kl_vs_dense", "needle_score", "needle_total"):
            assert isinstance(row[key], (int, float)), key
        assert row["needle_total"] == 25
    dense, window, dhsa = report["rows"]
    assert dense["density"] == pytest.approx(1) and dense["nats_vs_dense"] == 0 and dense["top1_agreement"] == 1
    prompt = 512 - 64  # rows see their window, and the sinks when those lie before it
    visited = sum(min(p + 1, 64) + max(0, min(4, p + 1 - 64)) for p in range(prompt))
    assert window["density"] == pytest.approx(visited / (prompt * (prompt + 1) / 2), rel=1e-9)
    assert 0 < dhsa["density"] < 0.6 and 0 < dhsa["kept_mass"] < 1
    assert window["kv_bytes_read_per_token"] < dense["kv_bytes_read_per_token"]
    html = (tmp_path / "compare.html").read_text()
    assert "http://" not in html.replace("http://www.w3.org", "") and "https://" not in html
    assert b"dense" in done.stdout


def test_full_budget_agrees_with_dense(foveate, tmp_path):
    foveate("compare", *SMALL, "--dtype", "fp32", "--attention", "dense", "--attention", "window:size=256", "--attention",
            "dhsa:budget=400", "--attention", "dhsa_blocks:density=1", "--out", str(tmp_path))
    for row in json.loads((tmp_path / "compare.json").read_text())["rows"]:
        assert row["top1_agreement"] == 1 and abs(row["nats_vs_dense"]) < 1e-5 and row["kl_vs_dense"] < 1e-6
        assert row["density"] == pytest.approx(1)


def test_layers_can_differ(foveate, tmp_path):
    foveate("compare", *SMALL, "--attention", "dense@0-9;window:size=32", "--out", str(tmp_path))
    row = json.loads((tmp_path / "compare.json").read_text())["rows"][0]
    assert 0.3 < row["density"] < 0.9 and row["nats_vs_dense"] is not None


def test_an_interrupted_comparison_keeps_what_is_finished(foveate, build, tmp_path):
    words = ["compare", *SMALL, "--attention", "dense", *["--attention", "window:size=32"] * 200, "--out", str(tmp_path)]
    running = subprocess.Popen([build / "foveate", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    for _ in range(600):
        if (tmp_path / "compare.json").exists():
            break
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    report = json.loads((tmp_path / "compare.json").read_text())
    assert running.returncode == 130 and b"interrupted" in errors
    assert report["complete"] is False and report["rows"][0]["attention"] == "dense"


BAD = [
    (["compare", "--attention", "dnse"], "unknown mechanism 'dnse', known: dense window neighborhood triangle dhsa"),
    (["compare", "--attention", "dhsa:bugdet=1"], "unknown option 'bugdet', known: query_block budget"),
    (["compare", "--attention", "window:size=0"], "size must be >= 1, got 0"),
    (["compare", "--attention", "dense@30"], "layer must be < 30"),
    (["compare", "--context", "9000"], "9000 tokens exceed the model's 8192; --force goes on"),
    (["compare", "--context", "8"], "context must be >= 64, got 8"),
    (["compare", "--model", "nothing"], "no fetched model 'nothing'"),
    (["compare", "--text", "nothing"], "no fetched text 'nothing'"),
    (["compare", "--text", "TINY"], "the text must have at least 4096 tokens"),
    (["compare", "--model", "TINY"], "not a GGUF file"),
    (["compare", "--out", "TINY"], "must be a folder"),
    (["run", ""], "prompt"),
    (["run", "--temperature", "-1", "hi"], "temperature must be >= 0, got -1"),
    (["run", "--top-p", "2", "hi"], "top_p must be in (0, 1], got 2"),
    (["run", "--chat", "--raw"], "--chat needs"),
    (["run", "-n", "9000", "hi"], "exceed the model's 8192"),
    (["score", "missing.txt"], "missing.txt"),
    (["score", "EMPTY"], "at least 2 tokens"),
    (["score", "--context", "1", "TINY"], "window must be >= 2, got 1"),
    (["tokenize", "--decode", "TINY"], "a JSON array of token ids is needed"),
    (["list", "nothing"], "unknown mechanism 'nothing'"),
    (["compare", "--needels", "3"], "needels"),
    ([], "subcommand"),
]


@pytest.mark.parametrize("words,message", BAD, ids=[" ".join(words) or "nothing" for words, _ in BAD])
def test_bad_input_is_one_line_and_status_2(foveate, tmp_path, words, message):
    (tmp_path / "tiny.txt").write_text("only a few words")
    (tmp_path / "empty.txt").write_text("")
    words = [{"TINY": str(tmp_path / "tiny.txt"), "EMPTY": str(tmp_path / "empty.txt")}.get(w, w) for w in words]
    if words and words[0] == "compare" and "--out" not in words:
        words += ["--out", str(tmp_path / "out")]
    done = foveate(*words, code=2)
    lines = done.stderr.decode().strip().splitlines()
    assert len(lines) == 1 and message in lines[0], done.stderr.decode()
    assert done.stdout == b""


def test_an_unknown_backend_is_named(foveate):
    done = foveate("compare", *SMALL, code=2, env={**os.environ, "FOVEATE_BACKEND": "avx9000"})
    assert b"no level 'avx9000', it has: definition portable" in done.stderr


TINY_RECALL = "--length 33 --pairs 2 --gap 8 --keys 4 --values 4 --batch 4 --width 16 --heads 2 --kv-heads 1 --feed-forward 16 --score-batches 1".split()


def test_training_reports_in_json_lines_and_goes_on_where_it_stopped(foveate, build, tmp_path):
    words = ["train", "recall", *TINY_RECALL, "--attention", "nsa:compress=4,stride=2,block=4,blocks=4,window=8", "--steps", "8", "--json"]
    done = foveate(*words, "--log-every", "3", "--checkpoint", tmp_path / "made" / "whole", "--chart", tmp_path / "chart.html")
    chart = (tmp_path / "chart.html").read_text()
    assert "After 8 steps" in chart and chart.count("<figure>") == 5 and "--pairs 2" in chart
    *steps, before, trained, untrained = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.stderr == b"" and [line["step"] for line in steps] == [3, 6, 8]
    assert all(line["loss"] > 0 and line["lr"] > 0 and line["tokens_per_s"] > 0 and 0 <= line["accuracy"] <= 1 for line in steps)
    assert [line["scored"] for line in (before, trained, untrained)] == ["before training", "trained", "untrained parts"]
    assert trained["loss"] != before["loss"] and 0 < trained["found"] < 1
    saved = ["--checkpoint", tmp_path / "state"]
    longer = [build / "foveate", *words, "--log-every", "3"]
    longer[longer.index("--steps") + 1] = "100000"
    running = subprocess.Popen([*longer, *saved], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert json.loads(running.stdout.readline())["step"] == 3
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 130 and (tmp_path / "state").exists()
    costly = [*words]
    costly[costly.index("--score-batches") + 1] = "1000000"  # minutes: refused before anything is scored
    refused = foveate(*costly, *saved, "--resume", code=2).stderr.decode()
    assert "state: steps must be '8' as in this run, got '100000'; resume with" in refused and refused.count("\n") == 1
    foveate(*words, *saved)
    again = foveate(*words, *saved, "--resume").stdout.splitlines()  # nothing is left to do
    assert [json.loads(line) for line in again] == [before, trained, untrained] and (tmp_path / "state").read_bytes() == (tmp_path / "made" / "whole").read_bytes()


def test_training_refuses_in_one_line(foveate, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for words, message in {
        ("--resume",): "train: --resume needs --checkpoint FILE, got none",
        ("--resume", "--checkpoint", str(tmp_path / "none")): str(tmp_path / "none"),
        ("--save-every", "3"): "train: --save-every needs --checkpoint FILE, got none",
        ("--steps", "0"): "--steps: must be >= 1, got 0",
        ("--pairs", "9", "--keys", "8"): "recall: pairs must be <= keys, got 9 and 8",
        ("--gap", str(2**63 - 1)): f"--gap: must be 0 .. 1048576, got {2**63 - 1}",
        ("--pairs", str(2**62), "--keys", str(2**62)): f"--pairs: must be 1 .. 1048576, got {2**62}",
        ("--attention", "nsa:block=7"): "nsa: ",
        ("--checkpoint", str(tmp_path / "file" / "x")): "output folder: must be ",
        ("--chart", str(tmp_path / "file" / "x")): "output folder: must be ",
        ("-o", str(tmp_path / "x")): "-o",
    }.items():
        refused = foveate("train", "recall", *words, code=2).stderr.decode()
        assert refused.startswith("foveate: ") and message in refused and refused.count("\n") == 1


def test_training_of_flux_says_what_it_can(foveate):
    words = ["train", "recall", *TINY_RECALL, "--steps", "2", "--attention"]
    routed = "flux:full=(nsa:compress=4,stride=2,block=4,blocks=4,window=8),cheap=(window:size=4,sinks=0),pool_size=6"
    for attention, names in {
        "flux:route=full": ["before training", "trained"],
        routed: ["before training", "trained", "untrained parts", "shuffled routes"],
    }.items():
        rows = [json.loads(line) for line in foveate(*words, attention, "--json").stdout.splitlines()[1:]]
        assert [row["scored"] for row in rows] == names
        assert all("found" not in row and "near_full" not in row and ("far_full" in row) == (attention == routed) for row in rows)
        assert b"nan" not in foveate(*words, attention).stdout
    assert "near_full" in json.loads(foveate(*words, routed, "--near", "0.5", "--json").stdout.splitlines()[-1])


def test_training_of_layers_makes_an_adapter(foveate, tmp_path):
    note, other = tmp_path / "note.txt", tmp_path / "other.txt"
    note.write_text("The old town was quiet in the rain, and nobody went out. " * 40)
    other.write_text("The new town was loud in the sun, and everybody was out. " * 40)
    spec = "hisa:heads=2,dim=16,topk=16,block=8,block_topk=4@4,20;dense"
    words = ["train", "indexer", "--length", "64", "--held-out", "2", "--steps", "2", "--log-every", "1", "--json", "--attention", spec]
    saved = ["--checkpoint", tmp_path / "state"]
    lines = [json.loads(line) for line in foveate(*words, *saved, "--text", note, "-o", tmp_path / "hisa").stdout.splitlines()]
    assert [set(line) for line in lines[:2]] == [{"step", "loss", "lr", "gradient_norm", "tokens_per_s"}] * 2
    before, trained = lines[2:]
    assert [line["scored"] for line in (before, trained)] == ["before training", "trained"]
    for line in (before, trained):
        assert set(line) == {"scored", "loss", "kept_mass", "kept_mass_by_layer"} and len(line["kept_mass_by_layer"]) == 2
        assert line["kept_mass"] == pytest.approx(sum(line["kept_mass_by_layer"]) / 2) and 0 < line["kept_mass"] < 1
    assert trained["loss"] != before["loss"]
    score = ["score", "--context", "256", "--stride", "256", note, "--attention"]
    losses = [json.loads(foveate(*score, *more).stdout.splitlines()[-1])["mean_nats"] for more in (["dense"], [spec, "--adapter", tmp_path / "hisa"])]
    assert losses[0] != losses[1]
    refused = foveate(*words, *saved, "--text", other, "--resume", code=2).stderr.decode()
    assert "state: text must be '" in refused and "; resume with the options" in refused and refused.count("\n") == 1
    again = foveate(*words, *saved, "--text", note, "--resume").stdout.splitlines()  # nothing is left to do
    assert [json.loads(line) for line in again] == [before, trained]
