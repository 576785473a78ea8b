"""Fails where a file or a function is too long to be read in one go.

Limits: file 500 lines, function 60.  A function is a brace that opens at the end of a line whose text looks like a
definition; lambdas count as part of the function around them.
"""

import re
import sys

from sources import CPP, ROOT, tracked

FILE_LINES, FUNCTION_LINES = 500, 60
NOT_A_FUNCTION = re.compile(r"^\s*(namespace|class|struct|enum|union|extern|if|for|while|switch|else|do|try|return|[}\]])")


def functions(lines: list[str]):
    """(first line, length) of every top-level or member function definition, by brace depth."""
    stack = []
    for number, line in enumerate(lines, 1):
        code = re.sub(r'"(\\.|[^"\\])*"|\'(\\.|[^\'\\])*\'|//.*', "", line)
        for character in code:
            if character == "{":
                inside = any(entry[1] for entry in stack)
                text = head(lines, number)
                is_data = text.rstrip().endswith("({")  # a list handed to a call
                starts = not inside and not is_data and "(" in text and not NOT_A_FUNCTION.match(text)
                stack.append((number, starts))
            elif character == "}" and stack:
                first, is_function = stack.pop()
                if is_function:
                    yield first, number - first + 1


def head(lines: list[str], number: int) -> str:
    """The statement that ends with line `number`: signatures may span lines."""
    first = number - 1
    while first > 0 and not re.search(r"[;{}]\s*(//.*)?$|^\s*$|^\s*//|^#|:$", lines[first - 1]):
        first -= 1
    return " ".join(lines[first:number])


faults, total = [], 0
for path in tracked(*CPP):
    name, lines = path.relative_to(ROOT), path.read_text(encoding="utf-8").splitlines()
    total += len(lines)
    if len(lines) > FILE_LINES:
        faults.append(f"{name}: {len(lines)} lines, at most {FILE_LINES}")
    for first, length in functions(lines):
        if length > FUNCTION_LINES:
            faults.append(f"{name}:{first}: a function of {length} lines, at most {FUNCTION_LINES}")
if faults:
    sys.exit("\n".join(["size: too long to be read in one go:"] + faults))
print(f"size: {total} lines of C++")
