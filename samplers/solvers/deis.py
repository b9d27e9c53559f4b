"""DEIS: Adams-Bashforth with the interpolation done in another time than the integration.

x' = x + sum_k c_k e_{i-k}, c_k the integral over the step of dsigma/dtau times the Lagrange basis on the last nodes
(Zhang and Chen 2023, arXiv 2204.13902, Eqs. 14 and 15).

- "tab": nodes in the time tau of a variance-preserving process, log(1 + sigma^2) = beta_d tau^2 / 2 + beta_min tau,
  fitted to one range of sigma (0.002 to 80 whatever the model: other constants give other samples).
- "rhoab": nodes in sigma itself, which is exact Adams-Bashforth in sigma.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from samplers.field import Field
from samplers.solvers.base import Step, read_levels, require_ve
from samplers.solvers.multistep import linear_multistep
from samplers.solvers.scalar import Scalar
from samplers.solvers.weights import ab_weights, deis_table

__all__ = ["deis"]


def deis(
    field: Field,
    x: Tensor,
    levels: Tensor | Sequence[float | Tensor],
    *,
    max_order: int = 4,
    deis_mode: str = "tab",
    deis_vp_sigma_range: tuple[float, float] = (0.002, 80.0),
    deis_quadrature_points: int | None = None,
    first: Tensor | None = None,
    trace: Callable[[Step], Any] | None = None,
) -> Tensor:
    """Orders 1 to 4, one evaluation per step; `max_order=4` with "tab" is the published tAB3."""
    require_ve(field, "deis")
    if deis_quadrature_points is not None and deis_quadrature_points < 2:
        raise ValueError(
            f"deis_quadrature_points={deis_quadrature_points} is too few: give 2 or more, or none for exact quadrature"
        )
    if deis_mode == "rhoab":

        def weights(s: Sequence[Scalar], i: int) -> tuple[Scalar, Sequence[Scalar]]:
            return 1, ab_weights(s, i, min(max_order, i + 1))

    else:
        grid = read_levels(levels, x)
        if grid.is_map:
            raise ValueError(
                "deis_mode='tab' needs levels that are one number for the whole batch: "
                "use deis_mode='rhoab' or solver 'ab' with maps"
            )
        # A step to level 0 needs no coefficients, and has none: tau(0) is outside of the process.
        sigmas = grid.s[:-1] if grid.ends_at_zero else grid.s
        table = deis_table(
            sigmas, max_order, vp_sigma_range=deis_vp_sigma_range, quadrature_points=deis_quadrature_points
        )
        rows = [row[: i + 1].tolist() for i, row in enumerate(table)]

        def weights(s: Sequence[Scalar], i: int) -> tuple[Scalar, Sequence[Scalar]]:
            return 1, rows[i]

    return linear_multistep(field, x, levels, weights, history=max_order, first=first, trace=trace)
