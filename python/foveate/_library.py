"""Finds libfoveate.so, checks that it was built for the installed torch, and loads it: the operators then are torch.ops.foveate."""

import os
import pathlib

NAME = "libfoveate.so"
BUILT_FOR = "libfoveate.torch"  # beside the library: the version of torch it was built against


def find(build: str | None = None) -> pathlib.Path:
    """The library: in the folder `build` (the variable FOVEATE_BUILD), else beside the package, else in a checkout's build/release.

    Raises ImportError: there is none.
    """
    here = pathlib.Path(__file__).resolve().parent
    folders = [pathlib.Path(build)] if build else [here, here.parents[1] / "build" / "release"]
    for folder in folders:
        if (folder / NAME).is_file():
            return folder / NAME
    raise ImportError(
        f"foveate: {NAME} must lie in {' or '.join(map(str, folders))}, found none; "
        "run `make` in a checkout or `pip install . --no-build-isolation`"
    )


def minor(version: str) -> str:
    """'2.13' of '2.13.0+cpu': libraries for torch fit one minor version."""
    return ".".join(version.split("+")[0].split(".")[:2])


def check_torch(library: pathlib.Path, installed: str) -> None:
    """Raises ImportError unless `library` was built for the minor version of torch that is `installed`."""
    note = library.with_name(BUILT_FOR)
    if not note.is_file():
        raise ImportError(f"foveate: {note} must say which torch {library.name} was built for, found no such file; build again")
    built_for = note.read_text(encoding="utf-8").strip()
    if minor(built_for) != minor(installed):
        raise ImportError(
            f"foveate: {library} was built for torch {minor(built_for)}, got torch {installed}; "
            "run `pip install . --no-build-isolation` again with the torch that is to be used"
        )


def load() -> None:
    """Loads the library into this process.  Raises ImportError with one sentence: no torch, no library, another torch."""
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError("foveate: torch must be installed, found none; run `pip install torch`") from None
    library = find(os.environ.get("FOVEATE_BUILD"))
    check_torch(library, torch.__version__)
    torch.ops.load_library(str(library))
