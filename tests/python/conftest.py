"""Loads the library once; keeps torch away from instructions that this machine advertises but cannot run."""

import os
import pathlib
import struct
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("FOVEATE_BUILD", ROOT / "build" / "release"))

# Some virtual machines announce AMX and then fault on it inside oneDNN's bf16 products.
PROBE = "import torch; torch.nn.functional.linear(torch.ones(64, 64).bfloat16(), torch.ones(64, 64).bfloat16())"
if "ONEDNN_MAX_CPU_ISA" not in os.environ and subprocess.run([sys.executable, "-c", PROBE]).returncode < 0:
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_BF16"

os.environ["FOVEATE_BUILD"] = str(BUILD)
sys.path.insert(0, str(ROOT / "python"))
import foveate  # noqa: E402, F401  (loads the library)


@pytest.fixture(scope="session")
def build() -> pathlib.Path:
    return BUILD


@pytest.fixture(scope="session")
def cache() -> pathlib.Path:
    return pathlib.Path(os.environ.get("FOVEATE_CACHE") or pathlib.Path.home() / ".cache" / "foveate")


@pytest.fixture(scope="session")
def discs(tmp_path_factory) -> pathlib.Path:
    """A folder with MNIST's files: 12 images of 28 x 28 a part, discs of several sizes, of class i % 10."""
    folder = tmp_path_factory.mktemp("discs")
    places = [(y - 14) ** 2 + (x - 14) ** 2 for y in range(28) for x in range(28)]
    images = b"".join(bytes(255 * (place < (4 + i) ** 2) for place in places) for i in range(12))
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, 12, 28, 28) + images)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, 12) + bytes(i % 10 for i in range(12)))
    return folder


@pytest.fixture(scope="session")
def texts(build) -> dict[str, str]:
    """The mixed text of the tokenizer tests, by kind."""
    data = subprocess.run([build / "tests" / "mixed_text_tool"], capture_output=True, check=True).stdout
    found = {}
    while data:
        head, data = data.split(b"\n", 1)
        kind, size = head.split()
        found[kind.decode()] = found.get(kind.decode(), "") + data[: int(size)].decode()
        data = data[int(size) + 1 :]
    return found


@pytest.fixture(scope="session")
def command(build):
    """The program; arguments may be paths and numbers.  For what needs no model."""

    def run(*words, code=0):
        done = subprocess.run([build / "foveate", *map(str, words)], capture_output=True, timeout=600)
        assert done.returncode == code, done.stderr.decode()
        return done

    return run
