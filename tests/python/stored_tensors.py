"""What our readers make of a file of tensors, and what torch says it should be."""

import json
import subprocess

import numpy
import torch

NAMES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.uint16: "U16", torch.int16: "I16",
    torch.uint32: "U32", torch.int32: "I32", torch.uint64: "U64", torch.int64: "I64", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2", torch.float8_e8m0fnu: "F8_E8M0", torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ", torch.complex64: "C64", torch.complex128: "C128",
}
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHAPES = [(), (0,), (1,), (7,), (3, 5), (2, 0, 3), (1, 1, 1, 1, 1, 1), (2, 3, 4, 5)]


def program(build) -> str:
    return str(build / "tests" / "stored_tensors_tool")


def run(tool: str, form: str, path) -> subprocess.CompletedProcess:
    return subprocess.run([tool, form, str(path)], capture_output=True, text=True)


def read(tool: str, form: str, path) -> dict[str, dict]:
    done = run(tool, form, path)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    tensors = [line for line in lines if "other" not in line]
    assert len({tensor["name"] for tensor in tensors}) == len(tensors)
    return {tensor["name"]: tensor for tensor in tensors}


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Random bits, so that there are NaNs of all kinds, infinities and subnormals; of a bool 0 or 1."""
    count = int(numpy.prod(shape))
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    size = torch.empty(0, dtype=dtype).element_size()
    bits = numpy.random.default_rng(seed).integers(0, 256, count * size, dtype=numpy.uint8)
    if dtype == torch.bool:
        bits &= 1
    return torch.from_numpy(bits).view(dtype).reshape(shape)


def raw_bytes(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def assert_same(got: dict, expected: torch.Tensor) -> None:
    expected = expected.detach()
    assert got["shape"] == list(expected.shape)
    assert got["type"] == NAMES[expected.dtype]
    assert bytes.fromhex(got["bytes"]) == raw_bytes(expected)
    assert ("floats" in got) == (expected.dtype in FLOATS)
    if expected.dtype in FLOATS:
        floats = numpy.frombuffer(bytes.fromhex(got["floats"]), numpy.float32)
        wanted = expected.reshape(-1).to(torch.float32).numpy()
        # torch and we may quieten a NaN differently: its own bits were compared above
        nan = numpy.isnan(wanted)
        numpy.testing.assert_array_equal(numpy.isnan(floats), nan)
        numpy.testing.assert_array_equal(floats[~nan].view(numpy.uint32), wanted[~nan].view(numpy.uint32))
