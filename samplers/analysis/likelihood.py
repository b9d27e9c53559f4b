"""Likelihood of data under a model, by its flow: how dense the flow packs samples on their way to noise.

With dx/dt = v(x, t) from data to noise, log p(data) = log N(x at the noise) + the integral of div v along the way
(Song et al. 2021, arXiv 2011.13456, section 4.3). The divergence is estimated as e^T (dv/dx) e for random signs e
(Hutchinson), one draw of them a solve, so that adaptive solvers see a smooth function; its mean is the divergence. A
model in sigma coordinates is seen on the linear path.

Images of 8 bits have a density once noise of one step of their grey values is added to them, and then
bits per dimension = -log2 p / n + log2(127.5), of pixels in [-1, 1]: a bound on what coding them needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from samplers.field import Field
from samplers.path import Linear
from samplers.planning.interpolant import on_a_path, reached_times
from samplers.solvers.table import SOLVERS, solver_named
from torch_utils.rng import PerSampleRNG

LEVELS = 127.5  # grey values of a pixel per unit


class Likelihood(NamedTuple):
    """Results for every sample: log p in nats, `[B]` float64, and where its flow ends, `[B, ...]`."""

    logp: Tensor
    noise: Tensor


class _Backwards:
    """The flow from data to noise over u = 1 - t, which falls, and the integral of its divergence beside it."""

    def __init__(self, field: Field, shape: tuple[int, ...]) -> None:
        self.field, self.shape = field, shape

    def __call__(
        self, state: Tensor, u: Tensor, class_labels: Tensor | None = None, signs: Tensor | None = None, **cond: Any
    ) -> Tensor:
        """`[B, n + 1]` -> minus its slope."""
        field = replace(self.field, class_labels=class_labels, cond=cond)
        with torch.enable_grad():
            x = state[:, :-1].detach().reshape(len(state), *self.shape).requires_grad_(True)
            velocity = field.velocity(x, 1 - u)
            (along,) = torch.autograd.grad((velocity * signs).sum(), x)
        divergence = (along * signs).flatten(1).sum(1, keepdim=True)
        return -torch.cat([velocity.detach().flatten(1), divergence], dim=1)


def likelihood(
    field: Field,
    data: Tensor,
    signs: Tensor,
    *,
    solver: str = "dopri5",
    steps: int | None = None,
    times: tuple[float, float] | None = None,
    options: Mapping[str, Any] | None = None,
    count: Callable[[list[int]], Any] | None = None,
) -> Likelihood:
    """Log-likelihood of samples `[B, ...]`, where the sampler starts from standard normal noise.

    Args:
        field: a model, bound to the conditions of the samples.
        signs: like data, +1 and -1 at random.
        solver: one that can step in native time; `options` are its own.
        steps: equal steps, of a solver that does not choose its own.
        times: at the noise and at the data; default: as far as the model is defined.
        count: called with the evaluations of every sample, by adaptive solvers.

    Raises:
        ValueError: a solver that cannot, or steps of one that chooses them.
    """
    entry, field = solver_named(solver), on_a_path(field)
    if entry.adaptive != (steps is None):
        raise ValueError(
            f"solver '{solver}' " + ("chooses its steps itself: leave the number out" if entry.adaptive else
                                     "makes steps of one size: say how many")
        )  # fmt: skip
    if not entry.adaptive and not (entry.reaches_zero or solver == "euler"):
        fixed = [name for name, e in SOLVERS.items() if e.reaches_zero or e.adaptive]
        raise ValueError(f"solver '{solver}' cannot follow a flow backwards: choose from euler, {', '.join(fixed)}")
    high, low = times or reached_times(field)
    alpha, start = field.path.alpha(torch.tensor(low, dtype=torch.float64)).item(), data.double()
    shape, size = data.shape[1:], data[0].numel()
    state = torch.cat([(alpha * start).flatten(1), torch.zeros_like(start.flatten(1)[:, :1])], dim=1)
    # a velocity on some path of its own, so that solvers evaluate it wherever they like
    cond = {**field.cond, "signs": signs.double()}
    facts = replace(field.facts, native=None)
    flow = Field(_Backwards(field, shape), Linear(), "velocity", field.class_labels, cond, facts)
    levels = torch.linspace(1 - low, 1 - high, (steps or 1) + 1, dtype=torch.float64)
    more = {"count": count} if entry.adaptive else {}
    end = entry.fn(flow, state, levels, **(options or {}), **more)
    noise, gathered = end[:, :-1], end[:, -1]
    deviation = 1.0 if field.facts.native is None else field.path.sigma(torch.tensor(high, dtype=torch.float64)).item()
    normal = -0.5 * (noise / deviation).square().sum(1) - size * (0.5 * math.log(2 * math.pi) + math.log(deviation))
    return Likelihood(normal + gathered + size * math.log(alpha), noise.reshape(data.shape))


def dequantised(images: Tensor, rng: PerSampleRNG) -> Tensor:
    """Images of 8 bits `[B, ...]` uint8 as float64 in [-1, 1], spread over the steps between their values."""
    uniform = rng.rand(list(images.shape), dtype=torch.float64).to(images.device)
    return (images.double() + uniform - 0.5) / LEVELS - 1


def signs(like: Tensor, rng: PerSampleRNG) -> Tensor:
    """+1 and -1 at random, like a batch."""
    return torch.where(rng.rand(list(like.shape), dtype=torch.float64) < 0.5, -1.0, 1.0).to(like)


def bits_per_dimension(logp: Tensor, size: int) -> Tensor:
    """Bits per pixel and channel that coding dequantised images of `size` numbers needs."""
    return -logp / (size * math.log(2)) + math.log2(LEVELS)
