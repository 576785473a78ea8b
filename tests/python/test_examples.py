"""The examples run; each at a size of seconds."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_training_with_a_block_sparse_mask():
    command = [sys.executable, ROOT / "examples" / "train_block_sparse.py", "--length", "1280", "--steps", "12"]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "python")})
    assert result.returncode == 0, result.stderr
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line}
    dense, sparse = rows["dense"], rows["block-sparse"]
    assert dense[1] == "100.0%" and float(sparse[1].rstrip("%")) < 50
    for row in (dense, sparse):  # it learns: uniform bytes are 5.5 nats
        assert float(row[3]) < float(row[2]) - 1
