"""Where sampling starts: from noise at a finite level, or exactly at infinite sigma; and what dependent noise forbids.

A flow model knows the end of its path, where alpha = 0 and sigma = 1: the state there is the noise itself, at infinite
sigma. One evaluation gives E[data | noise] and the first finite level is reached by the Euler step

    x = E[data | noise] + sigma_1 * noise,

which costs one evaluation and has no error that more steps could not remove. Starting at sigma_max * noise instead
leaves out E[data | noise], an error of |data| / (1 + sigma_max) that stays. Where noise was drawn depending on the data
(Lee, Kim, Ye 2023, arXiv 2301.12003) E[data | noise] differs between samples and matters more. Such models also have no
score: what is built on one is refused.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from samplers.choices import STARTS
from samplers.field import Field
from samplers.path import BrownianBridge, Linear, Trig
from torch_utils.misc import expand_to


class Chunk(NamedTuple):
    """Samples about to be made: the field in VE coordinates, bound to their conditions, and the noise `[b, ...]`."""

    field: Field
    noise: Tensor


def starts_exactly(field: Field, start: str | None = None) -> bool:
    """Whether sampling starts at infinite sigma.

    Args:
        start: "exact", "scaled", or None: what the model says of itself.

    Raises:
        ValueError: another word, or "exact" for a model whose path has no end.
    """
    if start not in (None, *STARTS):
        raise ValueError(f"start '{start}' is unknown: choose from {', '.join(STARTS)}")
    if (start or field.facts.start) != "exact":
        return False
    path = field.native().path
    if not isinstance(path, Linear | Trig | BrownianBridge):
        raise ValueError(
            "start='exact' needs a model whose path ends in noise alone (linear, trig, bridge), and this one lives on "
            f"{type(path).__name__}: use start='scaled'"
        )
    return True


def refuse_guess(afs: bool, exact: bool) -> None:
    """Raise a ValueError where the analytical first step is asked of a sampler that starts exactly."""
    if afs and exact:
        raise ValueError("afs guesses the drift that the exact start knows: leave out afs or say start='scaled'")


def exact_start(field: Field, noise: Tensor, level: Tensor | float) -> Tensor:
    """The state in VE coordinates at the first finite `level`, one evaluation from infinite sigma.

    Args:
        noise: `[B, ...]`, as the model starts from.
        level: number, `[B]`, or a map that broadcasts to noise.
    """
    end = torch.ones((), dtype=torch.float64, device=noise.device)
    own = field.native()
    level = expand_to(torch.as_tensor(level, dtype=torch.float64, device=noise.device), noise)
    return own.data(noise, end) + level.to(noise.dtype) / own.path.end * noise


def start_state(field: Field, noise: Tensor, level: Tensor | float, start: str | None = None) -> Tensor:
    """The state in VE coordinates at the first `level`, a number or a map: exact, or `level * noise`."""
    if starts_exactly(field, start):
        return exact_start(field, noise, level)
    return noise * ((level.to(noise.dtype) if isinstance(level, Tensor) else level) / field.native().path.end)


def start_noise(field: Field, noise: Tensor, prior: str | None = None) -> Tensor:
    """Unit noise `[B, ...]` as noise that the model starts from; `prior` is one of `field.facts.priors`."""
    change = field.facts.start_noise
    return noise if change is None else change(noise, prior)


def refuse_score(field: Field, what: str) -> None:
    """Raise a ValueError where `what` needs noise that is Gaussian and independent of the data, and it was not."""
    if not field.facts.gaussian_noise:
        raise ValueError(
            f"{what} needs a model whose noise is Gaussian and independent of the data; this one was trained on "
            "noise coupled to the data, so it has no score and no fixed range: leave it out, or train with an "
            "independent coupling"
        )
