"""Fails where clang-format would change a C++ file; --fix changes it."""

import subprocess
import sys

from sources import CPP, ROOT, tracked

files = [str(path) for path in tracked(*CPP)]
if "--fix" in sys.argv:
    subprocess.run(["clang-format", "-i", *files], check=True)
    sys.exit(0)
if subprocess.run(["clang-format", "--dry-run", "-Werror", *files], cwd=ROOT).returncode:
    sys.exit("format: run `make format`")
print(f"format: {len(files)} files are formatted")
