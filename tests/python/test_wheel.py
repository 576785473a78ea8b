"""The wheel that pip builds: complete, importable from a fresh folder without a compiler; and what pip says where torch is missing."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
USE = """
import foveate, pathlib, torch
q = torch.randn(1, 4, 40, 16, requires_grad=True)
out, lse = foveate.Window(size=8)(q, q[:, :2], q[:, :2])
out.sum().backward()
assert q.grad.abs().sum() > 0
print(pathlib.Path(foveate.__file__).parent, foveate.__version__)
"""


@pytest.fixture(scope="module")
def installed(build, tmp_path_factory):
    """A folder with the wheel installed, made of the library that is being tested."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["-C", f"build-dir={folder / 'build'}", "-C", f"cmake.define.FOVEATE_BUILD={build.resolve()}"]
    made = [*PIP, "wheel", str(ROOT), "--no-build-isolation", "--no-deps", "--no-index", "-w", str(folder), *options]
    result = subprocess.run(made, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = folder.glob("foveate-*-py3-none-*.whl")
    subprocess.run([*PIP, "install", "--no-deps", "--no-index", "--target", str(folder / "site"), str(wheel)], check=True, capture_output=True)
    return folder / "site"


def test_wheel_is_complete(installed):
    names = {path.name for path in (installed / "foveate").iterdir()}
    sources = {path.name for path in (ROOT / "python" / "foveate").glob("*.py")}
    assert names - {"__pycache__"} == sources | {"libfoveate.so", "libfoveate.torch", "catalogue.pyi", "py.typed"}


def test_wheel_runs_in_a_fresh_folder_without_a_compiler(installed, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "FOVEATE_BUILD"}
    environment.update(PYTHONPATH=str(installed), PATH=str(tmp_path))
    result = subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    version = re.search(r"project\(foveate VERSION ([0-9.]+)", (ROOT / "CMakeLists.txt").read_text())
    assert result.stdout.split() == [str(installed / "foveate"), version[1]]


def test_building_without_torch_says_what_to_do(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    python = tmp_path / "bare" / "bin" / "python"
    command = ["cmake", "-S", str(ROOT), "-B", str(tmp_path / "build"), "-DSKBUILD=2", f"-DPython3_EXECUTABLE={python}"]
    result = subprocess.run(command, capture_output=True, text=True)
    sentence = f"foveate: the Python that builds must import torch, found none in {python}; install torch and run `pip install . --no-build-isolation`"
    assert result.returncode != 0 and sentence in " ".join(result.stderr.split())
