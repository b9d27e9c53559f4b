"""What `samplers.planning.plan` decides for a solver that chooses its steps, in sigma coordinates
(`samplers.solvers.adaptive`)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from samplers.field import Field
from samplers.planning.levels import SEARCH, flag
from samplers.schedules.formulas import get_schedule
from samplers.solvers.table import SOLVERS, sample

__all__ = ["adaptive_plan"]

# What such a solver chooses itself.
GRID = ("num_steps", "schedule", "schedule_type", "schedule_rho", "t_steps", "nfe", "dp", "calibrate", *SEARCH)


def adaptive_plan(
    net: Field | Callable[..., Tensor], given: dict[str, Any], solver: str, how: dict[str, Any]
) -> dict[str, Any]:
    """Fields of a `Plan`: from the highest to the lowest level in steps of the solver's own.

    Args:
        given: the options that were asked for.
        how: those of them that are the solver's.

    Raises:
        ValueError: options about steps.
    """
    if "afs" in given:
        SOLVERS[solver].check_first(True)
    if grid := [name for name in GRID if name in given]:
        raise ValueError(f"solver '{solver}' chooses its steps itself: leave out {flag(grid[0])}, or give tolerances")
    inner = net.net if isinstance(net, Field) else net
    levels = get_schedule(2, given.get("sigma_min"), given.get("sigma_max"), net=inner)
    to_zero = bool(given.get("denoise_to_zero"))
    evaluations: list[int] = []
    calls = getattr(net, "calls_per_evaluation", 1)  # 2 where the network is guided
    used = SOLVERS[solver].resolve(how)
    ends = ", denoise_to_zero True" if to_zero else ""
    return {
        "solver": solver,
        "sigmas": levels,
        "nfe": None,
        "summary": (
            ("Solver", f"{solver}, rtol {used['rtol']:g}, atol {used['atol']:g}{ends}"),
            ("Schedule", f"chosen by the solver, from {levels[0]:.4g} to {levels[-1]:.4g}"),
            ("NFE", "known after sampling"),
        ),
        "run": functools.partial(
            _run,
            sigmas=levels,
            solver=solver,
            denoise_to_zero=to_zero,
            count=lambda made: evaluations.append(calls * (made + to_zero)),
            **how,
        ),
        "evaluations": evaluations,
    }


def _run(
    net: Field | Callable[..., Tensor], noise: Tensor, class_labels: Tensor | None, *, sigmas: Tensor, **options: Any
) -> Tensor:
    return sample(net, noise.double(), sigmas, class_labels=class_labels, **options)
