"""Files that torch.save writes, against what our reader reads; and files that would run code, which it refuses."""

import collections
import json
import os
import pickle
import zipfile

import numpy
import pytest
import torch
from stored_tensors import NAMES, SHAPES, assert_same, program, random_tensor, read, run


@pytest.fixture(scope="session")
def tool(build) -> str:
    return program(build)


@pytest.fixture()
def path(tmp_path):
    return tmp_path / "m.pt"


def assert_reads(tool: str, path, expected: dict[str, torch.Tensor]) -> None:
    got = read(tool, "torch", path)
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_same(got[name], tensor)


def refusal(tool: str, path) -> str:
    done = run(tool, "torch", path)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done
    assert done.stderr.startswith(f"{path}: ")
    return done.stderr.removeprefix(f"{path}: ").rstrip("\n")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_every_type_and_shape_is_read(tool, path, dtype, protocol):
    tensors = {f"layer.{i}": random_tensor(shape, dtype, i) for i, shape in enumerate(SHAPES)}
    torch.save(tensors, path, pickle_protocol=protocol)
    assert_reads(tool, path, tensors)


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.float32, torch.int64, torch.complex128], ids=str)
def test_views_are_read(tool, path, dtype):
    base = random_tensor((6, 8, 4), dtype, 3)
    views = {
        "base": base, "transposed": base.transpose(0, 2), "permuted": base.permute(1, 2, 0), "slice": base[2:5, ::3],
        "row": base[3], "scalar": base[5, 7, 3], "empty": base[6:, 2:], "expanded": base[:1, :1].expand(3, 2, 4),
        "unfolded": base.reshape(-1).unfold(0, 5, 2), "column": base[:, 1, 1:2], "diagonal": base[:, :, 0].diagonal(),
        "clone": base.t_() if base.dim() == 2 else base.clone(), "last": base.reshape(-1)[-1:],
    }
    torch.save(views, path)
    assert_reads(tool, path, views)


def test_a_state_dict_is_read(tool, path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.LSTM(4, 5, bidirectional=True))
    torch.save(model.state_dict(), path)
    assert_reads(tool, path, dict(model.state_dict()))


def test_parameters_are_read(tool, path):
    plain, attributed = (torch.nn.Parameter(torch.rand(2, 3)) for _ in range(2))
    attributed.rank = 7
    named = torch.rand(4)
    named.names_of_rows = ["a"]
    values = {"plain": plain, "attributed": attributed, "buffer": torch.nn.Buffer(torch.rand(3)), "named": named,
              "list": list(torch.nn.ParameterList([plain.detach().clone()]))}
    torch.save(values, path)
    assert_reads(tool, path, {"plain": plain, "attributed": attributed, "buffer": values["buffer"], "named": named,
                              "list.0": values["list"][0]})


