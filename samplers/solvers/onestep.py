"""One-step solvers: each step forgets the ones before it.

- `euler`: x' = x + h e, the DDIM update (Song, Meng, Ermon 2021, arXiv 2010.02502, Eq. 13, in the variables of EDM).
- `heun`: the trapezoidal rule (Karras et al. 2022, arXiv 2206.00364, Algorithm 1), corrected at every step that does
  not end at level 0. Over `[*sigmas, 0]` it is EDM's deterministic sampler.
- `dpm`: DPM-Solver-2 (Lu et al. 2022, arXiv 2206.00927, Algorithm 4): a midpoint step in log sigma for r = 1/2.

- `renoise`: x' is the clean estimate with fresh noise of the next level, as consistency models are sampled in several
  steps (Song et al. 2023, arXiv 2303.01469, Algorithm 1).

Euler, Heun and renoise work in the coordinates of any path; only Heun's result depends on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from samplers.field import Field
from samplers.solvers.base import (
    Step,
    combine,
    evaluate,
    network_levels,
    read_levels,
    recorded,
    require_ve,
    steps_from_data,
    towards,
    traced_estimate,
)
from samplers.solvers.scalar import Scalar
from samplers.start import refuse_score
from torch_utils.rng import TorchRNG

__all__ = ["dpm", "euler", "heun", "renoise"]

Trace = Callable[[Step], Any] | None


def euler(
    field: Field,
    x: Tensor,
    levels: Tensor | Sequence[float | Tensor],
    *,
    first: Tensor | None = None,
    trace: Trace = None,
) -> Tensor:
    """Order 1, one evaluation per step."""
    grid = read_levels(levels, x)
    for i, h in enumerate(grid.h):
        x = _leap(field, x, grid.s[i], grid.label[i], h, first if i == 0 else None, trace=trace, i=i)
    return x


def _leap(
    field: Field,
    x: Tensor,
    s: Scalar,
    label: Tensor,
    h: Scalar,
    known: Tensor | None = None,
    *,
    trace: Trace = None,
    i: int = 0,
) -> Tensor:
    """`x + h * drift(x, s)`, traced as step i."""
    if steps_from_data(field):
        return towards(x, traced_estimate(field, x, label, known, trace=trace, i=i), -h / s)
    _, drift = evaluate(field, x, label, known, trace=trace, i=i)
    return combine(x, 1, [h], [drift])


def heun(
    field: Field,
    x: Tensor,
    levels: Tensor | Sequence[float | Tensor],
    *,
    first: Tensor | None = None,
    trace: Trace = None,
) -> Tensor:
    """Order 2, two evaluations per step; one in a step to level 0."""
    grid = read_levels(levels, x)
    for i, h in enumerate(grid.h):
        y = _leap(field, x, grid.s[i], grid.label[i], h, first if i == 0 else None, trace=trace, i=i)
        if grid.stops_at_zero(i):
            return y
        # x + h (drift(x) + drift(y)) / 2 is the middle of x and of a second leap from y by the drift there
        z = _leap(field, y, grid.s[i + 1], grid.label[i + 1], h)
        x = torch.lerp(x, z, 0.5) if recorded(x, z) else torch.lerp(x, z, 0.5, out=z)
    return x


def renoise(
    field: Field,
    x: Tensor,
    levels: Tensor | Sequence[float | Tensor],
    *,
    rng: TorchRNG | None = None,
    trace: Trace = None,
) -> Tensor:
    """One evaluation per step; draws noise like `x` for every step that does not end at level 0."""
    refuse_score(field, "solver 'renoise'")
    grid = read_levels(levels, x)
    rng = TorchRNG(x.device) if rng is None else rng
    for i, s in enumerate(grid.s[1:]):
        data, _ = evaluate(field, x, grid.label[i], trace=trace, i=i)
        if grid.stops_at_zero(i):
            return data
        level = torch.as_tensor(s, dtype=torch.float64, device=x.device)
        x = field.path.mix(data, rng.randn(x.shape, dtype=x.dtype).to(x.device), level).to(x.dtype)
    return x


def dpm(
    field: Field,
    x: Tensor,
    levels: Tensor | Sequence[float | Tensor],
    *,
    r: float = 0.5,
    first: Tensor | None = None,
    trace: Trace = None,
) -> Tensor:
    """Order 2, two evaluations per step: the second at sigma_m = sigma_{i+1}^r sigma_i^(1-r), 0 < r <= 1."""
    require_ve(field, "dpm")
    if not 0 < r <= 1:
        raise ValueError(f"r={r} puts the middle level of solver 'dpm' outside of the step: give a number in (0, 1]")
    grid = read_levels(levels, x)
    middle = network_levels([b**r * a ** (1 - r) for a, b in pairwise(grid.raw)], x)
    reach = [b**r * a ** (1 - r) - a for a, b in pairwise(grid.s)]
    for i, h in enumerate(grid.h):
        _, drift = evaluate(field, x, grid.label[i], first if i == 0 else None, trace=trace, i=i)
        if grid.stops_at_zero(i):
            return combine(x, 1, [h], [drift])
        y = combine(x, 1, [reach[i]], [drift])
        w = h / (2 * r)
        x = combine(x, 1, [w, h - w], [field.drift(y, middle[i]), drift])
    return x
