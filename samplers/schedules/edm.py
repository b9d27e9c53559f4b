"""Noise levels and coordinates of EDM's general sampler: its four discretizations, schedules and scalings.

Karras, Aittala, Aila, Laine 2022, arXiv 2206.00364, Table 1; "vp" is Song et al. 2021 (arXiv 2011.13456), "ve" its
variance-exploding twin, "iddpm" the table of Nichol and Dhariwal 2021 (arXiv 2102.09672).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.choices import DISCRETIZATIONS
from samplers.field import Facts, Field
from samplers.path import VP
from samplers.schedules.formulas import polynomial


def general_levels(
    net: Field | Callable[..., Tensor],
    num_steps: int = 18,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7,
    discretization: str = "edm",
    epsilon_s: float = 1e-3,
    C_1: float = 0.001,
    C_2: float = 0.008,
    M: int = 1000,
) -> Tensor:
    """Noise levels of `ablation_sampler`, `[num_steps + 1]` float64 on the CPU, the last one 0."""
    facts = Facts.of(net)
    low, high = general_range(facts, num_steps, sigma_min, sigma_max, discretization, epsilon_s)
    f = torch.arange(num_steps, dtype=torch.float64) / max(num_steps - 1, 1)
    if discretization == "vp":
        levels = VP.through(low, high, epsilon_s).level_at(1 + f * (epsilon_s - 1))
    elif discretization == "ve":
        levels = high * (low / high) ** f
    elif discretization == "iddpm":
        levels = _iddpm_levels(f, low, high, M, C_1, C_2)
    else:
        levels = polynomial(f, high, low, rho)
    return torch.cat([facts.round_sigma(levels), torch.zeros(1, dtype=torch.float64)])


@dataclass(frozen=True)
class Coordinates:
    """x(t) = s(t) * (data + sigma(t) * noise): the time variable and scaling in which steps are straight lines."""

    schedule: str = "linear"
    scaling: str = "none"
    vp: VP | None = None

    def sigma(self, t: Tensor) -> Tensor:
        if self.schedule == "vp":
            return self.vp.level_at(t)
        return t.sqrt() if self.schedule == "ve" else t

    def d_sigma(self, t: Tensor) -> Tensor:
        if self.schedule == "vp":
            return self.vp.d_level(t)
        return 0.5 / t.sqrt() if self.schedule == "ve" else torch.ones_like(t)

    def time(self, sigma: Tensor) -> Tensor:
        if self.schedule == "vp":
            return self.vp.time_of(sigma)
        return sigma**2 if self.schedule == "ve" else sigma

    def scale(self, t: Tensor) -> Tensor:
        return torch.rsqrt(1 + self.sigma(t) ** 2) if self.scaling == "vp" else torch.ones_like(t)

    def d_scale(self, t: Tensor) -> Tensor:
        if self.scaling == "vp":
            return -self.sigma(t) * self.d_sigma(t) * self.scale(t) ** 3
        return torch.zeros_like(t)


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise a ValueError that lists what is allowed."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}: choose from {', '.join(allowed)}")


def general_range(
    facts: Facts,
    num_steps: int,
    sigma_min: float | None,
    sigma_max: float | None,
    discretization: str,
    epsilon_s: float = 1e-3,
) -> tuple[float, float]:
    """The asked range, or the usual one of the discretization, within the network's."""
    check_choice("discretization", discretization, DISCRETIZATIONS)
    if num_steps < 1:
        raise ValueError(f"{num_steps} steps were asked for: give 1 (the single step from sigma_max to 0) or more")
    vp = VP(19.9, 0.1).level_at(torch.tensor([epsilon_s, 1], dtype=torch.float64)).tolist()
    usual = {"vp": vp, "ve": (0.02, 100), "iddpm": (0.002, 81), "edm": (0.002, 80)}[discretization]
    sigma_min, sigma_max = (u if s is None else float(s) for u, s in zip(usual, (sigma_min, sigma_max), strict=True))
    low, high = facts.sigma_min, facts.sigma_max
    narrowed = max(sigma_min, low), min(sigma_max, high)
    if not 0 < narrowed[0] < narrowed[1]:
        raise ValueError(
            f"sigma_min={sigma_min:g} and sigma_max={sigma_max:g} leave no range of noise levels: "
            f"they must be positive, increasing, and meet the network's own range {low:g} to {high:g}"
        )
    return narrowed


def _iddpm_levels(f: Tensor, sigma_min: float, sigma_max: float, M: int, C_1: float, C_2: float) -> Tensor:
    """Entries of the iDDPM table within the range, evenly spaced in index. Its alpha_bar is float32, as published."""
    j = torch.arange(M + 1)
    alpha_bar = (0.5 * math.pi * j / M / (C_2 + 1)).sin() ** 2
    ratio = (alpha_bar[:-1] / alpha_bar[1:]).clamp(min=C_1).tolist()
    table = [0.0]
    for r in reversed(ratio):
        table.append(math.sqrt((table[-1] ** 2 + 1) / r - 1))
    u = torch.tensor(table[::-1], dtype=torch.float64)
    u = u[(u >= sigma_min) & (u <= sigma_max)]
    if len(u) == 0:
        raise ValueError(f"the iDDPM table with M={M} has no level between {sigma_min:g} and {sigma_max:g}")
    return u[torch.round(f * (len(u) - 1)).long()]
