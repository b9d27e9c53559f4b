"""METHODS: every training method by the name of its sub-command of train.py.

An entry holds the options (a dataclass, see `torch_utils.options`) and the builder
`build(options, dataset, device) -> Method`. A new method is one file here and one line in the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from training import edm

__all__ = ["METHODS", "MethodEntry"]


class MethodEntry(NamedTuple):
    help: str
    options: type
    build: Callable[..., Any]


METHODS: dict[str, MethodEntry] = {
    "edm": MethodEntry("Denoisers with EDM, VP or VE preconditioning (the default).", edm.EDMOptions, edm.build),
}
