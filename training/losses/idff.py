"""Bridges between noise and data, and the losses of IDFF: clean data from one head, a scaled score from the other.

    x_t = mean_t(data, noise) + std_t * eps,          loss = w E[W(t) |x - data|^2] + E|lambda(t) s + target|^2

with (x, s) the network's two heads at x_t and eps or the noise itself as target of the second (arXiv 2409.14599). With
eps, s estimates sigma^2 / 2 times the score of x_t, as in simulation-free Schroedinger bridges (Tong et al. 2023, arXiv
2307.03672, which also has the other bridges; 2302.00482). Time runs from data (0) to noise (1); the papers count the
other way round, so their velocities change sign.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from torch_utils.misc import expand_to

_TINY = 1e-8  # in denominators that published code guards so


class State(NamedTuple):
    """A batch on its way: `[B, ...]` each; std `[B, 1, ...]`. `velocity` is d x_t / d t given both ends."""

    x: Tensor
    mean: Tensor
    std: Tensor
    velocity: Tensor


class _Form(NamedTuple):
    """A bridge as functions of time: shares of data and noise in the mean, deviation, and velocity.

    velocity: `(data, noise, x - mean, x, t, sigma)`.
    """

    shares: Callable[[Tensor, float], tuple[Tensor, Tensor]]
    std: Callable[[Tensor, float], Tensor]
    velocity: Callable[..., Tensor]


def _straight(t: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    return 1 - t, t


def _constant(t: Tensor, sigma: float) -> Tensor:
    return torch.full_like(t, sigma)


def _brownian(t: Tensor, sigma: float) -> Tensor:
    return sigma * (t * (1 - t)).sqrt()


def _difference(data: Tensor, noise: Tensor, offset: Tensor, x: Tensor, t: Tensor, sigma: float) -> Tensor:
    return noise - data


def _pinned(data: Tensor, noise: Tensor, offset: Tensor, x: Tensor, t: Tensor, sigma: float) -> Tensor:
    """The target with the drift of the Brownian bridge's own deviation."""
    return (1 - 2 * t) / (2 * t * (1 - t) + _TINY) * offset + noise - data


def _to_target(data: Tensor, noise: Tensor, offset: Tensor, x: Tensor, t: Tensor, sigma: float) -> Tensor:
    return ((1 - sigma) * x - data) / (1 - (1 - sigma) * (1 - t))


def _circle(t: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    return (0.5 * math.pi * t).cos(), (0.5 * math.pi * t).sin()


def _along_circle(data: Tensor, noise: Tensor, offset: Tensor, x: Tensor, t: Tensor, sigma: float) -> Tensor:
    angle = 0.5 * math.pi * t
    return 0.5 * math.pi * (angle.cos() * noise - angle.sin() * data)


BRIDGES: dict[str, _Form] = {
    "idff": _Form(_straight, _brownian, _difference),
    "independent": _Form(_straight, _constant, _difference),
    "target": _Form(
        lambda t, sigma: (1 - t, torch.zeros_like(t)), lambda t, sigma: 1 - (1 - sigma) * (1 - t), _to_target
    ),
    "schrodinger_bridge": _Form(_straight, _brownian, _pinned),
    "variance_preserving": _Form(_circle, _constant, _along_circle),
}


@dataclass(frozen=True)
class Bridge:
    """A bridge of BRIDGES with path noise sigma.

    `idff` has the deviation of a Brownian bridge and the velocity of a straight line; `schrodinger_bridge` has both of
    the Brownian bridge; `target` forgets the noise it is given and ends in eps (Lipman et al. 2023, arXiv 2210.02747).

    Raises:
        ValueError: an unknown name, a negative sigma, or a Schroedinger bridge without noise.
    """

    name: str = "idff"
    sigma: float = 0.2

    def __post_init__(self) -> None:
        if self.name not in BRIDGES:
            raise ValueError(f"there is no bridge '{self.name}': choose from {', '.join(BRIDGES)}")
        if not self.sigma >= 0 or (self.name == "schrodinger_bridge" and self.sigma == 0):
            least = "above 0" if self.name == "schrodinger_bridge" else "0 or more"
            raise ValueError(f"the bridge {self.name} has sigma={self.sigma:g}: give a number {least}")

    def state(self, data: Tensor, noise: Tensor, eps: Tensor, t: Tensor) -> State:
        """x_t with deviation `eps [B, ...]` of unit variance, at times `t [B]`."""
        form, t = BRIDGES[self.name], expand_to(t, data)
        of_data, of_noise = form.shares(t, self.sigma)
        mean, std = of_data * data + of_noise * noise, form.std(t, self.sigma)
        x = mean + std * eps
        return State(x, mean, std, form.velocity(data, noise, x - mean, x, t, self.sigma))


# weight of the first head's squared error by time
TIME_WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": torch.ones_like,
    "early": lambda t: 1 / (1 - t + 0.01),  # high-resolution images: near the noise
    "late": lambda t: 1 / (t + 0.01).square(),  # points: near the data
}
SCORE_TARGETS = ("eps", "noise", "none")
_LAMBDAS: dict[str, Callable[[Tensor, float], Tensor]] = {  # of the path's deviation
    "deviation": lambda std, sigma: 2 * std / (sigma**2 + _TINY),
    "variance": lambda std, sigma: 2 * std.square() / (sigma**2 + _TINY),
}


