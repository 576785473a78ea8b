"""Writes catalogue.pyi: the mechanisms' classes as type checkers and editors see them, from the library's own list.

    make_stubs.py FILE      with foveate importable (PYTHONPATH, FOVEATE_BUILD)
"""

import pathlib
import sys

from foveate.registry import TYPES, class_doc, class_name, listed_mechanisms, option_value


def option_type(option: dict) -> str:
    if option["type"] == "choice":
        return f"Literal[{', '.join(repr(choice) for choice in option['range'].split(' | '))}]"
    return TYPES[option["type"]].__name__


def class_stub(info: dict) -> list[str]:
    doc = class_doc(info).replace("\n", "\n    ").replace("    \n", "\n")
    lines = [f"class {class_name(info['name'])}(Mechanism):", f'    """{doc}\n    """', ""]
    lines += [f"    {option['name']}: {option_type(option)}" for option in info["options"]]
    given = "".join(f", {o['name']}: {option_type(o)} = {option_value(o, o['default'])!r}" for o in info["options"])
    return lines + [f"    def __init__(self{given}) -> None: ...", ""]


def stubs() -> str:
    infos = listed_mechanisms()
    lines = ["from typing import Literal", "", "from foveate.registry import Mechanism", ""]
    lines += [f"__all__ = {[class_name(info['name']) for info in infos]!r}", ""]
    return "\n".join(lines + [line for info in infos for line in class_stub(info)])


if __name__ == "__main__":
    pathlib.Path(sys.argv[1]).write_text(stubs(), encoding="utf-8")