def test_a_checkpoint_with_its_optimiser_is_read(tool, path):
    model = torch.nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    torch.save({"model": model.state_dict(), "optimizer": optimiser.state_dict(), "epoch": 3, "loss": 0.5,
                "rng": torch.get_rng_state(), "name": "ключ", "none": None, "flag": True, "seed": 2**64 + 1, "negative": -3,
                "bytes": b"\0\xff", "set": {1, 2}, "complex": 1j, "dtype": torch.bfloat16, "size": torch.Size([2, 3]),
                "device": torch.device("cpu"), "tuple": (1, (2, [])), "ordered": collections.OrderedDict(a=1)}, path)
    expected = {"rng": torch.get_rng_state()}
    expected |= {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for i, state in optimiser.state_dict()["state"].items():
        expected |= {f"optimizer.state.{i}.{name}": tensor for name, tensor in state.items()}
    assert_reads(tool, path, expected)
    others = {json.loads(line)["other"] for line in run(tool, "torch", path).stdout.splitlines() if "other" in line}
    assert {"epoch", "loss", "name", "none", "flag", "seed", "bytes", "complex", "dtype", "size", "device", "set",
            "tuple.1.0", "ordered.a", "optimizer.param_groups.0.lr"} <= others


def test_shared_and_nested_containers_are_read(tool, path):
    shared = {"w": torch.rand(3)}
    torch.save({"model": shared, "ema": shared, "layers": [shared, {0: torch.rand(2)}]}, path)
    loaded = torch.load(path)
    assert_reads(tool, path, {"model.w": shared["w"], "ema.w": shared["w"], "layers.0.w": shared["w"],
                              "layers.1.0": loaded["layers"][1][0]})


def test_bare_tensors_and_lists_are_read(tool, path):
    torch.save(torch.arange(6).reshape(2, 3).t(), path)
    assert_reads(tool, path, {"": torch.tensor([[0, 3], [1, 4], [2, 5]])})
    torch.save([torch.zeros(2), torch.ones(1)], path)
    assert_reads(tool, path, {"0": torch.zeros(2), "1": torch.ones(1)})
    torch.save({}, path)
    assert_reads(tool, path, {})


def test_files_without_checksums_are_read(tool, path):
    before = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        torch.save({"w": torch.arange(5)}, path)
    finally:
        torch.serialization.set_crc32_options(before)
    assert_reads(tool, path, {"w": torch.arange(5)})


def test_many_tensors_are_read(tool, path):
    tensors = {f"block.{i}.weight": torch.full((3,), float(i)) for i in range(2000)}  # memo places above 255
    torch.save(tensors, path)
    assert_reads(tool, path, tensors)


def test_other_formats_are_refused_by_name(tool, path):
    torch.save({"w": torch.ones(1)}, path, _use_new_zipfile_serialization=False)
    assert refusal(tool, path) == ("must be a zip file, is in the format of torch < 1.6: load it in torch and torch.save "
                                   "it again")
    path.write_bytes(pickle.dumps({"w": [1.0]}))
    assert refusal(tool, path) == "must be a zip file, is a plain pickle: pickles are never executed"
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path)
    assert refusal(tool, path) == "must be a file of torch.save, is TorchScript, a program"
    numpy.savez(path.with_suffix(".npz"), w=numpy.ones(1))
    assert refusal(tool, path.with_suffix(".npz")) == "must have an entry 'w.npy/data.pkl'"


def test_compressed_archives_are_refused(tool, path):
    torch.save({"w": torch.ones(1000)}, path)
    packed = path.with_name("packed.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert "must be stored, got compression method 8" in refusal(tool, packed)


def test_archives_that_python_packed_anew_are_read(tool, path):
    torch.save({"w": torch.arange(10)}, path)
    packed = path.with_name("packed.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert_reads(tool, packed, {"w": torch.arange(10)})


class Sub(torch.Tensor):
    pass


@pytest.mark.parametrize("value, name", [
    (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    (torch.eye(2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
    (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8), "torch._utils._rebuild_qtensor"),
    (numpy.ones(2), "numpy.core.multiarray._reconstruct"),
    (torch.ones(2).as_subclass(Sub), "test_torch_file.Sub"),
    (torch.empty(2, device="meta"), "torch._utils._rebuild_meta_tensor_no_storage"),
])
def test_what_is_no_plain_tensor_is_refused_by_name(tool, path, value, name):
    torch.save({"w": value}, path)
    message = refusal(tool, path).replace("numpy._core", "numpy.core")
    assert message.startswith(f"pickle names '{name}' at byte ")
    assert message.endswith(": only tensors and plain containers are read")


def test_conjugates_that_were_not_computed_are_refused(tool, path):
    torch.save({"w": torch.ones(2, dtype=torch.complex64).conj()}, path)
    assert refusal(tool, path).endswith("must be a plain tensor, got one to be conjugated or negated")


class Harmful:
    """Loading this with Python creates the file named by `target`."""

    def __init__(self, call):
        self.call = call

    def __reduce__(self):
        return self.call


HARMFUL = {
    "posix.system": lambda target: (os.system, (f"touch {target}",)),
    "builtins.eval": lambda target: (eval, (f"open({str(target)!r}, 'w')",)),
    "builtins.getattr": lambda target: (getattr, ("text", "join")),
    "builtins.open": lambda target: (open, (str(target), "w")),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: {"w": torch.ones(1), "x": [v]}], ids=["alone", "inside"])
@pytest.mark.parametrize("name", HARMFUL)
def test_pickles_that_would_run_code_are_refused_and_nothing_runs(tool, path, name, wrap, protocol):
    target = path.with_name("created")
    torch.save(wrap(Harmful(HARMFUL[name](target))), path, pickle_protocol=protocol)
    message = refusal(tool, path).replace("__builtin__", "builtins").replace("'io.open'", "'builtins.open'")
    assert message.startswith(f"pickle names '{name}' at byte ")
    assert not target.exists()
    if name == "posix.system":  # the file is as harmful as it claims to be
        torch.load(path, weights_only=False)
        assert target.exists()
