"""The linear multistep loop: x_{i+1} = a_i x_i + sum_k w_{i,k} m_{i-k}, with m = dx/dsigma or (thresholded) clean data.

iPNDM, Adams-Bashforth, DEIS and DPM-Solver++ differ in the weights only, which depend on the noise levels alone; a
solver with coefficients of its own (searched, calibrated) needs one function `weights(s, i)`. One evaluation per step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor

from samplers.field import Field
from samplers.path import VE
from samplers.solvers.base import Scalar, Step, clean_estimate, combine, evaluate, read_levels

__all__ = ["Weights", "linear_multistep"]

# weights(s, i) -> (a_i, [w_{i,0}, w_{i,1}, ...]), newest first, for the step from s[i] to s[i+1]
Weights = Callable[[Sequence[Scalar], int], tuple[Scalar, Sequence[Scalar]]]


def linear_multistep(
    field: Field,
    x: Tensor,
    levels: Tensor | Sequence[float | Tensor],
    weights: Weights,
    *,
    history: int,
    quantity: Literal["data", "drift"] = "drift",
    transform: Callable[[Tensor], Tensor] | None = None,
    first: Tensor | None = None,
    trace: Callable[[Step], Any] | None = None,
) -> Tensor:
    """Run the loop; a step to sigma = 0 is of first order: x' = m for data, x' = x - s m for the drift.

    On a path with a time of its own, t = 0 is a level as any other.

    Args:
        weights: see `Weights`; may return fewer weights than there are values.
        history: how many values to keep.
        transform: applied to the clean estimate before it enters the history (`quantity="data"` only).
    """
    grid = read_levels(levels, x)
    kept: list[Tensor] = []
    for i in grid.steps:
        known = first if i == 0 else None
        if quantity == "drift" or trace is not None:
            data, drift = evaluate(field, x, grid.label[i], known)
            if trace is not None:
                trace(Step(i, grid.label[i], x, data, drift))
        else:
            data = clean_estimate(field, x, grid.label[i], known)
        value = drift if quantity == "drift" else data if transform is None else transform(data)
        kept = [value, *kept[: history - 1]]
        if not grid.stops_at_zero(i) or not isinstance(field.path, VE):
            scale, w = weights(grid.s, i)
            x = combine(x, scale, w, kept)
        else:
            x = value if quantity == "data" else combine(x, 1, [-grid.s[i]], [value])
    return x
