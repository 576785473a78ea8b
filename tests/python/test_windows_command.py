"""foveate windows: the page marks the keys that the definition names."""

import itertools
import re

import pytest


@pytest.fixture
def page(command, tmp_path):
    def run(*words, code=0):
        out = tmp_path / "windows.html"
        done = command("windows", *words, "-o", out, code=code)
        return out.read_text() if code == 0 else done.stderr.decode()

    return run


def marked(html, columns):
    """{place: keys}, both as (row, column), read from the page's paths."""
    seen = {}
    for name, path, gap in re.findall(r'<title>([\d, ]+): \d+ keys</title><path d="([^"]*)"(?: stroke-dasharray="1 (\d+)")?/>', html):
        step = int(gap or 0) + 1
        keys = set()
        for x, y, length in re.findall(r"M(\d+) (\d+)\.5h(\d+)", path):
            keys |= {(int(y), column) for column in range(int(x), int(x) + int(length), step)}
        assert all(column < columns for _, column in keys)
        place = tuple(int(part) for part in name.split(", "))
        seen[place if len(place) == 2 else (0, *place)] = keys
    return seen


def neighbours(x, length, kernel, dilation, causal):
    group = list(range(x % dilation, length, dilation))
    at = group.index(x)
    first = max(at - kernel + 1, 0) if causal else min(max(at - kernel // 2, 0), len(group) - kernel)
    return group[first : at + 1] if causal else group[first : first + kernel]


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("causal", [False, True])
def test_windows_of_a_map(page, dilation, causal):
    html = page("--grid", "7,9", "--kernel", "3", "--dilation", f"1,{dilation}", "--causal", f"{int(causal)},0")
    want = {
        (r, c): set(itertools.product(neighbours(r, 7, 3, 1, causal), neighbours(c, 9, 3, dilation, False)))
        for r, c in itertools.product(range(7), range(9))
    }
    assert marked(html, 9) == want


def test_windows_along_one_axis(page):
    seen = marked(page("--grid", "12", "--kernel", "4", "--dilation", "3", "--causal", "1"), 12)
    assert seen == {(0, x): {(0, key) for key in neighbours(x, 12, 4, 3, True)} for x in range(12)}


def test_blocks_with_a_halo(page):
    seen = marked(page("--grid", "8,8", "--block", "4", "--halo", "1"), 8)
    assert seen[0, 0] == set(itertools.product(range(5), range(5)))
    assert seen[7, 1] == set(itertools.product(range(3, 8), range(5)))
    assert len(seen) == 64


@pytest.mark.parametrize("words,message", [
    (["--grid", "14,14", "--kernel", "9", "--dilation", "2"], "kernel * dilation must be <= length, got 9 * 2 > 14"),
    (["--grid", "14,14", "--kernel", "3,3,3"], "--kernel must have 1 or 2 numbers, got 3"),
    (["--grid", "100,100"], "the grid must have 1 .. 4096 places, got 10000"),
    (["--grid", "8", "--block", "4"], "--grid must have 2 numbers with --block, got 1"),
])  # fmt: skip
def test_bad_input_is_one_line(page, words, message):
    error = page(*words, code=2)
    assert message in error and len(error.strip().splitlines()) == 1, error
