"""A stochastic Runge-Kutta solver of strong order 1.5 for noise whose amplitude depends on time alone.

Roessler 2010 (SIAM J. Numer. Anal. 48(3)), method SRID2, as the published samplers of IDFF use it: three evaluations
per step (their program makes ten, seven of which repeat or are not used). Each step takes the increment W of a Brownian
motion and its integral U over the step. Without noise it is `ssprk3`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from samplers.field import Field
from samplers.solvers.base import Step, combine, evaluate, network_levels, read_levels
from torch_utils.rng import TorchRNG

__all__ = ["Increment", "srid2"]

# Weights of W, I11 / sqrt(h), U / h and I111 / h for the amplitudes at 0, 1/4, 1 and 1/4 of the step.
_NODES = (0.0, 0.25, 1.0, 0.25)
_W, _I11, _U, _I111 = (-1, 4 / 3, 2 / 3, 0), (1, -4 / 3, 1 / 3, 0), (2, -4 / 3, -2 / 3, 0), (-2, 5 / 3, -2 / 3, 1)


class Increment(NamedTuple):
    """A Brownian motion over one step of length h: W ~ N(0, h), and U, the integral of W_s - W_t over the step."""

    W: Tensor
    U: Tensor


def _draw(rng: TorchRNG, x: Tensor, h: float) -> Increment:
    w = math.sqrt(h) * rng.randn(x.shape, dtype=x.dtype).to(x.device)
    bridge = math.sqrt(h / 12) * rng.randn(x.shape, dtype=x.dtype).to(x.device)
    return Increment(w, h * (w / 2 + bridge))


def srid2(
    field: Field,
    x: Tensor,
    levels: Tensor | Sequence[float],
    *,
    diffusion: Callable[[Tensor], Tensor] | None = None,
    rng: TorchRNG | None = None,
    increments: Sequence[Increment] | None = None,
    trace: Callable[[Step], Any] | None = None,
) -> Tensor:
    """dx = drift dt + diffusion dW from `levels[0]` down to `levels[-1]`.

    Args:
        field: a model whose velocity is the drift, in its own time.
        x: `[B, ...]` at `levels[0]`.
        levels: times that fall, numbers.
        diffusion: amplitude of the noise at a time `[]` float64; None: no noise, nothing is drawn.
        rng: source of two normal draws like `x` per step.
        increments: one per step instead.
        trace: called with a `Step` before each update.

    A last step to 0 of a field that is not defined there is an Euler step without noise: it lands on the data.

    Raises:
        ValueError: levels that differ between elements.
    """
    grid = read_levels(levels, x)
    if grid.is_map:
        raise ValueError("solver 'srid2' steps over single times, and the levels given differ between elements")
    rng = TorchRNG(x.device) if rng is None else rng
    for i, step in enumerate(grid.h):
        h, start = -step, grid.s[i]
        _, drift = evaluate(field, x, grid.label[i], trace=trace, i=i)
        if grid.stops_at_zero(i) and not field.defined_at_zero:
            return combine(x, 1, [step], [drift])
        one = None
        if diffusion is not None:
            one = _draw(rng, x, h) if increments is None else increments[i]
            amplitude = [float(diffusion(torch.tensor(start + c * step, dtype=torch.float64))) for c in _NODES]
        end, middle = network_levels([grid.s[i + 1], start + 0.5 * step], x)
        drifts = [drift, field.drift(combine(x, 1, [step], [drift]), end)]
        y = combine(x, 1, [step / 4, step / 4], drifts)
        if one is not None:
            y = combine(y, 1, [(amplitude[0] + amplitude[1] / 2) / h], [one.U])
        drifts.append(field.drift(y, middle))
        x = combine(x, 1, [step / 6, step / 6, 2 * step / 3], drifts)
        if one is not None:
            x = x + _noise(one, amplitude, h)
    return x


def _noise(one: Increment, amplitude: Sequence[float], h: float) -> Tensor:
    """What the noise adds over a step."""
    weight = [sum(g * w for g, w in zip(amplitude, row, strict=True)) for row in (_W, _I11, _U, _I111)]
    w = one.W
    twice, thrice = (w.square() - h) / 2, (w**3 - 3 * h * w) / 6
    return weight[0] * w + weight[1] / math.sqrt(h) * twice + weight[2] / h * one.U + weight[3] / h * thrice
