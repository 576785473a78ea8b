"""Fails where a folder of foveate/ includes one that stands below it, or torch where only C++ may be."""

import re
import sys

from sources import CPP, ROOT, tracked

# A folder includes only itself and what stands before it; io needs no torch, so it stands apart from the maths.
ORDER = ["base", "kernels", "plan", "ops", "io", "attention", "models", "eval", "train", "report"]
ALLOWED = {folder: set(ORDER[: place + 1]) for place, folder in enumerate(ORDER)}
ALLOWED["io"] = {"base", "io"}
ALLOWED["report"] = {"base", "report"}
TORCH_FREE = {"base", "kernels", "io", "report"}

faults = []
for path in tracked(*CPP):
    name = path.relative_to(ROOT)
    if name.parts[0] != "foveate":
        continue
    folder = name.parts[1]
    if folder not in ALLOWED:
        faults.append(f"{name}: unknown folder '{folder}', known: {' '.join(ORDER)}")
        continue
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        include = re.match(r'\s*#\s*include\s*[<"]([^">]+)[">]', line)
        if not include:
            continue
        parts = include[1].split("/")
        if parts[0] == "foveate" and parts[1] not in ALLOWED[folder]:
            faults.append(f"{name}:{number}: {folder} must not include {include[1]}")
        if parts[0] in ("ATen", "torch", "c10") and folder in TORCH_FREE:
            faults.append(f"{name}:{number}: {folder} is free of torch, got {include[1]}")
if faults:
    sys.exit("\n".join(["layers: a folder includes only what stands above it:"] + faults))
print("layers: every include points upwards")
