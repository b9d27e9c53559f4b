"""DEIS: Adams-Bashforth with the interpolation done in another time than the integration.

x' = x + sum_k c_k e_{i-k}, c_k the integral over the step of dsigma/dtau times the Lagrange basis on the last nodes
(Zhang and Chen 2023, arXiv 2204.13902, Eqs. 14 and 15).

- "tab": nodes in the time tau of a variance-preserving process, log(1 + sigma^2) = beta_d tau^2 / 2 + beta_min tau,
  fitted to one range of sigma (0.002 to 80 whatever the model: other constants give other samples).
- "rhoab": nodes in sigma itself, which is exact Adams-Bashforth in sigma.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samplers.field import Field
from samplers.path import VP
from samplers.solvers.base import Scalar, Step, read_levels, require_ve
from samplers.solvers.multistep import linear_multistep
from samplers.solvers.weights import ab_weights

__all__ = ["deis", "deis_table"]

NODES = 120  # Gauss-Legendre nodes per step


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
