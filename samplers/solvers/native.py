"""Sampling a flow model in its own time, as it is published: equal steps from t = 1 (noise) to t = 0 (data).

N counts network evaluations. Euler takes N steps; Heun (N + 1) / 2, of which the last is an Euler step, so that no
network is evaluated at t = 0 and N is odd (Lee, Kim, Ye 2023, arXiv 2301.12003). The other Runge-Kutta solvers do
evaluate velocities there. Euler's result is that of DDIM on sigma_i = (N - i) / i; all other solvers depend on the
coordinates. Adaptive solvers need no N.
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
from torch_utils.rng import TorchRNG

__all__ = ["DRIFT_SOLVERS", "sample_native", "uniform_times"]

# Solvers whose formulas hold on any path.
DRIFT_SOLVERS = (
    "euler", "heun", "renoise", "ipndm", "ab",
    *(name for name, entry in SOLVERS.items() if entry.adaptive or entry.reaches_zero),
)  # fmt: skip


def uniform_times(evaluations: int, solver: str = "euler", *, defined_at_zero: bool = True) -> Tensor:
    """`[K+1]` float64 times of K equal steps from 1 to 0 that cost `evaluations`; of an adaptive solver, the two ends.

    Args:
        defined_at_zero: of the field; else the last step is an Euler step, whatever the solver.

    Raises:
        ValueError: fewer than one evaluation, or a number that no count of steps makes.
    """
    _check_solver(solver)
    entry = SOLVERS[solver]
    if entry.adaptive:
        return torch.tensor([1.0, 0.0], dtype=torch.float64)
    if evaluations < 1:
        raise ValueError(f"N={evaluations} leaves no step to take: give 1 or more network evaluations")
    each, last = entry.evaluations, last_step_cost(solver, defined_at_zero)
    before, rest = divmod(evaluations - last, each)
    if rest:
        fits = [n for n in (evaluations - rest, evaluations - rest + each) if n >= last]
        raise ValueError(
            f"N={evaluations} does not suit solver '{solver}': every step costs {each} evaluations"
            + (" but the last, which is an Euler step" if last == 1 else "")
            + (", so N is odd" if (each, last) == (2, 1) else "")
            + f"; give {' or '.join(map(str, fits))}"
        )
    return torch.arange(before + 1, -1, -1, dtype=torch.float64) / (before + 1)


def last_step_cost(solver: str, defined_at_zero: bool) -> int:
    """Evaluations of the step that ends at t = 0."""
    entry = SOLVERS[solver]
    return entry.evaluations if entry.reaches_zero and defined_at_zero else 1


def sample_native(
    field: Field | Callable[..., Tensor],
    noise: Tensor,
    times: Tensor | Sequence[float],
    *,
    solver: str = "euler",
    class_labels: Tensor | None = None,
    trace: Callable[[Step], Any] | None = None,
    rng: TorchRNG | None = None,
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
        rng: source of the noise that stochastic solvers add; the others draw none.

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
    source = {"rng": rng} if entry.stochastic else {}
    return entry.fn(field, noise, times, trace=trace, **options, **source)


def _check_solver(solver: str) -> None:
    if solver not in DRIFT_SOLVERS:
        raise ValueError(
            f"solver '{solver}' cannot step in native time: choose from {', '.join(DRIFT_SOLVERS)}, or sample in sigma "
            "coordinates"
        )
