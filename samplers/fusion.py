"""What drives a sample of IDFF: clean data and score of one network, fused into a drift in the network's own time.

The network was trained on a Brownian bridge of deviation sigma_t = sigma sqrt(t (1 - t)) between data (t = 0) and noise
(t = 1), here written in the time u = 1 - t of the paper (arXiv 2409.14599), with m the clean estimate:

    b = (m - x) / (1 - u)                                        drift of the bridge's own SDE, noise sigma
    v = b - sigma^2 / 2 score                                    probability flow: the same marginals without noise
    f = sqrt(1 - G sigma_t^2) v + (gamma_1 - 1/2) sigma_t^2 score + gamma_2 sigma_t^2 d_2 + gamma_3 sigma_t^2 d_3

`Fusion` is the last line; by default (gamma_1 = 1/2, no damping) it is v. The score comes from the second head or, with
Tweedie's formula, from m; d_2 and d_3 are its derivatives. `Fusion2024` and `Fusion2025` are what the published
programs compute, ends of the path and all, for their numbers and checkpoints.

`fused(field, fusion)` is the model with that drift, a field on the linear path like any other. A drift is made of
`heads(x, t) -> (clean estimate, second head or None)`. Every one has `velocity(heads, x, t)`, dx/dt
in this project's time, `diffusion(t)`, the amplitude of the noise that belongs to it, and `ends_on_data`: at t = 0 it
is not defined, and a step there lands on the clean estimate.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from samplers.choices import SCORE_SOURCES
from samplers.field import Field
from samplers.path import BrownianBridge, Linear
from torch_utils.misc import expand_to

Heads = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]

_NOISES = ("none", "bridge", "langevin")
# what second heads were trained on that are no score
_NO_SCORE = {
    "none": "not trained, or is missing",
    "noise": "trained on the noise at the end of the path",
    "log_density": "trained on a log density",
}


def _derivatives(
    function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], x: Tensor, t: Tensor, orders: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Both values of `function(x, t)`, and of the first d_1, d_2, ...: each the gradient of the sum of the one before.

    Samples do not mix in the network, so that one sum serves the whole batch. Samples are made in inference mode, whose
    tensors no gradient may use: hence the copies.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x, t = x.detach().clone().requires_grad_(True), t.clone()
        value, other = function(x, t)
        d, found = value, []
        for k in range(orders):
            (d,) = torch.autograd.grad(d.sum(), x, create_graph=k < orders - 1)
            found.append(d.detach())
        return value.detach(), other.detach(), found


def _twice(heads: Heads) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The clean estimate as the value to differentiate and as the one to return."""
    return lambda x, t: (heads(x, t)[0],) * 2


def _spread(t: Tensor) -> Tensor:
    return t * (1 - t)


def _damping(total: float, variance: Tensor) -> Tensor:
    """sqrt(1 - total * variance).

    Raises:
        ValueError: a total at which the root is imaginary somewhere; sigma^2 / 4 is the largest variance.
    """
    return (1 - total * variance).sqrt()


def _check_damping(total: float, sigma: float) -> None:
    if total * sigma**2 / 4 > 1:
        raise ValueError(
            f"the gammas add up to {total:g}, and with sigma={sigma:g} the damping sqrt(1 - {total:g} sigma_t^2) is "
            f"imaginary in the middle of the path: keep the sum below {4 / sigma**2:.4g}, or leave the damping out"
        )


