"""Interpolation paths x_t = alpha(t) * data + sigma(t) * noise between data (t = 0) and noise.

Every member is a frozen dataclass of pure functions, element-wise in `t`; derivatives are analytic.

- `VE`: alpha = 1, sigma = t: the coordinates of denoisers (Karras et al. 2022, arXiv 2206.00364), t in [0, inf).
- `VP`: alpha = 1/sqrt(1 + s^2), sigma = s * alpha with s(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1), t in [0, 1]
  (Song et al. 2021, arXiv 2011.13456).
- `Linear`: alpha = 1 - t, sigma = t, t in [0, 1] (Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2023, 2209.03003).
- `Trig`: alpha = cos(pi t / 2), sigma = sin(pi t / 2), t in [0, 1] (Albergo et al. 2023, arXiv 2303.08797, "GVP").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from torch_utils.misc import expand_to

Kind = Literal["data", "noise", "velocity", "score"]


@dataclass(frozen=True)
class Path:
    """The contract: four functions of time, and what follows from them."""

    def alpha(self, t: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define alpha")

    def sigma(self, t: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define sigma")

    def d_alpha(self, t: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define d_alpha")

    def d_sigma(self, t: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define d_sigma")

    def time_of(self, s: Tensor) -> Tensor:
        """The time at which sigma(t) / alpha(t) equals the VE noise level `s`."""
        raise TypeError(f"{type(self).__name__} does not define time_of")

    @property
    def end(self) -> float:
        """Deviation of the state at t = 1, of paths that end in noise alone."""
        return 1.0

    def level_at(self, t: Tensor) -> Tensor:
        """The VE noise level sigma(t) / alpha(t), the inverse of `time_of`."""
        return self.sigma(t) / self.alpha(t)

    def score_gain(self, t: Tensor) -> Tensor:
        """q(t) in velocity = (d alpha / alpha) x - q score, never negative: sigma d sigma - sigma^2 d alpha / alpha."""
        sigma = self.sigma(t)
        return sigma * self.d_sigma(t) - sigma.square() * self.d_alpha(t) / self.alpha(t)

    def mix(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t; `t` follows the noise-level rule."""
        t = expand_to(t, data)
        return self.alpha(t) * data + self.sigma(t) * noise

    def target(self, data: Tensor, noise: Tensor, t: Tensor, kind: Kind) -> Tensor:
        """What a network that predicts `kind` should return at x_t."""
        if kind == "velocity":
            t = expand_to(t, data)
            return self.d_alpha(t) * data + self.d_sigma(t) * noise
        if kind == "score":
            return -noise / self.sigma(expand_to(t, data))
        return data if kind == "data" else noise


@dataclass(frozen=True)
class VE(Path):
    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def time_of(self, s: Tensor) -> Tensor:
        return s


