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
from samplers.solvers.base import Scalar, Step, expm1, log, require_ve
from samplers.solvers.multistep import linear_multistep
from samplers.solvers.thresholding import resolve_thresholding

__all__ = ["dpmpp", "dpmpp_weights", "order_at"]


def order_at(i: int, steps: int, max_order: int, lower_order_final: bool) -> int:
    """Order of step i of `steps`: grows with the history and, if asked for, falls to 1 at the last step."""
    if i + 1 < max_order:
        return i + 1
    return min(max_order, steps - i) if lower_order_final else max_order


def dpmpp_weights(s: Sequence[Scalar], i: int, order: int, predict_x0: bool) -> tuple[Scalar, list[Scalar]]:
    """Scale of x and weights of the last `order` model values, newest first."""
    lam = [-log(v) for v in s[max(i - 2, 0) : i + 2]]  # oldest first, ends at the target of the step
    step = lam[-1] - lam[-2]
    if predict_x0:
        scale, unit = s[i + 1] / s[i], -1
        p1 = expm1(-step)
        p2 = p1 / step + 1
        third = (-p2, p2 / step - 0.5)
    else:
        scale, unit = 1, -s[i + 1]
        p1 = expm1(step)
        p2 = p1 / step - 1
        third = (p2, p2 / step - 0.5)
    # x' = scale x + unit (p1 m0 + c0 d0 + c1 d1), d0 = (m0 - m1) / r0, d1 = (m1 - m2) / r1
    if order == 1:
        return scale, [unit * p1]
    r0 = (lam[-2] - lam[-3]) / step
    if order == 2:
        c0 = p1 / (2 * r0)
        return scale, [unit * (p1 + c0), -unit * c0]
    r1 = (lam[-3] - lam[-4]) / step
    f1, f2 = third
    slope = (f1 * r0 + f2) / (r0 + r1)
    c0, c1 = (f1 + slope) / r0, -slope / r1
    return scale, [unit * (p1 + c0), unit * (c1 - c0), -unit * c1]


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
