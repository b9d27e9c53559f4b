"""Graded control: every element of a sample keeps as much of a reference as asked, by models that take element times.

An element of strength m starts at time 1 - m of its path between the reference and noise, so that m = 0 is generated
and m = 1 is the reference (Xie et al. 2024, arXiv 2405.13729). Between start and data all elements move at once:

- in a common number of steps, t = (1 - m) l for a progress l from 1 to 0. With dx/dl = (1 - m) v(x, t) this is a flow
  of one scalar time, so every solver, every schedule and every search takes it as it takes a model (`progress_field`);
- in steps of a common size, t = max(l - m, 0): elements of large m arrive early (`common_steps`);
- with noise along the way, dx = (v + D s) dt + sqrt(2 D dt) w with D, the score s and dt of each element's own time
  (`stochastic_steps`).

Such models are trained on velocities that hurry elements which lag: u (1 + t - mean t), where the way to the data is
along u. Divided by that factor, what is predicted leads to the data, not past it (`inverse`).

Models of one time a sample have no such starts. There, elements are replaced by the noised reference until the time
1 - m and are then free (`replaced`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from samplers.field import Field
from samplers.path import VE, Linear
from samplers.solvers.base import Step
from samplers.solvers.interpolant import interpolant_sde, time_interval
from samplers.solvers.table import SOLVERS
from torch_utils.misc import expand_to

__all__ = ["ONE_STEP", "common_steps", "progress_field", "replaced", "start_from", "stochastic_steps"]

ONE_STEP = ("euler", "heun", "midpoint", "heun2", "heun3", "ssprk3", "rk4")  # whose steps may end at different levels
LEAST = 1e-3  # of the factor that is divided by
NEAREST = 1e-6  # to the data that an element is on its way: the score there is a ratio of zeros


def start_from(field: Field, reference: Tensor, noise: Tensor, keep: Tensor) -> Tensor:
    """The state `[B, ...]` between reference and noise at the strengths `keep`, which broadcast to it."""
    keep = keep.to(noise)
    return torch.where(keep > 0, field.native().path.mix(reference.to(noise), noise, 1 - keep), noise)


class _Elements:
    """The velocity of a model at a time for every element, called like a network that predicts it."""

    def __init__(self, field: Field, inverse: bool) -> None:
        self.field, self.inverse = field.native(), inverse
        self.high, self.low = time_interval(self.field.path, self.field.predicts)

    def __call__(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None, **cond: Any) -> Tensor:
        """`t` broadcasts to x; where noise or score leave an end undefined, a time close by is taken."""
        t = expand_to(t, x).to(x.dtype)
        field = replace(self.field, class_labels=class_labels, cond=cond)
        velocity = field.velocity(x, t.clamp(self.low, self.high))
        if not self.inverse or t.ndim < 2:
            return velocity
        return velocity / (1 + t - t.flatten(1).mean(1).reshape(-1, *[1] * (t.ndim - 1))).clamp(min=LEAST)


class _Progress:
    """dx/dl of a model whose elements are at (1 - keep) l."""

    def __init__(self, elements: _Elements, keep: Tensor) -> None:
        self.elements, self.free = elements, 1 - keep

    def __call__(self, x: Tensor, level: Tensor, class_labels: Tensor | None = None, **cond: Any) -> Tensor:
        free = self.free.to(x)
        velocity = self.elements(x, free * expand_to(level, x).to(x.dtype), class_labels, **cond)
        return free * velocity


def progress_field(field: Field, keep: Tensor, *, inverse: bool = False) -> Field:
    """A model as the flow of its progress: one scalar time, on the linear path, from `start_from` to the data.

    Args:
        field: a model that takes a time for every element.
        keep: strengths in [0, 1], `[1, ...]` and broadcasting to a sample.
        inverse: undo what compensated training adds to velocities.

    Raises:
        ValueError: a model of one time a sample.
    """
    own = field.native()
    _check(own)
    facts = replace(own.facts, start="exact", priors=(), native=None)
    return Field(_Progress(_Elements(own, inverse), keep), Linear(), "velocity", own.class_labels, own.cond, facts)


def common_steps(
    field: Field,
    x: Tensor,
    times: Tensor | Sequence[float],
    keep: Tensor,
    *,
    solver: str = "euler",
    inverse: bool = False,
    trace: Callable[[Step], Any] | None = None,
    **options: Any,
) -> Tensor:
    """From `start_from` to the data in steps of one size for all elements.

    Args:
        field, keep, inverse: as of `progress_field`.
        x: `[B, ...]`.
        times: from 1 to 0, of an element of strength 0.
        solver: one of ONE_STEP; `options` are its own.
        trace: called with a `Step` before each update.

    Raises:
        ValueError: also another solver.
    """
    own = field.native()
    _check(own)
    if solver not in ONE_STEP:
        raise ValueError(
            f"solver '{solver}' needs steps that all elements make together: choose from {', '.join(ONE_STEP)}, or "
            "steps of a common number"
        )
    keep = keep.double().expand(-1, *x.shape[1:])
    levels = [(t - keep).clamp(min=0) for t in times]
    return SOLVERS[solver].fn(_elements_of(own, inverse), x, levels, trace=trace, **options)


def stochastic_steps(
    field: Field,
    x: Tensor,
    levels: Sequence[float],
    keep: Tensor,
    *,
    inverse: bool = False,
    **options: Any,
) -> Tensor:
    """From `start_from` to the data in a common number of steps of the stochastic interpolant sampler.

    Elements of strength 1 stay as they are, but for a last step from `NEAREST`.

    Args:
        field, keep, inverse: as of `progress_field`.
        x: `[B, ...]`.
        levels: progress, falling as the times of `interpolant_sde`, whose `options` are the others.

    Raises:
        ValueError: a model of one time a sample.
    """
    own = field.native()
    _check(own)
    free = 1 - keep.double().expand(-1, *x.shape[1:])
    maps = [(free * level).clamp(min=NEAREST if level else 0) for level in levels]
    return interpolant_sde(_elements_of(own, inverse), x, maps, **options)


def _elements_of(own: Field, inverse: bool) -> Field:
    return Field(_Elements(own, inverse), own.path, "velocity", own.class_labels, own.cond, own.facts)


def _check(field: Field) -> None:
    if not field.facts.element_times or isinstance(field.path, VE):
        raise ValueError(
            "this model has one time a sample, and elements of different strength need their own: see replaced"
        )


class _Replaced:
    """Velocities of a model that predicts them, else clean estimates; those of a reference where it is still held."""

    def __init__(self, field: Field, keep: Tensor) -> None:
        self.field, self.keep = field, keep

    def __call__(
        self, x: Tensor, level: Tensor, class_labels: Tensor | None = None, reference: Tensor | None = None, **cond: Any
    ) -> Tensor:
        own, level = replace(self.field, class_labels=class_labels, cond=cond), torch.as_tensor(level, device=x.device)
        if own.predicts == "velocity":  # what is held up to the data, where that is 0 / 0, is put there at the end
            found, held = own.velocity(x, level), own.velocity_of(reference.to(x), x, level.clamp(min=NEAREST))
        else:
            found, held = own.data(x, level), reference
        sigma = expand_to(self.field.path.level_at(level.double()), x)
        keep = self.keep.to(sigma)
        return torch.where(keep * (1 + sigma) >= 1, held.to(found), found)


def replaced(field: Field, keep: Tensor) -> Field:
    """Any model, with elements of strength m replaced until the level sigma = (1 - m) / m, where m of the way is done.

    Bind the reference to the result: `replaced(field, keep).bind(labels, reference=reference)`.
    """
    own = field.native()
    facts = replace(own.facts, native=None)
    predicts = "velocity" if own.predicts == "velocity" else "data"
    return Field(_Replaced(own, keep), own.path, predicts, own.class_labels, own.cond, facts)
