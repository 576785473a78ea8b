"""Fails where an object file of an instruction set offers a symbol that other code could pick up.

  check_symbols.py OBJECT...     the compiled foveate/kernels/cpu/level_*.cpp

A weak symbol (an inline function, a template) compiled for AVX-512 may be chosen by the linker for everybody, and then the
program dies on a machine without it.  Only the level's table may be visible.
"""

import subprocess
import sys

faults = []
for path in sys.argv[1:]:
    for line in subprocess.run(["nm", "-C", path], check=True, capture_output=True, text=True).stdout.splitlines():
        kind, _, name = line[17:].partition(" ")
        if kind.isupper() and kind != "U" and "foveate::kernels::k" not in name or kind in "vVwWu":
            faults.append(f"{path}: {kind} {name}")
if not sys.argv[1:]:
    sys.exit("symbols: no object file given")
if faults:
    sys.exit("\n".join(["symbols: only the table of a level may be visible:"] + faults))
print(f"symbols: {len(sys.argv) - 1} levels offer their tables alone")
