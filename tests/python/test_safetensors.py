"""safetensors files that the `safetensors` package writes, against what our reader reads."""

import json
import struct

import pytest
import torch
from stored_tensors import NAMES, SHAPES, assert_same, program, random_tensor, raw_bytes, read, run

safetensors = pytest.importorskip("safetensors.torch", reason="the safetensors package is the oracle")

TYPES = [dtype for dtype in NAMES if dtype != torch.complex128]  # which the format does not have


@pytest.fixture(scope="session")
def tool(build) -> str:
    return program(build)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_type_and_shape_is_read(tool, tmp_path, dtype):
    tensors = {f"layer.{i}": random_tensor(shape, dtype, i) for i, shape in enumerate(SHAPES)}
    safetensors.save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt", "ünïcode": "\n\"\\"})
    got = read(tool, "safetensors", tmp_path / "m.safetensors")
    assert got.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert_same(got[name], tensor)


def test_types_together_in_one_file_are_read(tool, tmp_path):
    tensors = {f"ключ {i}": random_tensor((i % 5 + 1, 3), dtype, i) for i, dtype in enumerate(TYPES)}
    safetensors.save_file(tensors, tmp_path / "m.safetensors")
    got = read(tool, "safetensors", tmp_path / "m.safetensors")
    assert got.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert_same(got[name], tensor)


def test_a_file_without_tensors_is_read(tool, tmp_path):
    safetensors.save_file({}, tmp_path / "m.safetensors")
    assert read(tool, "safetensors", tmp_path / "m.safetensors") == {}


@pytest.mark.parametrize("shift", range(8))
def test_data_at_any_alignment_is_read_as_the_package_reads_it(tool, tmp_path, shift):
    tensor = random_tensor((5, 3), torch.float64, shift)
    entries = {
        "shift": {"dtype": "U8", "shape": [shift], "data_offsets": [0, shift]},
        "w": {"dtype": "F64", "shape": [5, 3], "data_offsets": [shift, shift + 120]},
    }
    header = json.dumps(entries).encode() + b" " * (shift % 3)
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"x" * shift + raw_bytes(tensor))
    assert_same(read(tool, "safetensors", path)["w"], safetensors.load_file(path)["w"])


def test_a_folder_of_shards_is_read(tool, tmp_path):
    shards = [{"a": torch.ones(3), "b": torch.zeros(2, 2)}, {"c": torch.arange(4)}]
    index = {"metadata": {"total_size": 60}, "weight_map": {}}
    for i, tensors in enumerate(shards, 1):
        name = f"model-{i:05}-of-00002.safetensors"
        safetensors.save_file(tensors, tmp_path / name)
        index["weight_map"] |= dict.fromkeys(tensors, name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    got = read(tool, "folder", tmp_path)
    for name, tensor in (shards[0] | shards[1]).items():
        assert_same(got[name], tensor)


# Each is refused by the package too, so that we are not stricter than the format.
BROKEN = {
    "gap": ({"w": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}}, 3),
    "bytes of no tensor": ({"w": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}, 3),
    "overlap": (
        {n: {"dtype": "U8", "shape": [2], "data_offsets": [i, i + 2]} for i, n in enumerate("ab")}, 3),
    "overflow before a zero": ({"w": {"dtype": "U8", "shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}}, 0),
    "number in the metadata": ({"__metadata__": {"a": 1}}, 0),
    "unknown type": ({"w": {"dtype": "F7", "shape": [2], "data_offsets": [0, 2]}}, 2),
    "negative size": ({"w": {"dtype": "U8", "shape": [-2], "data_offsets": [0, 2]}}, 2),
}


@pytest.mark.parametrize("defect", BROKEN)
def test_what_we_refuse_the_package_refuses(tool, tmp_path, defect):
    entries, size = BROKEN[defect]
    header = json.dumps(entries).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"x" * size)
    done = run(tool, "safetensors", path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    with pytest.raises(Exception, match="rror"):
        safetensors.load_file(path)
