"""Noise that stochastic solvers add: how much, and at which levels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from torch_utils.rng import TorchRNG

__all__ = ["Churn", "Tau", "churned"]


@dataclass(frozen=True, kw_only=True)
class Churn:
    """Noise added before the steps, by EDM's names.

    Attributes:
        S_churn: its amount, shared out among the steps.
        S_min, S_max: range of noise levels that get it.
        S_noise: its inflation.
    """

    S_churn: float = 0
    S_min: float = 0
    S_max: float = math.inf
    S_noise: float = 1

    def __post_init__(self) -> None:
        if self.S_churn < 0:
            raise ValueError(f"S_churn is {self.S_churn:g}: give 0 (no added noise) or a positive number")

    def raised(self, levels: Tensor) -> Tensor:
        """sigma_hat of the N steps that begin at `levels` `[N]`."""
        inside = ((levels >= self.S_min) & (levels <= self.S_max)).to(levels.dtype)
        gamma = min(self.S_churn / len(levels), math.sqrt(2) - 1) * inside
        return levels + gamma * levels


def churned(
    x: Tensor,
    added: Sequence[float | Tensor],
    step: Callable[[int, Tensor], Tensor],
    rng: TorchRNG | None,
    stretch: Sequence[float] | None = None,
) -> Tensor:
    """The loop of samplers that add noise before their steps: step i is `step(i, stretch[i] * x + added[i] * noise)`.

    Args:
        x: `[B, ...]` before the first step.
        added: deviation of the noise before every step, numbers or maps; no noise where it is the number 0.
        rng: source of one normal draw like `x` per step, needed or not; None: no noise.
        stretch: default 1.
    """
    for i, deviation in enumerate(added):
        noise = None if rng is None else rng.randn(x.shape, dtype=x.dtype)
        if stretch is not None and stretch[i] != 1:
            x = stretch[i] * x
        if noise is not None and (isinstance(deviation, Tensor) or deviation):
            x = x + deviation * noise.to(x.device)
        x = step(i, x)
    return x


@dataclass(frozen=True, kw_only=True)
class Tau:
    """Strength of the noise of SA-Solver at a level: `tau` from `tau_min` to `tau_max`, 0 elsewhere.

    Attributes:
        tau: 0 gives the deterministic solver, 1 the reverse process.
        tau_min, tau_max: range of noise levels.
    """

    tau: float = 1.0
    tau_min: float = 0.05
    tau_max: float = 1.0

    def __post_init__(self) -> None:
        if self.tau < 0:
            raise ValueError(f"tau is {self.tau:g}: give 0 (no added noise) or a positive number")

    def at(self, level: float) -> float:
        """Its value for a step that begins at a level."""
        return self.tau if self.tau_min <= level <= self.tau_max else 0.0

    def added(self, start: float, end: float) -> float:
        """Deviation of the noise that a step between two levels adds."""
        return end * math.sqrt(-math.expm1(2 * self.at(start) ** 2 * math.log(end / start)))
