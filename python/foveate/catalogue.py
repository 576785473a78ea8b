"""The mechanisms' classes by name, made of the library's list (registry.py); `help(foveate.Dhsa)` shows their options."""

from foveate.registry import CLASSES

globals().update({made.__name__: made for made in CLASSES.values()})
__all__ = [made.__name__ for made in CLASSES.values()]  # noqa: PLE0605
