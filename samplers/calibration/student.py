"""A student under calibration: a multistep solver taken one step at a time, so that each can be fitted where it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from samplers.solvers.base import analytical_first, combine, evaluate, network_levels
from samplers.start import Chunk

__all__ = ["StudentState", "advance", "gram", "look"]

_BLOCK = 1 << 18  # columns converted to float64 at once


class StudentState(NamedTuple):
    """A student between two steps: `x [b, ...]` and the drifts it may use, newest first."""

    x: Tensor
    history: tuple[Tensor, ...]


def look(chunk: Chunk, state: StudentState, sigma: float, max_order: int, afs: bool = False) -> StudentState:
    """Evaluate the drift at a state; `afs`: by the analytical first step."""
    known = analytical_first(state.x, sigma) if afs else None
    _, drift = evaluate(chunk.field, state.x, network_levels([sigma], state.x)[0], known)
    return StudentState(state.x, (drift, *state.history[: max_order - 1]))


def advance(state: StudentState, h: float, row: Sequence[float]) -> StudentState:
    """Step by `h` with one row of coefficients."""
    return StudentState(combine(state.x, 1, [h * c for c in row], state.history), state.history)


def gram(rows: Tensor) -> Tensor:
    """Inner products of the rows of `[k, M]` in float64, without a float64 copy of them all."""
    return sum(part.double() @ part.double().T for part in rows.split(_BLOCK, dim=1))
