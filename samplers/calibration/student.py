"""A student under calibration: a multistep solver taken one step at a time, so that each can be fitted where it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from samplers.solvers.base import analytical_first, combine, evaluate, network_levels
from samplers.solvers.weights import ab_weights
from samplers.start import Chunk

__all__ = ["Features", "StudentState", "advance", "classical", "end_errors", "gram", "itself", "look"]

Features = Callable[[Chunk, Tensor], Tensor]  # samples [b, ...] -> what is compared of them [b, ...]

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


def classical(sigmas: Sequence[float], n: int, order: int) -> list[float]:
    """Adams-Bashforth weights of step n on these levels, newest first, without the factor h."""
    return [w / (sigmas[n + 1] - sigmas[n]) for w in ab_weights(sigmas, n, order)]


def gram(rows: Tensor) -> Tensor:
    """Inner products of the rows of `[k, M]` in float64, without a float64 copy of them all."""
    return sum(part.double() @ part.double().T for part in rows.split(_BLOCK, dim=1))


def itself(chunk: Chunk, x: Tensor) -> Tensor:
    """The samples as they are."""
    return x


def end_errors(ends: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Mean square distance per sample, chunk after chunk: `[samples]` float64."""
    parts = [(x - e).double().square().flatten(1).mean(1) for e, x in zip(ends, wanted, strict=True)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
