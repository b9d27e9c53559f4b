"""Sampling a flow model in its own time, as it is published: equal steps from t = 1 (noise) to t = 0 (data).

N counts network evaluations. Euler takes N steps; Heun (N + 1) / 2, of which the last is an Euler step, so that no
network is evaluated at t = 0 and N is odd (Lee, Kim, Ye 2023, arXiv 2301.12003). Euler's result is that of DDIM on
sigma_i = (N - i) / i; all other solvers depend on the coordinates. Adaptive solvers need no N.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from samplers.field import Field, as_field
from samplers.path import VE
from samplers.solvers.base import Step
from samplers.solvers.table import SOLVERS

__all__ = ["DRIFT_SOLVERS", "sample_native", "uniform_times"]

# Solvers whose formulas hold on any path.
DRIFT_SOLVERS = ("euler", "heun", "ipndm", "ab", *(name for name, entry in SOLVERS.items() if entry.adaptive))


def uniform_times(evaluations: int, solver: str = "euler") -> Tensor:
    """`[K+1]` float64 times of K equal steps from 1 to 0 that cost `evaluations`; of an adaptive solver, the two ends.

    Raises:
        ValueError: fewer than one evaluation, an even number for Heun.
    """
    _check_solver(solver)
    if SOLVERS[solver].adaptive:
        return torch.tensor([1.0, 0.0], dtype=torch.float64)
    if evaluations < 1:
        raise ValueError(f"N={evaluations} leaves no step to take: give 1 or more network evaluations")
    each = SOLVERS[solver].evaluations
    if each == 2 and evaluations % 2 == 0:
        raise ValueError(
            f"N={evaluations} does not suit solver '{solver}': every step costs two evaluations but the last, which is "
            f"an Euler step, so N is odd; give {evaluations - 1} or {evaluations + 1}"
        )
    steps = (evaluations + 1) // 2 if each == 2 else evaluations
    return torch.arange(steps, -1, -1, dtype=torch.float64) / steps


def sample_native(
    field: Field | Callable[..., Tensor],
    noise: Tensor,
    times: Tensor | Sequence[float],
    *,
    solver: str = "euler",
    class_labels: Tensor | None = None,
    trace: Callable[[Step], Any] | None = None,
    **options: Any,
) -> Tensor:
    """Integrate dx/dt = velocity from the noise at `times[0]` to `times[-1]`, in the model's own coordinates.

    Args:
        field: a model on a path with an end.
        noise: `[B, ...]`, the state at `times[0]`. Its dtype is that of the state.
        times: falling, in [0, 1].
        solver: one of DRIFT_SOLVERS; `options` are its own.
        class_labels: `[B, label_dim]`; default: those already bound to the field.
        trace: called with a `Step` before each update.

    Raises:
        ValueError: a model in sigma coordinates, or a solver or an option that is not possible.
    """
    _check_solver(solver)
    entry = SOLVERS[solver]
    options = entry.resolve(options)
    field = as_field(field).native()
    if isinstance(field.path, VE):
        raise ValueError("this model lives in sigma coordinates and has no time of its own: leave out native")
    if class_labels is not None:
        field = field.bind(class_labels, **field.cond)
    return entry.fn(field, noise, times, trace=trace, **options)


def _check_solver(solver: str) -> None:
    if solver not in DRIFT_SOLVERS:
        raise ValueError(
            f"solver '{solver}' cannot step in native time: choose from {', '.join(DRIFT_SOLVERS)}, or sample in sigma "
            "coordinates"
        )
