"""Explicit Runge-Kutta solvers with fixed steps, for any field in any coordinates.

- `midpoint` and `heun2`, order 2; `heun3`, order 3, nodes 0, 1/3, 2/3.
- `ssprk3`: strong-stability-preserving, three stages (Shu and Osher 1988): nodes 0, 1, 1/2, weights 1/6, 1/6, 2/3. The
  published samplers of IDFF run it inside of a stochastic solver whose noise is 0.
- `rk4`: the 3/8 rule, four stages, which fixed-step solvers of common libraries mean by this name.

A step to level 0 is an Euler step where the field is not defined there, as of every denoiser; a velocity in its own
time is evaluated there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from samplers.field import Field
from samplers.solvers.base import Step, combine, evaluate, network_levels, read_levels

__all__ = ["TABLEAUS", "Tableau", "heun2", "heun3", "midpoint", "rk4", "ssprk3"]


class Tableau(NamedTuple):
    """Nodes, the weights of earlier stages in each later one, and those of the result; the first stage is at 0."""

    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


TABLEAUS = {
    "midpoint": Tableau((1 / 2,), ((1 / 2,),), (0, 1)),
    "heun2": Tableau((1,), ((1,),), (1 / 2, 1 / 2)),
    "heun3": Tableau((1 / 3, 2 / 3), ((1 / 3,), (0, 2 / 3)), (1 / 4, 0, 3 / 4)),
    "ssprk3": Tableau((1, 1 / 2), ((1,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3)),
    "rk4": Tableau((1 / 3, 2 / 3, 1), ((1 / 3,), (-1 / 3, 1), (1, -1, 1)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)),
}


def _runge_kutta(
    field: Field,
    x: Tensor,
    levels: Tensor | Sequence[float | Tensor],
    *,
    tableau: Tableau,
    first: Tensor | None = None,
    trace: Callable[[Step], Any] | None = None,
) -> Tensor:
    """Integrate over the levels, one evaluation per stage; arguments as in `samplers.solvers.base`."""
    grid = read_levels(levels, x)
    for i, h in enumerate(grid.h):
        _, drift = evaluate(field, x, grid.label[i], first if i == 0 else None, trace=trace, i=i)
        if grid.stops_at_zero(i) and not field.defined_at_zero:
            return combine(x, 1, [h], [drift])
        raw, drifts = grid.raw, [drift]
        nodes = network_levels([raw[i] + c * (raw[i + 1] - raw[i]) if c < 1 else raw[i + 1] for c in tableau.nodes], x)
        for node, row in zip(nodes, tableau.stages, strict=True):
            drifts.append(field.drift(combine(x, 1, [h * w for w in row], drifts), node))
        x = combine(x, 1, [h * w for w in tableau.weights], drifts)
    return x


midpoint = functools.partial(_runge_kutta, tableau=TABLEAUS["midpoint"])
heun2 = functools.partial(_runge_kutta, tableau=TABLEAUS["heun2"])
heun3 = functools.partial(_runge_kutta, tableau=TABLEAUS["heun3"])
ssprk3 = functools.partial(_runge_kutta, tableau=TABLEAUS["ssprk3"])
rk4 = functools.partial(_runge_kutta, tableau=TABLEAUS["rk4"])
