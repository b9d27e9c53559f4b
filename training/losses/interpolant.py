"""The loss of interpolant transformers: elements of a sample at times of their own, and what to predict there.

SiT (Ma et al. 2024, arXiv 2401.08740) draws one time a sample; ComboStoc (Xie et al. 2024, arXiv 2405.13729) one for
every element, channel or position of half of the batch. With s one uniform number a sample, a one per element and p one
for the whole batch, the times of that half are (1 - p) s + p a, of the other half s.

    x_t = alpha(t) * data + sigma(t) * noise,     u = d x_t / dt,     all of it element by element
    velocity: |f - u|^2,      noise: w |f - noise|^2,      score: w |sigma f + noise|^2,      w from `WEIGHTS`
    data: |f - data|^2, of sets of parts

A velocity learnt as it is leads from such a point past the data. `compensated` adds what the way to the data has at
right angles to u, so that elements that lag behind are told to hurry (paper, eq. 10).

The papers count time from noise to data. Here it runs from data to noise, so their velocities change sign and their t
is 1 - t; squares, and thus losses, are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from samplers.path import Linear, Path
from torch_utils.misc import expand_to
from torch_utils.rng import TorchRNG

PREDICTIONS = ("velocity", "noise", "score", "data")
UNBOUNDED = 1e15  # beyond what a shortest distance of 1e-5 from the ends gives, below what rounding leaves of a pole
COMPENSATION = ("linear-only", "reference", "off")

# Which axes of `[N, C, H, W]` draw times of their own; the others share one. Names of the published command line.
SPLITS: dict[str, tuple[bool, ...]] = {
    "UNSYNC_NONE": (False, False, False),
    "UNSYNC_VEC": (True, False, False),
    "UNSYNC_PATCH": (False, True, True),
    "UNSYNC_ALL": (True, True, True),
}
# The same of `[N, L, V]`, L parts of V numbers; in between, groups of numbers share one ("att", attributes).
PART_SPLITS: dict[str, tuple[bool, ...]] = {
    "UNSYNC_NONE": (False, False),
    "UNSYNC_PART": (True, False),
    "UNSYNC_ATT": (False, True),
    "UNSYNC_ATT_PART": (True, True),
    "UNSYNC_VEC": (False, True),
    "UNSYNC_ALL": (True, True),
}
BY_GROUP = ("UNSYNC_ATT", "UNSYNC_ATT_PART")


def split_shape(split: str, shape: Sequence[int], groups: Sequence[int] = ()) -> tuple[int, ...]:
    """Shape of the times that a batch of `shape` draws under a split.

    Args:
        shape: `[N, C, H, W]`, or `[N, L, V]` of parts.
        groups: numbers of a part by group; () of images.

    Raises:
        ValueError: an unknown split.
    """
    known = PART_SPLITS if groups else SPLITS
    if split not in known:
        raise ValueError(
            f"there is no time split '{split}' of {'parts' if groups else 'images'}: choose from {', '.join(known)}"
        )
    sizes = [*shape[1:-1], len(groups)] if split in BY_GROUP else shape[1:]
    return (shape[0], *(n if o else 1 for n, o in zip(sizes, known[split], strict=True)))


def make_times(
    shared: Tensor, own: Tensor, progress: Tensor | float, asynchronous: Tensor, *, halves: bool = True,
    blend: bool = True, interval: tuple[float, float] = (0.0, 1.0),
) -> Tensor:  # fmt: skip
    """Times of a batch, in the shape of `own`.

    Args:
        shared: `[N, 1, ...]` uniform numbers, one a sample.
        own: uniform numbers `[N, ...]` in the shape of the split.
        progress: the number p of the blend, one for all.
        asynchronous: `[N]` bool, the samples whose elements keep times of their own.
        halves: the other samples take the shared time; else all keep their own.
        blend: move from shared times to own ones by p.
        interval: what the uniform numbers are mapped to, lowest time first.
    """
    low, high = interval
    shared, own = (low + (high - low) * u for u in (shared, own))
    if halves:
        own = torch.where(expand_to(asynchronous, own), own, shared)
    return torch.lerp(shared.expand_as(own), own, progress) if blend else own


class Times(NamedTuple):
    """Times `[N, ...]` in this project's direction, and which samples keep times of their own, `[N]` bool."""

    t: Tensor
    asynchronous: Tensor


def draw_times(
    rng: TorchRNG,
    shape: Sequence[int],
    split: str | None,
    interval: tuple[float, float],
    *,
    halves: bool = True,
    blend: bool = True,
    groups: Sequence[int] = (),
) -> Times:
    """Times of a training batch; draws s, then a, then p.

    Every second position of the global batch keeps times of its own: half of it, as published, and half of what each
    process has.

    Args:
        rng: of the batch.
        shape: of the batch, `[N, C, H, W]`, or `[N, L, V]` of parts.
        split: key of SPLITS or PART_SPLITS; None: one uniform time per sample.
        interval: times at the noise and at the data, see `time_interval`.
        halves, blend: as of `make_times`.
        groups: as of `split_shape`.
    """
    shared = rng.rand([shape[0], *[1] * (len(shape) - 1)])
    own_rows = torch.tensor([p % 2 == 1 or not halves for p in rng.positions(shape[0])], device=shared.device)
    first, last = 1 - interval[0], 1 - interval[1]  # make_times counts from the noise
    if split is None:
        return Times(1 - (first + (last - first) * shared), torch.zeros_like(own_rows))
    own = rng.rand(split_shape(split, shape, groups))
    if split in BY_GROUP:
        own = own.repeat_interleave(torch.tensor(groups, device=own.device), dim=-1)
    progress = rng.rand_shared() if blend else 1.0
    u = make_times(shared, own, progress, own_rows, halves=halves, blend=blend, interval=(first, last))
    return Times(1 - u, own_rows)


