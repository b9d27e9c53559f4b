"""Adams-Bashforth weights: extrapolate the drift through the last evaluations, x' = x + h sum_k w_k e_{i-k}.

- `ipndm`: the weights of equal steps on any schedule (Zhang and Chen 2023, arXiv 2204.13902, Appendix H; Liu et al.
  2022, arXiv 2202.09778). On the polynomial schedule it beats variable weights in most published comparisons.
- `ipndm_v`: the variable-step form that published tables and ports use. Its weights of order 3 are exact for equal
  steps only, those of order 4 never; kept as it is, because the published numbers contain it.
- `ab`: exact variable-step Adams-Bashforth, w_k = (1/h) * integral over the step of the Lagrange basis on the levels.
  The same as `ipndm_v` at order 2 and as DEIS "rhoab" at every order.

All weights are ratios of level differences, so levels may be maps and may be the times of any path.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch

from samplers.path import VP
from samplers.solvers.scalar import Scalar

__all__ = [
    "EQUAL_STEPS", "Rule", "ab_weights", "deis_table", "ipndm_v_weights", "ipndm_weights", "lagrange_integrals",
]  # fmt: skip

# rule(s, i, order) -> weights of the step i, newest first, times h
Rule = Callable[[Sequence[Scalar], int, int], list[Scalar]]

NODES = 120  # Gauss-Legendre nodes per step of `deis_table`
EQUAL_STEPS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def ipndm_weights(s: Sequence[Scalar], i: int, order: int) -> list[Scalar]:
    """Weights of the step i, newest first, times h."""
    h = s[i + 1] - s[i]
    return [h * w for w in EQUAL_STEPS[order - 1]]


def ipndm_v_weights(s: Sequence[Scalar], i: int, order: int) -> list[Scalar]:
    """The published variable-step weights, times h; h, p, q, r are the newest steps, newest first."""
    h = s[i + 1] - s[i]
    if order == 1:
        return [h]
    p = s[i] - s[i - 1]
    w = [1 + h / (2 * p), -h / (2 * p)]
    if order >= 3:
        q = s[i - 1] - s[i - 2]
        a = p / q
        third = (1 - h * h / (3 * p * (p + q))) / 2
        w = [w[0] + third, w[1] - (1 + a) * third, a * third]
    if order == 4:
        r = s[i - 2] - s[i - 3]
        b = p * (p + q) / (q * (q + r))
        fourth = (1 - h / (3 * (h + p))) / 2 + (1 - h / (2 * (h + p))) * h / (6 * (h + p + q))
        fourth = fourth * h * (h + p) * (h + p + q) / (p * (p + q) * (p + q + r))
        w = [
            w[0] + fourth,
            w[1] - (1 + a + b) * fourth,
            w[2] + (a + b * (1 + q / r)) * fourth,
            -a * b * fourth,
        ]
    return [h * v for v in w]


def lagrange_integrals(nodes: Sequence[Scalar], moments: Sequence[Scalar]) -> list[Scalar]:
    """Integrals of the Lagrange basis polynomials on up to four `nodes`; `moments[j]` is that of u^j."""
    out = []
    for k, node in enumerate(nodes):
        coefficients: list[Scalar] = [1.0]  # of prod_j (u - u_j), highest power first
        scale: Scalar = 1.0
        for other in (*nodes[:k], *nodes[k + 1 :]):
            shifted = [*coefficients, 0.0]
            coefficients = [a - other * b for a, b in zip(shifted, [0.0, *coefficients], strict=True)]
            scale = scale * (node - other)
        out.append(sum(c * m for c, m in zip(coefficients, reversed(moments), strict=True)) / scale)
    return out


def ab_weights(s: Sequence[Scalar], i: int, order: int) -> list[Scalar]:
    """Exact Adams-Bashforth weights of the step i, newest first, times h."""
    # Measured from s[i]: differences of the levels themselves would cancel.
    h = s[i + 1] - s[i]
    return lagrange_integrals([s[i - k] - s[i] for k in range(order)], [h ** (j + 1) / (j + 1) for j in range(order)])


def deis_table(
    sigmas: Sequence[float],
    max_order: int,
    *,
    mode: str = "tab",
    vp_sigma_range: tuple[float, float] = (0.002, 80.0),
    quadrature_points: int | None = None,
) -> np.ndarray:
    """Coefficients `[N, max_order]` float64 of the N steps between `sigmas` `[N+1]`, newest first, zero padded.

    Args:
        quadrature_points: None: exact to rounding. A number: the plain sum over as many equidistant points of the
            published implementation, whose error is about 1e-5.
    """
    table = np.zeros((len(sigmas) - 1, max_order))
    path = VP.through(*vp_sigma_range)
    tau = path.time_of(torch.tensor(sigmas, dtype=torch.float64)).numpy()
    unit, share = _quadrature(quadrature_points)
    for i in range(len(sigmas) - 1):
        order = min(i + 1, max_order)
        if order == 1:
            table[i, 0] = sigmas[i + 1] - sigmas[i]
        elif mode == "rhoab":
            table[i, :order] = ab_weights(sigmas, i, order)
        else:
            width = tau[i + 1] - tau[i]
            t = tau[i] + width * unit
            weight = path.d_level(torch.from_numpy(t)).numpy() * share * width
            nodes = tau[i - order + 1 : i + 1][::-1]
            for k in range(order):
                others = np.delete(nodes, k)
                basis = np.prod((t[:, None] - others) / (nodes[k] - others), axis=1)
                table[i, k] = weight @ basis
    return table


@functools.cache
def _quadrature(points: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [0, 1]."""
    if points is None:
        node, weight = np.polynomial.legendre.leggauss(NODES)
        return (node + 1) / 2, weight / 2
    return np.linspace(0, 1, points), np.full(points, 1 / points)
