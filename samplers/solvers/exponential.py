"""Weights of exponential integrators in lambda = -log sigma: DPM-Solver++, UniPC, and exact Adams weights (RES, SA).

In lambda the flow is dx/dlambda = data - x. Its stochastic relatives, which share the marginals (Xue et al. 2023, arXiv
2309.05019, Eq. 9), are dx = (1 + tau^2) (data - x) dlambda + tau sqrt(2) sigma dw: for constant tau and a = 1 + tau^2,

    x' = exp(-a h) x + integral_0^h a exp(-a (h - u)) data(u) du + sigma' sqrt(1 - exp(-2 tau^2 h)) noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from samplers.solvers.scalar import Scalar, expm1, log
from samplers.solvers.weights import lagrange_integrals

__all__ = ["dpmpp_weights", "exponential_weights", "order_at", "sa_weights", "unipc_weights"]


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


def exponential_weights(
    s: Sequence[Scalar], i: int, order: int, tau: float = 0.0, implicit: bool = False
) -> tuple[Scalar, list[Scalar]]:
    """Scale of x and exact weights of the clean estimates at `order` levels, newest first, for the step i.

    Args:
        order: at most three values of the past; one more with `implicit`.
        tau: strength of the noise.
        implicit: the newest value is the one at the end of the step (Adams-Moulton), else at its start.
    """
    a = 1 + tau * tau
    h = log(s[i]) - log(s[i + 1])
    nodes = [log(s[i]) - log(s[i + implicit - k]) for k in range(order)]
    moments = [-expm1(-a * h)]  # of a exp(-a (h - u))
    for j in range(1, order):
        moments.append(h**j - moments[-1] * j / a)
    return 1 - moments[0] if tau else s[i + 1] / s[i], lagrange_integrals(nodes, moments)


def sa_weights(
    s: Sequence[float], i: int, max_order: int, corrector_order: int, tau: float
) -> tuple[float, list[float], list[float]]:
    """Scale of x, weights of the predictor, and of the corrector with the new value first."""
    scale, predictor = exponential_weights(s, i, min(max_order, i + 1), tau)
    if corrector_order == 0:
        return scale, predictor, []
    return scale, predictor, exponential_weights(s, i, min(corrector_order, i + 2), tau, implicit=True)[1]
