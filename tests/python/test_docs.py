"""The examples in the docs of the Python package run and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import foveate

MODULES = ["foveate"] + [f"foveate.{module.name}" for module in pkgutil.iter_modules(foveate.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_examples_were_found():
    finder = doctest.DocTestFinder()
    assert sum(len(example.examples) for name in MODULES for example in finder.find(importlib.import_module(name))) >= 15
