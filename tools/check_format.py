"""Fails where clang-format would change a C++ file; --fix changes it.

Versions of clang-format differ in details: the reference is the major version below, others are not asked.
"""

import re
import subprocess
import sys

from sources import CPP, ROOT, tracked

REFERENCE = 14

version = subprocess.run(["clang-format", "--version"], capture_output=True, text=True, check=True).stdout
major = int(re.search(r"version (\d+)", version)[1])
files = [str(path) for path in tracked(*CPP)]
if major != REFERENCE:
    print(f"format: NOT checked: the reference is clang-format {REFERENCE}, found {major}")
elif "--fix" in sys.argv:
    subprocess.run(["clang-format", "-i", *files], check=True)
elif subprocess.run(["clang-format", "--dry-run", "-Werror", *files], cwd=ROOT).returncode:
    sys.exit("format: run `make format`")
else:
    print(f"format: {len(files)} files are formatted")
