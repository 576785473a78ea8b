#!/usr/bin/env python3
"""Writes tests/io/tokenizer_goldens.h: hashes of llama.cpp's token ids for the mixed text of the tests.

Needs llama-cpp-python (its build takes minutes; only the vocabularies are loaded) and the program mixed_text_tool:

  pip install llama-cpp-python==0.3.36
  tools/make_tokenizer_goldens.py build/mixed_text_tool smollm2.gguf gemma3.gguf > tests/io/tokenizer_goldens.h
"""

import argparse
import importlib.metadata
import subprocess

from llama_cpp import Llama


def fnv1a(values, width):
    """64-bit FNV-1a over integers of `width` bytes, little endian."""
    state = 0xCBF29CE484222325
    for value in values:
        for byte in int(value).to_bytes(width, "little"):
            state = (state ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return state


def read_chunks(tool):
    data = subprocess.run([tool], check=True, capture_output=True).stdout
    chunks = []
    while data:
        head, _, data = data.partition(b"\n")
        kind, size = head.decode().split()
        chunks.append((kind, data[: int(size)]))
        data = data[int(size) + 1 :]
    return chunks


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", help="the program that writes the mixed text")
    parser.add_argument("smollm2", help="SmolLM2-135M-Instruct, GGUF")
    parser.add_argument("gemma3", help="Gemma 3 270M, GGUF")
    options = parser.parse_args()

    chunks = read_chunks(options.tool)
    models = [Llama(path, vocab_only=True, verbose=False) for path in (options.smollm2, options.gemma3)]
    version = importlib.metadata.version("llama-cpp-python")
    print("// 64-bit FNV-1a of the token ids (little-endian int32) that llama.cpp gives for the")
    print("// chunks of mixed_text().")
    print(f"// Written by tools/make_tokenizer_goldens.py with llama-cpp-python {version}.")
    print("#pragma once\n\n#include <array>\n#include <cstdint>\n\nnamespace foveate::test {\n")
    print("struct TokenizerGolden {")
    print("  uint64_t text;                              // of the bytes of the chunk")
    print("  uint64_t smollm2, smollm2_parsed;           // _parsed: special tokens in the text become ids")
    print("  uint64_t gemma3, gemma3_parsed;")
    print("};\n")
    print(f"inline constexpr std::array<TokenizerGolden, {len(chunks)}> kTokenizerGoldens = {{{{")
    for _, text in chunks:
        hashes = [fnv1a(text, 1)]
        for model in models:
            for parsed in (False, True):
                hashes.append(fnv1a(model.tokenize(text, add_bos=True, special=parsed), 4))
        print("    {" + ", ".join(f"0x{value:016x}" for value in hashes) + "},")
    print("}};\n\n}  // namespace foveate::test")


if __name__ == "__main__":
    main()
