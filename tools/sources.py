"""The repository's own source files, for the checks."""

import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
CPP = (".h", ".cpp")


def tracked(*endings: str) -> list[pathlib.Path]:
    """Files git tracks or would track, with one of the endings."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout
    return sorted(ROOT / name for name in listed.splitlines() if name.endswith(endings) and (ROOT / name).is_file())
