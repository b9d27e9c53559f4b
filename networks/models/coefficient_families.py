"""Families of element-wise coefficients x = gamma0 * data + gamma1 * noise: EDM's, and those of flows from pure noise.

With f and g of `CoefficientFamily` on nominal time tau in [0, 1] (Lee et al. 2024, arXiv 2404.14161, carried over to
other paths; this part is a reconstruction, it is not in the published code):

    edm             gamma0 = 1                       gamma1 = t_max g / (f + g)
    linear          gamma0 = f / (f + g)             gamma1 = g / (f + g)
    trigonometric   gamma0 = f / sqrt(f^2 + g^2)     gamma1 = g / sqrt(f^2 + g^2)

All have (1, 0) at the data and, but for edm, (0, 1) at the noise. Samplers see the ratio gamma1 / gamma0 alone, the
noise level in sigma coordinates: g / f in both flow families, infinite at the noise, tau / (1 - tau) for c = 0. So
these two differ in the coordinates of the state, which an Euler step x += dgamma0 * data_hat + dgamma1 * noise_hat does
not depend on, and in nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from networks.models.coefficients import CoefficientFamily


@dataclass(frozen=True)
class LinearFamily(CoefficientFamily):
    """Flow matching. Nominal levels are sigma = tau / (1 - tau) here too, from infinity to 0."""

    t_max: float = 1.0

    def shares(self, t: Tensor | float, c: Tensor) -> tuple[Tensor, Tensor]:
        """f and g at nominal level `t` in sigma coordinates."""
        t = torch.as_tensor(t, device=c.device)
        return super().shares(1 - 1 / (1 + t), c)

    def gamma(self, t: Tensor | float, c: Tensor) -> Tensor:
        """Noise level of every element in sigma coordinates, gamma1 / gamma0."""
        f, g = self.shares(t, c)
        return g / f

    def endpoints(self, t: Tensor | float, c: Tensor) -> tuple[Tensor, Tensor]:
        f, g = self.shares(t, c)
        return f / (f + g), g / (f + g)


@dataclass(frozen=True)
class TrigonometricFamily(LinearFamily):
    """Stochastic interpolants and variance-preserving paths: the squares sum to one."""

    def endpoints(self, t: Tensor | float, c: Tensor) -> tuple[Tensor, Tensor]:
        f, g = self.shares(t, c)
        norm = (f.square() + g.square()).sqrt()
        return f / norm, g / norm


FAMILIES: dict[str, type[CoefficientFamily]] = {
    "edm": CoefficientFamily,
    "linear": LinearFamily,
    "trigonometric": TrigonometricFamily,
}

# Family that a denoiser's own path suggests.
FAMILY_OF_PATH = {"linear": "linear", "trig": "trigonometric"}  # of all others "edm"


def interpolant_schedule(num_steps: int, rho: float = 1.0) -> Sequence[float]:
    """Nominal levels tau / (1 - tau) at tau = (1 - i / N)^rho, i < N: evenly spaced for the basis; the first is inf."""
    times = [(1 - i / num_steps) ** rho for i in range(num_steps)]
    return [math.inf, *(t / (1 - t) for t in times[1:])]