@dataclass(frozen=True)
class VP(Path):
    beta_d: float = 19.9
    beta_min: float = 0.1

    @classmethod
    def through(cls, sigma_min: float, sigma_max: float, t_min: float = 1e-3) -> VP:
        """The member whose VE noise level is `sigma_max` at time 1 and `sigma_min` at time `t_min`."""
        low, high = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
        beta_d = 2 * (low / t_min - high) / (t_min - 1)
        return cls(beta_d, high - beta_d / 2)

    def _exponent(self, t: Tensor) -> Tensor:  # log(1 + s^2)
        return 0.5 * self.beta_d * t**2 + self.beta_min * t

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._exponent(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._exponent(t)))

    def d_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * (self.beta_d * t + self.beta_min) * self.alpha(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return 0.5 * (self.beta_d * t + self.beta_min) * self.alpha(t) ** 2 / self.sigma(t)

    def level_at(self, t: Tensor) -> Tensor:
        return torch.expm1(self._exponent(t)).sqrt()  # not sigma / alpha, which loses digits where both are small

    def d_level(self, t: Tensor) -> Tensor:
        """The slope of `level_at`."""
        level = self.level_at(t)
        return 0.5 * (self.beta_d * t + self.beta_min) * (level + 1 / level)

    def time_of(self, s: Tensor) -> Tensor:
        return (torch.sqrt(self.beta_min**2 + 2 * self.beta_d * torch.log1p(s**2)) - self.beta_min) / self.beta_d


@dataclass(frozen=True)
class Linear(Path):
    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def d_alpha(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def time_of(self, s: Tensor) -> Tensor:
        return s / (1 + s)


@dataclass(frozen=True)
class Trig(Path):
    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(0.5 * math.pi * t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * math.pi * self.sigma(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return 0.5 * math.pi * self.alpha(t)

    def time_of(self, s: Tensor) -> Tensor:
        return torch.atan(s) * (2 / math.pi)


@dataclass(frozen=True)
class BrownianBridge(Path):
    """Linear, with a Brownian bridge of deviation `bridge * sqrt(t (1 - t))` around it (IDFF, arXiv 2409.14599).

    `sigma` is the deviation of all noise around alpha * data, for noise independent of the data.
    """

    bridge: float = 0.2

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(t**2 + self.bridge**2 * t * (1 - t))

    def d_alpha(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return (t + self.bridge**2 * (0.5 - t)) / self.sigma(t)

    def time_of(self, s: Tensor) -> Tensor:
        r = 2 * s**2 / (self.bridge**2 + torch.sqrt(self.bridge**4 + 4 * s**2))  # r = t / (1 - t), s^2 = r^2 + b^2 r
        return r / (1 + r)


@dataclass(frozen=True)
class _Floor(Path):
    """Noise of deviation `floor` all along the way, also at the data, besides that of the path it is mixed with."""

    floor: float = 0.2

    @property
    def end(self) -> float:
        return math.hypot(1, self.floor)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(super().sigma(t) ** 2 + self.floor**2)


@dataclass(frozen=True)
class Noisy(_Floor, Linear):
    """Linear, with a floor of noise (Tong et al. 2023, 2302.00482)."""

    def d_sigma(self, t: Tensor) -> Tensor:
        return t / self.sigma(t)

    def time_of(self, s: Tensor) -> Tensor:
        """The time of a level; 0 where it is below the lowest."""
        square = (s**2).clamp(min=self.floor**2)
        root = torch.sqrt(square * (1 + self.floor**2) - self.floor**2)
        return (1 - self.floor**2 / square) / (1 + root / square)


@dataclass(frozen=True)
class NoisyTrig(_Floor, Trig):
    """The trigonometric path, with a floor of noise."""

    def d_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * math.pi * Trig.sigma(self, t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return 0.5 * math.pi * Trig.sigma(self, t) * self.alpha(t) / self.sigma(t)

    def time_of(self, s: Tensor) -> Tensor:
        """The time of a level; 0 where it is below the lowest."""
        return torch.acos(torch.sqrt((1 + self.floor**2) / (1 + s**2)).clamp(max=1)) * (2 / math.pi)


@dataclass(frozen=True)
class NoisyEnd(Linear):
    """Linear in the data, with noise that falls to the deviation `floor` (Lipman et al. 2023, arXiv 2210.02747)."""

    floor: float = 0.2

    def sigma(self, t: Tensor) -> Tensor:
        return self.floor + (1 - self.floor) * t

    def d_sigma(self, t: Tensor) -> Tensor:
        return torch.full_like(t, 1 - self.floor)

    def time_of(self, s: Tensor) -> Tensor:
        """The time of a level; 0 where it is below the lowest."""
        return (s - self.floor).clamp(min=0) / (s + 1 - self.floor)


PATHS: dict[str, type[Path]] = {
    "ve": VE, "vp": VP, "linear": Linear, "trig": Trig, "bridge": BrownianBridge, "noisy": Noisy,
    "noisy_trig": NoisyTrig, "target": NoisyEnd,
}  # fmt: skip
