"""The form of a row: two functions without arguments that do the same work and return the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["Row", "Work"]


class Work(NamedTuple):
    """What is timed: the plain implementation and ours, on the same inputs."""

    reference: Callable[[], Any]
    ours: Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: what is done, unique.
        prepare: makes inputs and both functions; not timed.
        goal: the ratio reference / ours to reach.
        agree: the largest difference between the two results that rounding and quadrature explain, relative to the
            largest value; None: the results are not numbers, or not meant to be the same.
        repeats: timed pairs; the median of their ratios counts.
    """

    name: str
    prepare: Callable[[], Work]
    goal: float
    agree: float | None = 1e-4
    repeats: int = 15
