"""timm without torchvision: what it imports from there is a name that nothing here calls."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types

import pytest


class AnyName(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class Torchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "torchvision" else None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)

        def attribute(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return AnyName(name, (), {})

        module.__getattr__ = attribute
        return module

    def exec_module(self, module):
        pass


def import_timm():
    """The package timm; skips the test where it is not installed."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed (tools/setup.sh test)")
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(Torchvision())
    import timm

    return timm
