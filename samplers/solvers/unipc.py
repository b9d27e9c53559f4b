"""UniPC, orders 1 to 3: a predictor of the DPM-Solver++ kind and a corrector that costs no further evaluation.

The model value at the predicted state enters the corrected state and is then kept for the next step (Zhao et al. 2023,
arXiv 2302.04867, Algorithms 1 to 4, Eq. 3; variants B1(h) = h, B2(h) = expm1(h)). The corrector is left out at the last
step, where it would need an evaluation that nothing else uses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from samplers.field import Field
from samplers.solvers.base import Step, combine, read_levels, require_ve, traced_estimate
from samplers.solvers.dpmpp import order_at
from samplers.solvers.thresholding import resolve_thresholding

__all__ = ["unipc", "unipc_weights"]


def unipc_weights(
    s: Sequence[float], i: int, order: int, predict_x0: bool, variant: str
) -> tuple[float, list[float], list[float]]:
    """Scale of x; predictor weights of the last `order` values, newest first; corrector weights, new value first."""
    lam = [-math.log(s[i - k]) for k in range(order)]
    step = -math.log(s[i + 1]) - lam[0]
    w = -step if predict_x0 else step
    f = math.expm1(w)
    b_of_h = w if variant == "bh1" else f
    r = np.array([(v - lam[0]) / step for v in lam[1:]] + [1.0])
    psi, b = f / w - 1, []
    for j in range(1, order + 1):
        b.append(math.factorial(j) * psi / b_of_h)
        psi = psi / w - 1 / math.factorial(j + 1)
    matrix = r[None, :] ** np.arange(order)[:, None]
    # Orders with one unknown use the limit 1/2 instead of the solution, as published.
    predict = np.linalg.solve(matrix[:-1, :-1], b[:-1]) if order > 2 else np.full(order - 1, 0.5)
    correct = np.linalg.solve(matrix, b) if order > 1 else np.array([0.5])

    unit = 1.0 if predict_x0 else s[i + 1]
    old = -unit * b_of_h * predict / r[:-1]
    predictor = [-unit * f - old.sum(), *old]
    new = -unit * b_of_h * correct / r  # the last belongs to the new value, r = 1
    corrector = [new[-1], -unit * f - new.sum(), *new[:-1]]
    scale = s[i + 1] / s[i] if predict_x0 else 1.0
    return scale, [float(v) for v in predictor], [float(v) for v in corrector]


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
    steps = len(grid.steps)

    def model_value(data: Tensor, at: Tensor, i: int) -> Tensor:
        if predict_x0:
            return data if transform is None else transform(data)
        return field.velocity_of(data, at, grid.label[i])

    predicted = x
    data = traced_estimate(field, x, grid.label[0], first).to(x.dtype)
    kept = [model_value(data, x, 0)]
    for i in grid.steps:
        if trace is not None:
            trace(Step(i, grid.label[i], x, data, field.velocity_of(data, predicted, grid.label[i])))
        if grid.stops_at_zero(i):
            return kept[0] if predict_x0 else data
        order = order_at(i, steps, max_order, lower_order_final)
        scale, predictor, corrector = unipc_weights(grid.s, i, order, predict_x0, variant)
        predicted = combine(x, scale, predictor, kept)
        if i == steps - 1:
            return predicted
        data = traced_estimate(field, predicted, grid.label[i + 1]).to(x.dtype)
        kept = [model_value(data, predicted, i + 1), *kept]
        x = combine(x, scale, corrector, kept)
        kept = kept[:max_order]
    return x
