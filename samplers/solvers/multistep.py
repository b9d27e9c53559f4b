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
from samplers.solvers.base import Step, combine, evaluate, minus, read_levels, steps_from_data, towards, traced_estimate
from samplers.solvers.scalar import Scalar

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
    from_data = quantity == "drift" and steps_from_data(field)
    kept: list[Tensor] = []  # newest first; of drifts (x - data) / s the numerators, which nobody else holds
    units: list[Scalar] = []  # what those are divided by, moved into their weights
    for i in grid.steps:
        s, label, known = grid.s[i], grid.label[i], first if i == 0 else None
        spare = kept.pop() if len(kept) == history else None
        ends = grid.stops_at_zero(i) and isinstance(field.path, VE)
        if from_data or quantity == "data":
            data = traced_estimate(field, x, label, known, trace=trace, i=i)
            if from_data and ends:
                return towards(x, data, 1)
            value = minus(x, data, spare) if from_data else data.to(x.dtype)
            value = value if transform is None else transform(value)
        else:
            _, value = evaluate(field, x, label, known, trace=trace, i=i)
        if ends:
            return value if quantity == "data" else combine(x, 1, [-s], [value])
        kept, units = [value, *kept], [1 / s if from_data else 1, *units[: history - 1]]
        scale, w = weights(grid.s, i)
        x = combine(x, scale, [a * b for a, b in zip(w, units, strict=False)], kept)
    return x
