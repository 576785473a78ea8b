"""Dequantisation against the `gguf` package: the same bits on random blocks of every type and on whole model files."""

import subprocess

import numpy
import pytest

gguf = pytest.importorskip("gguf", reason="the gguf package is the oracle")

TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


@pytest.fixture(scope="session")
def tool(build) -> str:
    return str(build / "tests" / "dequantize_tool")


def dequantized(tool: str, name: str, packed: numpy.ndarray) -> numpy.ndarray:
    done = subprocess.run([tool, name], input=packed.tobytes(), capture_output=True, check=True)
    return numpy.frombuffer(done.stdout, numpy.float32)


def assert_same_bits(got: numpy.ndarray, expected: numpy.ndarray) -> None:
    expected = expected.reshape(-1)
    assert got.shape == expected.shape
    # Which NaN comes out of NaN * x is the processor's choice: only the places must agree.
    numpy.testing.assert_array_equal(numpy.isnan(got), numpy.isnan(expected))
    real = ~numpy.isnan(expected)
    numpy.testing.assert_array_equal(got[real].view(numpy.uint32), expected[real].view(numpy.uint32))


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_random_blocks_give_the_same_bits(tool, name, seed):
    _, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    packed = numpy.random.default_rng(seed).integers(0, 256, 2000 * block_bytes, dtype=numpy.uint8)
    with numpy.errstate(all="ignore"):  # random scales hold infinities and NaNs
        expected = gguf.quants.dequantize(packed.reshape(2000, block_bytes), gguf.GGMLQuantizationType[name])
    assert_same_bits(dequantized(tool, name, packed), expected)


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_every_16_bit_number_gives_the_same_bits(tool, name):
    packed = numpy.arange(65536, dtype=numpy.uint16).view(numpy.uint8)
    expected = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[name])
    assert_same_bits(dequantized(tool, name, packed), expected)


@pytest.mark.parametrize("model", ["smollm2", "gemma3"])
def test_every_tensor_of_a_real_file_gives_the_same_bits(tool, cache, model):
    path = cache / "models" / f"{model}.gguf"
    if not path.exists():
        pytest.skip(f"no model file {path}")
    of_type = {}
    for tensor in gguf.GGUFReader(path).tensors:
        rows = max(1, tensor.data.size // 2**20)  # every few rows of the large ones will do: a megabyte each
        of_type.setdefault(tensor.tensor_type, []).append(numpy.ascontiguousarray(tensor.data[::rows]))
    for kind, tensors in of_type.items():  # a tensor is whole blocks: one behind the other they are a tensor again
        expected = numpy.concatenate([gguf.quants.dequantize(packed, kind).reshape(-1) for packed in tensors])
        packed = numpy.concatenate([packed.reshape(-1).view(numpy.uint8) for packed in tensors])
        assert_same_bits(dequantized(tool, kind.name, packed), expected)


def test_bytes_that_are_no_whole_blocks_are_refused(tool):
    done = subprocess.run([tool, "Q8_0"], input=b"x" * 35, capture_output=True)
    assert done.returncode == 2
    assert b"dequantize: bytes must be" in done.stderr