@dataclass(frozen=True)
class FusionLoss:
    """The loss of both heads, per sample.

    Attributes:
        sigma: path noise, in lambda.
        flow_weight, score_weight: of the two terms.
        time_weight: key of TIME_WEIGHTS.
        score_target: "eps"; "noise", what CIFAR-10 and CelebA-64 were published with and then no score; or "none".
        score_scale: lambda is 2 / sigma^2 times the path's "deviation", or its "variance" (which no published result
            used).
        angles: errors are those of angles in degrees: "wrapped", to the nearest turn; "shifted", the published sum
            over three turns, which has the minimum of the plain error; None: plain.
        period: a whole turn, where it is not 360 degrees.
        bridge: key of BRIDGES, whose deviation is in lambda.

    Raises:
        ValueError: unknown words.
    """

    sigma: float = 0.2
    flow_weight: float = 2.0
    score_weight: float = 1.0
    time_weight: str = "none"
    score_target: str = "eps"
    score_scale: str = "deviation"
    angles: Literal["wrapped", "shifted"] | None = None
    period: float = 360.0
    bridge: str = "idff"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("time weight", self.time_weight, TIME_WEIGHTS), ("score target", self.score_target, SCORE_TARGETS),
            ("score scale", self.score_scale, _LAMBDAS), ("bridge", self.bridge, BRIDGES),
            ("angles", self.angles, (None, "wrapped", "shifted")),
        ):  # fmt: skip
            if value not in allowed:
                raise ValueError(f"{name} '{value}' is unknown: choose from {', '.join(map(str, allowed))}")

    def flow(self, estimate: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """Mean over elements of the weighted error of the first head, `[B]`."""
        difference = estimate - data
        if self.angles == "wrapped":
            square = (difference - self.period * (difference / self.period).round()).square()
        elif self.angles == "shifted":
            square = sum((difference - shift).square() for shift in (0.0, self.period, -self.period))
        else:
            square = difference.square()
        return _mean(TIME_WEIGHTS[self.time_weight](expand_to(t, data)) * square)

    def score(self, second: Tensor, noise: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Mean over elements of the error of the second head, `[B]`."""
        target = eps if self.score_target == "eps" else noise
        std = BRIDGES[self.bridge].std(expand_to(t, second), self.sigma)
        return _mean((_LAMBDAS[self.score_scale](std, self.sigma) * second + target).square())

    def __call__(
        self, estimate: Tensor, second: Tensor | None, data: Tensor, noise: Tensor, eps: Tensor, t: Tensor
    ) -> Tensor:
        """Loss per sample `[B]`; `second` may be None where there is no target for it."""
        total = self.flow_weight * self.flow(estimate, data, t)
        if self.score_target == "none" or self.score_weight == 0:
            return total
        return total + self.score_weight * self.score(second, noise, eps, t)


def order1_target(state: State, t: Tensor, sigma: float, published: bool = False, floor: float = 1e-4) -> Tensor:
    """What the second head of the one-score variant of 2025 learns, `[B, ...]`: the score given both ends.

    Args:
        sigma: path noise; for `published` the number that stood in for its square.
        published: the published target, a log density instead of its gradient. Its path had no noise, so that it is a
            function of the time alone.
        floor: added to the variance.
    """
    t = expand_to(t, state.x)
    offset = state.x - state.mean
    if published:
        variance = sigma * t * (1 - t) + floor
        return -0.5 * ((2 * math.pi * variance).log() + offset.square() / variance)
    return -offset / (sigma**2 * t * (1 - t) + floor)


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1)