@dataclass(frozen=True)
class Fusion:
    """The exact drifts, and their damped and higher-order variants.

    Attributes:
        sigma: path noise of training.
        gammas: weights of the score and of its derivatives, one to three numbers.
        damping: with the root in front of v; it breaks exactness by about G sigma_t^2 / 8.
        noise: "none", "bridge" (amplitude sigma) or "langevin" (sigma_t): a drift for which the marginals stay the
            same has half of the squared amplitude times the score added.
        score_source: "head", "tweedie": -(x - u m) / s^2 with s^2 the variance of x given the data, for independent
            noise, or "jacobian": the derivative of m that published programs took for it.
        score_target: what the second head was trained on: "eps", then it is sigma^2 / 2 times the score, "score", or
            "noise", "log_density" or "none", then it is no score.

    Raises:
        ValueError: values that do not fit, one sentence.
    """

    sigma: float
    gammas: tuple[float, ...] = (0.5,)
    damping: bool = False
    noise: str = "none"
    score_source: str = "head"
    score_target: str = "eps"

    ends_on_data = True

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("score source", self.score_source, SCORE_SOURCES), ("noise", self.noise, _NOISES),
            ("score target", self.score_target, (*_NO_SCORE, "eps", "score")),
        ):  # fmt: skip
            if value not in allowed:
                raise ValueError(f"{name} '{value}' is unknown: choose from {', '.join(allowed)}")
        if not 1 <= len(self.gammas) <= 3:
            raise ValueError(f"gammas={list(self.gammas)}: give one to three numbers")
        if self.damping:
            _check_damping(sum(self.gammas), self.sigma)
        if self.score_source == "head" and self.score_target in _NO_SCORE and self.needs_score:
            raise ValueError(
                f"this model's second head was {_NO_SCORE[self.score_target]}, so it is no score: take the score from "
                "the clean estimate (score source tweedie)"
            )

    @property
    def needs_score(self) -> bool:
        """Whether the score is in the drift: not of a plain bridge or a path without noise."""
        return self.sigma > 0 and not (self.noise == "bridge" and self.gammas == (0.5,) and not self.damping)

    def velocity(self, heads: Heads, x: Tensor, t: Tensor) -> Tensor:
        """dx/dt at `x [B, ...]`, `t` as the network takes it."""
        level = expand_to(t, x)
        spread = _spread(level)
        variance = self.sigma**2 * spread
        estimate, score, higher = self._score(heads, x, t)
        drift = (estimate - x) / level
        if self.needs_score or higher:
            drift = drift - 0.5 * self.sigma**2 * score
            drift = _damping(sum(self.gammas), variance) * drift if self.damping else drift
            drift = drift + (self.gammas[0] - 0.5) * variance * score
            for gamma, d in zip(self.gammas[1:], higher, strict=True):
                drift = drift + gamma * variance * d
            drift = drift + 0.5 * self.diffusion(level) ** 2 * score
        return -drift

    def _score(self, heads: Heads, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Clean estimate, score, and its derivatives as far as gammas ask for them."""
        orders = len(self.gammas) - 1
        if not self.needs_score and not orders:
            return heads(x, t)[0], torch.zeros((), dtype=x.dtype, device=x.device), []
        if self.score_source == "jacobian":
            estimate, _, (score, *higher) = _derivatives(_twice(heads), x, t, orders + 1)
        elif orders:
            score, estimate, higher = _derivatives(functools.partial(self._score_and_estimate, heads), x, t, orders)
        else:
            (score, estimate), higher = self._score_and_estimate(heads, x, t), []
        return estimate, score, higher

    def _score_and_estimate(self, heads: Heads, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        estimate, second = heads(x, t)
        level = expand_to(t, x)
        if self.score_source == "tweedie":
            return ((1 - level) * estimate - x) / (level**2 + self.sigma**2 * _spread(level)), estimate
        if second is None:
            raise ValueError("the score was asked of a second head, and this model has one head: use tweedie")
        return (second if self.score_target == "score" else second * (2 / self.sigma**2)), estimate

    def diffusion(self, t: Tensor) -> Tensor:
        """Amplitude of the noise at time t, a number's shape."""
        if self.noise == "bridge":
            return torch.full_like(t, self.sigma)
        return self.sigma * _spread(t).sqrt() if self.noise == "langevin" else torch.zeros_like(t)


@dataclass(frozen=True)
class Fusion2024:
    """The published sampler of 2024, two heads: f = a (m - x) / (1 - u) + c s sigma_s sqrt(u (1 - u)).

    a = sqrt(1 - sigma_s^2 u (1 - u)). At u = 1 the denominator is `delta`.

    Attributes:
        sigma_s: sampling sigma, which may differ from that of training.
        momentum: c, with its sign; 1/2 for molecules. The published term changed its sign in May 2024.
        noise_scale: the noise has amplitude noise_scale * sigma_s^2 sqrt(u (1 - u)); 0 for images.
    """

    sigma_s: float = 0.2
    delta: float = 0.1
    momentum: float = 1.0
    noise_scale: float = 0.0

    ends_on_data = False

    def __post_init__(self) -> None:
        _check_damping(1.0, self.sigma_s)

    def velocity(self, heads: Heads, x: Tensor, t: Tensor) -> Tensor:
        """dx/dt at `x [B, ...]`."""
        level = expand_to(t, x)
        estimate, second = heads(x, t)
        way = torch.where(level == 0, self.delta, level)
        drift = _damping(1.0, self.sigma_s**2 * _spread(level)) / way * (estimate - x)
        if self.momentum:
            if second is None:
                raise ValueError("the momentum of the sampler of 2024 is a second head, and this model has one head")
            drift = drift + self.momentum * self.sigma_s * _spread(level).sqrt() * second
        return -drift

    def diffusion(self, t: Tensor) -> Tensor:
        """Amplitude of the noise at time t."""
        return self.noise_scale * self.sigma_s**2 * _spread(t).sqrt()


@dataclass(frozen=True)
class Fusion2025:
    """The published sampler of 2025, with derivatives of the clean estimate for those of the score.

    f = sqrt(1 - G q') (m - x) / (1 - u) + sign ((gamma_1 - 1/2) q d_1 + gamma_2 q d_2 + gamma_3 q d_3), q = u (1 - u),
    q' = sigma_s^2 q, d_k the derivatives of m; or, with one head (`head`), gamma_1 with that head, gamma_2 with the
    constant 1, and q' for q. Neither d_1 nor that constant is a score: `Fusion` is what was meant.

    Attributes:
        damping: G; None: the sum of the gammas (of the first two with `head`).
        sign: 1; of molecules -1.
        delta, noise_scale: as of `Fusion2024`, for molecules 0.3 and 180.
    """

    gammas: tuple[float, ...] = (0.5, 0.0)
    sigma_s: float = 0.2
    delta: float = 0.01
    damping: float | None = None
    sign: int = 1
    noise_scale: float = 0.0
    head: bool = False

    ends_on_data = False

    def __post_init__(self) -> None:
        if not 1 <= len(self.gammas) <= (2 if self.head else 3):
            raise ValueError(f"gammas={list(self.gammas)}: give one to {2 if self.head else 'three'} numbers")
        _check_damping(self._total, self.sigma_s)

    @property
    def _total(self) -> float:
        return sum(self.gammas) if self.damping is None else self.damping

    def velocity(self, heads: Heads, x: Tensor, t: Tensor) -> Tensor:
        """dx/dt at `x [B, ...]`."""
        level = expand_to(t, x)
        q = _spread(level)
        estimate, terms = self._terms(heads, x, t)
        way = torch.where(level == 0, self.delta, level)
        drift = _damping(self._total, self.sigma_s**2 * q) / way * (estimate - x)
        scale = self.sign * (self.sigma_s**2 if self.head else 1) * q
        weights = (self.gammas[0] - 0.5, *self.gammas[1:])
        return -(drift + scale * sum(w * term for w, term in zip(weights, terms, strict=True)))

    def _terms(self, heads: Heads, x: Tensor, t: Tensor) -> tuple[Tensor, list[Tensor]]:
        if not self.head:
            estimate, _, terms = _derivatives(_twice(heads), x, t, len(self.gammas))
            return estimate, terms
        estimate, second = heads(x, t)
        if second is None:
            raise ValueError("the one-score sampler of 2025 needs a second head, and this model has one head")
        return estimate, [second, torch.ones_like(second)][: len(self.gammas)]

    def diffusion(self, t: Tensor) -> Tensor:
        """Amplitude of the noise at time t."""
        return self.noise_scale * self.sigma_s**2 * _spread(t).sqrt()


def fused(field: Field, fusion: Fusion | Fusion2024 | Fusion2025) -> Field:
    """A model of two heads with a fused drift, on the linear path, whatever its path noise.

    Where the drift ends on data the field predicts x - t dx/dt, so that every solver in every coordinates integrates
    the drift exactly in the limit of small steps and lands on the clean estimate; else it predicts the velocity.
    Neither is a posterior mean: no score can be had of it.

    Raises:
        ValueError: a model without heads, or whose heads are guided.
    """
    field = field.native()
    facts = field.facts
    if facts.heads is None or not isinstance(field.path, BrownianBridge):
        raise ValueError(
            "fused drifts need a network of clean data and score on a Brownian bridge, without guidance, as train.py "
            "idff makes it"
        )
    predicts = "data" if fusion.ends_on_data else "velocity"
    facts = replace(facts, path=Linear(), predicts=predicts, heads=None, gaussian_noise=False)
    return replace(field, net=_Fused(field.facts.heads, fusion), path=Linear(), predicts=predicts, facts=facts)


class _Fused:
    """`net(x, t, class_labels)` of a fused drift."""

    def __init__(self, heads: Callable[..., Any], fusion: Fusion | Fusion2024 | Fusion2025) -> None:
        self.heads, self.fusion = heads, fusion

    def __call__(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None, **cond: Any) -> Tensor:
        t = torch.as_tensor(t, device=x.device)
        if class_labels is not None and class_labels.is_inference():
            with torch.inference_mode(False):  # derivatives may not use what inference mode made
                class_labels = class_labels.clone()
        velocity = self.fusion.velocity(lambda x, t: self.heads(x, t, class_labels, **cond), x, t)
        return x - expand_to(t, x).to(x.dtype) * velocity if self.fusion.ends_on_data else velocity
