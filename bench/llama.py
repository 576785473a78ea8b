"""Prefill and decode speed of foveate and llama.cpp on one model, in turn, on this machine.

    .venv/bin/python bench/llama.py [--tokens 512 4096] [--repeats 3] [--forms "as it is" BF16 Q8_0] [--cache q8]

llama.cpp comes from the package llama-cpp-python, where it is installed for the interpreter given by --llama-python;
its best of the file as it is and of the forms it makes of it counts, with flash attention on and off.  Decode is 64
tokens, one by one, behind the prompt.  --cache q8: both keep keys and values in 8 bits (llama.cpp: Q8_0, which needs
its flash attention).
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
DECODED = 64
LLAMA = """
import ctypes, json, sys, time
import llama_cpp
path, decoded, threads, repeats, form, target, cache = sys.argv[1], *map(int, sys.argv[2:5]), *sys.argv[5:8]
in_8_bits = dict(type_k=llama_cpp.GGML_TYPE_Q8_0, type_v=llama_cpp.GGML_TYPE_Q8_0) if cache == "q8" else {}
types = {"BF16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16, "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
         "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "Q4_1": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_1}
if form in types:
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.allow_requantize = types[form], True
    assert llama_cpp.llama_model_quantize(path.encode(), target.encode(), ctypes.byref(parameters)) == 0
    path = target
for tokens in map(int, sys.argv[8:]):
    ids = [(i * 7919) % 40000 + 100 for i in range(tokens)]
    for flash in (True,) if in_8_bits else (True, False):
        model = llama_cpp.Llama(path, n_ctx=tokens + decoded, n_batch=tokens, n_ubatch=min(tokens, 512),
                                n_threads=threads, n_threads_batch=threads, flash_attn=flash, verbose=False, **in_8_bits)
        prefill, decode = [], []
        for _ in range(repeats + 1):
            model.reset()
            start = time.perf_counter()
            model.eval(ids)
            middle = time.perf_counter()
            for i in range(decoded):
                model.eval([ids[i]])
            prefill.append(tokens / (middle - start))
            decode.append(decoded / (time.perf_counter() - middle))
        print(json.dumps({"tokens": tokens, "flash": flash, "prefill": prefill[1:], "decode": decode[1:]}), flush=True)
        del model
"""


def run_foveate(arguments, more: list[str]) -> list[dict]:
    command = [ROOT / "build/release/foveate", "bench", "model", "--model", arguments.model, "--decoded", str(DECODED)]
    command += ["--repeats", str(arguments.repeats), "--threads", str(arguments.threads), "--cache", arguments.cache, "--json", *more]
    done = subprocess.run([*command, "--tokens", *map(str, arguments.tokens)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr.strip())
    return [json.loads(line) for line in done.stdout.splitlines()]


def run_llama(arguments, path: str, form: str) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        command = [arguments.llama_python, "-c", LLAMA, path, str(DECODED), str(arguments.threads)]
        command += [str(arguments.repeats), form, str(pathlib.Path(folder) / "model.gguf"), arguments.cache]
        done = subprocess.run(command + list(map(str, arguments.tokens)), capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        print(f"llama.cpp, {form}: not measured: {reason}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def show(who: str, tokens: int, what: str, speeds: list[float]) -> float:
    median = statistics.median(speeds)
    print(f"{tokens} tokens, {what}: {who}: {median:.0f} tok/s ({min(speeds):.0f} .. {max(speeds):.0f})", flush=True)
    return median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--forms", nargs="+", default=["as it is", "BF16", "Q8_0"])
    parser.add_argument("--cache", choices=["model", "q8"], default="model")
    parser.add_argument("--llama-python", default=sys.executable)
    arguments, more = parser.parse_known_args()  # the rest is for `foveate bench model`: --weights dense
    cache = pathlib.Path(os.environ.get("FOVEATE_CACHE") or pathlib.Path.home() / ".cache" / "foveate")
    path = arguments.model if os.path.exists(arguments.model) else str(cache / "models" / f"{arguments.model}.gguf")

    def measure() -> None:
        for result in run_foveate(arguments, more):
            for what in ("prefill", "decode"):
                ours.setdefault((result["tokens"], what), []).extend(result[f"{what}_tokens_per_s"])

    ours, best = {}, {}
    measure()
    for form in arguments.forms:
        for result in run_llama(arguments, path, form):
            who = f"llama.cpp, {form}, flash {'on' if result['flash'] else 'off'}"
            for what in ("prefill", "decode"):
                place = (result["tokens"], what)
                best[place] = max(best.get(place, 0.0), show(who, *place, result[what]))
    measure()
    for place, speeds in ours.items():
        median = show("foveate", *place, speeds)
        if place in best:
            print(f"  ratio to llama.cpp's best: {median / best[place]:.2f}")


if __name__ == "__main__":
    main()
