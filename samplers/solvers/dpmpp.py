"""DPM-Solver++ multistep, orders 1 to 3: an exponential integrator in lambda = -log sigma.

Clean-data form (Lu et al. 2022, arXiv 2211.01095, Eq. 9 and Algorithm 2): x' = (s'/s) x - p1 m0 + p2 F1 - p3 F2 with
H = lambda' - lambda, p1 = expm1(-H), p2 = p1/H + 1, p3 = p2/H - 1/2. Noise form (DPM-Solver, arXiv 2206.00927):
x' = x - s' (p1 m0 + p2 F1 + p3 F2) with p1 = expm1(H), p2 = p1/H - 1, p3 = p2/H - 1/2. F1 and F2 are divided
differences of the last model values; here they are expanded, so that a step is one weighted sum. Order 3 is kept as
published: its F2 is half of what a third-order step needs, so it converges with order 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from samplers.field import Field
from samplers.solvers.base import Step, require_ve
from samplers.solvers.exponential import dpmpp_weights, order_at
from samplers.solvers.multistep import linear_multistep
from samplers.solvers.scalar import Scalar
from samplers.solvers.thresholding import resolve_thresholding

__all__ = ["dpmpp"]


def dpmpp(
    field: Field,
    x: Tensor,
    levels: Tensor | Sequence[float | Tensor],
    *,
    max_order: int = 3,
    predict_x0: bool = True,
    lower_order_final: bool = True,
    thresholding: str | None = None,
    first: Tensor | None = None,
    trace: Callable[[Step], Any] | None = None,
) -> Tensor:
    """Orders 1 to 3, one evaluation per step.

    Args:
        predict_x0: extrapolate clean data, else noise.
        lower_order_final: the last step is of order 1, the one before at most 2.
        thresholding: see `samplers.solvers.thresholding.resolve_thresholding`.
    """
    require_ve(field, "dpmpp")
    transform = resolve_thresholding(thresholding, predict_x0, field, x)
    steps = len(levels) - 1

    def weights(s: Sequence[Scalar], i: int) -> tuple[Scalar, list[Scalar]]:
        return dpmpp_weights(s, i, order_at(i, steps, max_order, lower_order_final), predict_x0)

    return linear_multistep(
        field, x, levels, weights, history=max_order, quantity="data" if predict_x0 else "drift",
        transform=transform, first=first, trace=trace,
    )  # fmt: skip
