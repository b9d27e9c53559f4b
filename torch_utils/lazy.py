"""Packages that lend names of their files, and import a file when one of its names is first asked for (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any


def lent(package: str, files: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package: whoever imports a part of it does not wait for the whole.

    Args:
        package: its `__name__`; all that it lends is in its `__all__`. Its own files and folders need no mention.
        files: module -> the names that it lends.
    """
    file_of = {name: file for file, names in files.items() for name in names}

    def get(name: str) -> Any:
        if name in file_of:
            value = getattr(importlib.import_module(file_of[name]), name)
        elif not name.startswith("_") and find_spec(f"{package}.{name}") is not None:
            for file in files:  # and `samplers.solvers.table` is at hand, as without this function
                importlib.import_module(file)
            value = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *sys.modules[package].__all__})
