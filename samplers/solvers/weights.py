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

from collections.abc import Callable, Sequence

from samplers.solvers.base import Scalar

__all__ = ["EQUAL_STEPS", "Rule", "ab_weights", "ipndm_v_weights", "ipndm_weights", "lagrange_integrals"]

# rule(s, i, order) -> weights of the step i, newest first, times h
Rule = Callable[[Sequence[Scalar], int, int], list[Scalar]]

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


def lagrange_integrals(nodes: Sequence[Scalar], h: Scalar) -> list[Scalar]:
    """Integrals over [0, h] of the Lagrange basis polynomials on up to four `nodes`, in closed form."""
    out = []
    for k, node in enumerate(nodes):
        coefficients: list[Scalar] = [1.0]  # of prod_j (u - u_j), highest power first
        scale: Scalar = 1.0
        for other in (*nodes[:k], *nodes[k + 1 :]):
            shifted = [*coefficients, 0.0]
            coefficients = [a - other * b for a, b in zip(shifted, [0.0, *coefficients], strict=True)]
            scale = scale * (node - other)
        n = len(coefficients)
        out.append(sum(c * h ** (n - j) / (n - j) for j, c in enumerate(coefficients)) / scale)
    return out


def ab_weights(s: Sequence[Scalar], i: int, order: int) -> list[Scalar]:
    """Exact Adams-Bashforth weights of the step i, newest first, times h."""
    # Measured from s[i]: differences of the levels themselves would cancel.
    return lagrange_integrals([s[i - k] - s[i] for k in range(order)], s[i + 1] - s[i])