def compensated(target: Tensor, data: Tensor, x_t: Tensor, rows: Tensor) -> Tensor:
    """The velocity target with the part of the way to the data that is orthogonal to it added, in some rows.

    For d = data - x_t the target `u`, towards the noise, becomes u - (d - <d, u> u / <u, u>).

    Args:
        target, data, x_t: `[N, ...]`.
        rows: `[N]` bool, the samples to change.
    """
    way, u = data - x_t, target.flatten(1)
    share = (way.flatten(1) * u).sum(1) / u.square().sum(1)
    return torch.where(expand_to(rows, target), target - way + expand_to(share, target) * target, target)


# weight of the noise and score losses -> function of (path, t); "velocity" makes them equal to the velocity loss
WEIGHTS: dict[str, Callable[[Path, Tensor], Tensor]] = {
    "velocity": lambda path, t: (path.score_gain(t) / path.sigma(t)).square(),
    "likelihood": lambda path, t: path.score_gain(t) / path.sigma(t).square(),
}


class Target(NamedTuple):
    """A batch as the network meets it: data, `x_t` and the velocity there, raw and as it should be learnt."""

    data: Tensor
    x_t: Tensor
    raw: Tensor
    velocity: Tensor


@dataclass(frozen=True)
class InterpolantLoss:
    """The loss of a batch whose times are known.

    Attributes:
        path: of the model.
        predicts: one of PREDICTIONS.
        weight: key of WEIGHTS, for noise and score; None: 1. The other losses have no weight.
        compensation: "reference": of every path, as published; "linear-only": where velocity and way to the data are
            parallel for equal times, so that these stay as they are; "off".

    Raises:
        ValueError: unknown words, or a weight given for the velocity.
    """

    path: Path
    predicts: str = "velocity"
    weight: str | None = None
    compensation: str = "linear-only"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("prediction", self.predicts, PREDICTIONS), ("loss weight", self.weight, (None, *WEIGHTS)),
            ("compensation", self.compensation, COMPENSATION),
        ):  # fmt: skip
            if value not in allowed:
                raise ValueError(f"{name} '{value}' is unknown: choose from {', '.join(map(str, allowed))}")
        if self.weight is not None and self.predicts in ("velocity", "data"):
            raise ValueError(
                f"the loss weight {self.weight} is for noise and score: the {self.predicts} loss has none, leave it out"
            )

    def check(self, interval: tuple[float, float]) -> None:
        """Refuse times at which what is learnt, or its weight, has no bound.

        Args:
            interval: times at the noise and at the data.

        Raises:
            ValueError: it says at which time.
        """
        for time, end in zip(interval, ("noise", "data"), strict=True):
            t = torch.tensor(time, dtype=torch.float64)
            if self.predicts == "velocity":
                size = self.path.d_alpha(t).abs() + self.path.d_sigma(t).abs()
            else:
                size = torch.zeros_like(t) if self.weight is None else WEIGHTS[self.weight](self.path, t)
            if not size < UNBOUNDED:
                what = "velocity" if self.weight is None else f"{self.predicts} loss with the weight {self.weight}"
                raise ValueError(
                    f"the {what} has no bound on the {type(self.path).__name__} path at t = {time:g}, the {end}: leave "
                    "--train-eps out, or make it larger"
                )

    @property
    def compensates(self) -> bool:
        """Whether targets of asynchronous samples are changed."""
        if self.predicts != "velocity" or self.compensation == "off":
            return False
        return self.compensation == "reference" or isinstance(self.path, Linear)

    def target(self, data: Tensor, noise: Tensor, t: Tensor, asynchronous: Tensor) -> Target:
        """State and velocity at times `t`, which broadcast against `data [N, ...]`; `asynchronous [N]` bool."""
        x_t, raw = self.path.mix(data, noise, t), self.path.target(data, noise, t, "velocity").expand_as(data)
        return Target(data, x_t, raw, compensated(raw, data, x_t, asynchronous) if self.compensates else raw)

    def __call__(self, output: Tensor, target: Target, noise: Tensor, t: Tensor) -> Tensor:
        """Loss per sample `[N]`, the mean over its elements, of what the network said at `target.x_t`."""
        if self.predicts in ("velocity", "data"):
            error = (output - (target.data if self.predicts == "data" else target.velocity)).square()
        else:
            t = expand_to(t, noise)
            error = (output - noise if self.predicts == "noise" else self.path.sigma(t) * output + noise).square()
            if self.weight is not None:
                error = WEIGHTS[self.weight](self.path, t) * error
        return error.flatten(1).mean(1)
