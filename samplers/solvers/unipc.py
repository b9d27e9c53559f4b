"""UniPC, orders 1 to 3: a predictor of the DPM-Solver++ kind and a corrector that costs no further evaluation.

The model value at the predicted state enters the corrected state and is then kept for the next step (Zhao et al. 2023,
arXiv 2302.04867, Algorithms 1 to 4, Eq. 3; variants B1(h) = h, B2(h) = expm1(h)). The corrector is left out at the last
step, where it would need an evaluation that nothing else uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from samplers.field import Field
from samplers.solvers.base import Levels, Step, combine, read_levels, require_ve, traced_estimate
from samplers.solvers.exponential import order_at, unipc_weights
from samplers.solvers.thresholding import resolve_thresholding

__all__ = ["predictor_corrector", "unipc"]


def unipc(
    field: Field,
    x: Tensor,
    levels: Tensor | Sequence[float],
    *,
    max_order: int = 3,
    predict_x0: bool = True,
    lower_order_final: bool = True,
    variant: str = "bh2",
    thresholding: str | None = None,
    first: Tensor | None = None,
    trace: Callable[[Step], Any] | None = None,
) -> Tensor:
    """Orders 1 to 3, one evaluation per step; the values traced belong to the predicted states.

    Args:
        predict_x0: extrapolate clean data, else noise.
        lower_order_final: the last step is of order 1, the one before at most 2.
        thresholding: see `samplers.solvers.thresholding.resolve_thresholding`.

    Raises:
        ValueError: levels that are maps.
    """
    require_ve(field, "unipc")
    grid = read_levels(levels, x)
    if grid.is_map:
        raise ValueError(
            "solver 'unipc' needs levels that are one number for the whole batch: use solver 'dpmpp' or 'ab' with maps"
        )
    transform = resolve_thresholding(thresholding, predict_x0, field, x)

    def weights(s: Sequence[float], i: int) -> tuple[float, list[float], list[float]]:
        order = order_at(i, len(grid.steps), max_order, lower_order_final)
        return unipc_weights(s, i, order, predict_x0, variant)

    return predictor_corrector(
        field, x, grid, weights, history=max_order, of_data=predict_x0, transform=transform, first=first, trace=trace
    )


def predictor_corrector(
    field: Field,
    x: Tensor,
    grid: Levels,
    weights: Callable[[Sequence[Any], int], tuple[Any, Sequence[Any], Sequence[Any]]],
    *,
    history: int,
    of_data: bool = True,
    transform: Callable[[Tensor], Tensor] | None = None,
    noise: Callable[[int], Tensor | None] = lambda i: None,
    first: Tensor | None = None,
    trace: Callable[[Step], Any] | None = None,
) -> Tensor:
    """Predict, evaluate there, correct with that value and keep it: one evaluation per step.

    Args:
        weights: `(levels, i)` -> scale of x, weights of the predictor and of the corrector, newest value first; without
            any for the corrector, the prediction is kept.
        history: values that the predictor uses at most.
        of_data: the values are clean data, else drifts.
        transform: applied to clean data.
        noise: of step i, added to the prediction and to the correction alike; None: nothing.
    """

    def model_value(data: Tensor, at: Tensor, i: int) -> Tensor:
        if of_data:
            return data if transform is None else transform(data)
        return field.velocity_of(data, at, grid.label[i])

    predicted = x
    data = traced_estimate(field, x, grid.label[0], first).to(x.dtype)
    kept = [model_value(data, x, 0)]
    for i in grid.steps:
        if trace is not None:
            trace(Step(i, grid.label[i], x, data, field.velocity_of(data, predicted, grid.label[i])))
        if grid.stops_at_zero(i):
            return kept[0] if of_data else data
        scale, predictor, corrector = weights(grid.s, i)
        added = noise(i)
        predicted = combine(x, scale, predictor, kept)
        predicted = predicted if added is None else predicted + added
        if i == len(grid.steps) - 1:
            return predicted
        data = traced_estimate(field, predicted, grid.label[i + 1]).to(x.dtype)
        kept = [model_value(data, predicted, i + 1), *kept]
        if corrector:
            x = combine(x, scale, corrector, kept)
            x = x if added is None else x + added
        else:
            x = predicted
        kept = kept[:history]
    return x
