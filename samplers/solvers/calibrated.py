"""The calibrated multistep solver: Adams-Bashforth with coefficients of one model and one schedule.

    x_{n+1} = x_n + h_n sum_k c_{n,k} d_{n-k},        d = dx/dsigma at the states visited, newest first

The coefficients come from `samplers.calibration.calibrate` (or `samplers.calibration.fitting` alone) by way of a
schedule file. Own method; a closed-form relative of solvers with learned coefficients (S4S: Tong et al. 2025, arXiv
2502.17423; Bespoke: Shaul et al. 2023, arXiv 2310.19075).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from samplers.field import Field
from samplers.solvers.base import Step
from samplers.solvers.multistep import linear_multistep
from samplers.solvers.scalar import Scalar

__all__ = ["Coefficients", "calibrated"]

Coefficients = Sequence[Sequence[float]]  # one row a step, newest drift first


def calibrated(
    field: Field,
    x: Tensor,
    levels: Tensor | Sequence[float | Tensor],
    *,
    coefficients: Coefficients | None = None,
    max_order: int = 4,
    first: Tensor | None = None,
    trace: Callable[[Step], Any] | None = None,
) -> Tensor:
    """Step with stored coefficients, one evaluation per step; a step to level 0 is of first order.

    Args:
        coefficients: per step the weights of the drifts, newest first, without the factor h; from a schedule file or
            from `fit_coefficients`.
        max_order: the most drifts a step may use.

    Raises:
        ValueError: no coefficients, not one row per step, a row longer than the history or than `max_order`.
    """
    rows = _checked(coefficients, len(levels) - 1, max_order)

    def weights(s: Sequence[Scalar], i: int) -> tuple[Scalar, list[Scalar]]:
        h = s[i + 1] - s[i]
        return 1, [h * c for c in rows[i]]

    return linear_multistep(field, x, levels, weights, history=max_order, first=first, trace=trace)


def _checked(coefficients: Coefficients | None, steps: int, max_order: int) -> Coefficients:
    if coefficients is None:
        raise ValueError(
            "solver 'calibrated' needs coefficients made for this model: calibrate it first (generate.py --calibrate), "
            "or give a schedule file that holds them"
        )
    if len(coefficients) != steps:
        raise ValueError(
            f"the coefficients are for {len(coefficients)} steps and the schedule has {steps}: "
            "sample with the schedule they were fitted on"
        )
    for i, row in enumerate(coefficients):
        if not 1 <= len(row) <= min(i + 1, max_order):
            raise ValueError(
                f"step {i} has {len(row)} coefficients: give 1 to {min(i + 1, max_order)}, "
                "no more than steps taken and than max_order"
            )
    return coefficients
