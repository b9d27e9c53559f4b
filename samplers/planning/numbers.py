"""Options of samplers that are numbers or switches, with the bounds that every such number keeps."""

from __future__ import annotations

from typing import Any

from torch_utils.options import opt

MOST = 1_000_000  # of any number: beyond it arithmetic overflows, or sampling does not end
EXPONENT = {"at_least": 0.1, "at_most": 1000}  # of levels; beyond, they all lie at one end


def number(text: str, **limits: Any) -> Any:
    """An option that is a number, not asked for by default."""
    if not limits.keys() & {"at_least", "above"}:
        limits["at_least"] = -MOST
    if limits.get("finite", True):
        limits.setdefault("at_most", MOST)
    return opt(None, text, metavar="FLOAT", **limits)


def count(text: str, **limits: Any) -> Any:
    """An option that is an integer from 1 on, not asked for by default."""
    return opt(None, text, metavar="INT", at_least=1, **{"at_most": MOST, **limits})


def switch(text: str) -> Any:
    """An option that is on, off, or not asked for."""
    return opt(None, text, metavar="BOOL", bare=True)
