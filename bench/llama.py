"""Prefill speed of foveate and llama.cpp on one model, in turn, on this machine.

    .venv/bin/python bench/prefill.py [--tokens 512] [--repeats 5]

llama.cpp comes from the package llama-cpp-python, where it is installed for the interpreter given by --llama-python;
its best of the file as it is and of its BF16 and Q8_0 forms counts, with flash attention on and off.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
LLAMA = """
import ctypes, json, sys, time
import llama_cpp
path, tokens, threads, repeats, form = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
types = {"BF16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16, "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0}
if form in types:
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.allow_requantize = types[form], True
    target = sys.argv[6]
    assert llama_cpp.llama_model_quantize(path.encode(), target.encode(), ctypes.byref(parameters)) == 0
    path = target
ids = [(i * 7919) % 40000 + 100 for i in range(tokens)]
for flash in (True, False):
    model = llama_cpp.Llama(path, n_ctx=tokens + 64, n_batch=tokens, n_ubatch=min(tokens, 512), n_threads=threads,
                            n_threads_batch=threads, flash_attn=flash, verbose=False)
    speeds = []
    for _ in range(repeats + 1):
        model.reset()
        start = time.perf_counter()
        model.eval(ids)
        speeds.append(tokens / (time.perf_counter() - start))
    print(json.dumps({"form": form, "flash": flash, "speeds": speeds[1:]}), flush=True)
"""


def run_foveate(model: str, tokens: int, threads: int) -> float:
    with tempfile.TemporaryDirectory() as out:
        command = [ROOT / "build/release/foveate", "compare", "--model", model, "--context", str(tokens + 64)]
        command += ["--continuation", "64", "--haystacks", "0", "--passkeys", "0", "--attention", "dense", "--json"]
        command += ["--threads", str(threads), "--out", out]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)["rows"][0]["prefill_tokens_per_s"]


def run_llama(arguments, path: str, form: str) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        command = [arguments.llama_python, "-c", LLAMA, path, str(arguments.tokens), str(arguments.threads)]
        command += [str(arguments.repeats), form, str(pathlib.Path(folder) / "model.gguf")]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        print(f"llama.cpp {form}: not measured: {reason}")
        return []
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--llama-python", default=sys.executable)
    arguments = parser.parse_args()
    cache = pathlib.Path(os.environ.get("FOVEATE_CACHE") or pathlib.Path.home() / ".cache" / "foveate")
    path = arguments.model if os.path.exists(arguments.model) else str(cache / "models" / f"{arguments.model}.gguf")

    ours = [run_foveate(arguments.model, arguments.tokens, arguments.threads) for _ in range(arguments.repeats)]
    best = 0.0
    for form in ("as it is", "BF16", "Q8_0"):
        for result in run_llama(arguments, path, form):
            median = statistics.median(result["speeds"])
            best = max(best, median)
            flash = "on" if result["flash"] else "off"
            print(f"llama.cpp, {form}, flash {flash}: {median:.0f} tok/s ({min(result['speeds']):.0f} .. {max(result['speeds']):.0f})")
    ours += [run_foveate(arguments.model, arguments.tokens, arguments.threads) for _ in range(arguments.repeats)]
    median = statistics.median(ours)
    print(f"foveate, bf16, dense: {median:.0f} tok/s ({min(ours):.0f} .. {max(ours):.0f})")
    if best:
        print(f"ratio to llama.cpp's best: {median / best:.2f}")


if __name__ == "__main__":
    main()
