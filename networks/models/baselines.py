"""Preconditioners of the models before EDM: VP, VE and iDDPM as special cases (Karras et al. 2022, table 1).

VP and VE after Song et al. 2021 (arXiv 2011.13456), iDDPM after Nichol and Dhariwal 2021 (arXiv 2102.09672).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from networks.models.precond import TINY, Precond


class VPPrecond(Precond):
    """Variance preserving: c_skip 1, c_out -sigma, c_in 1/sqrt(sigma^2 + 1), c_noise (M - 1) t(sigma)."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        M: int = 1000,
        epsilon_t: float = 1e-5,
        model_type: str = "SongUNet",
        **model_kwargs: Any,
    ) -> None:
        ends = torch.tensor([epsilon_t, 1], dtype=torch.float32, device="cpu")
        sigma_min, sigma_max = vp_sigma(ends, beta_d, beta_min).tolist()
        super().__init__(
            img_resolution, img_channels, label_dim, use_fp16, sigma_min, sigma_max, model_type, model_kwargs
        )
        self.beta_d, self.beta_min, self.M, self.epsilon_t = beta_d, beta_min, M, epsilon_t

    def sigma(self, t: Tensor | float) -> Tensor:
        """Noise level at time t in [0, 1]."""
        return vp_sigma(torch.as_tensor(t), self.beta_d, self.beta_min)

    def sigma_inv(self, sigma: Tensor | float) -> Tensor:
        """Time of a noise level: the inverse of `sigma`."""
        return vp_time(torch.as_tensor(sigma), self.beta_d, self.beta_min)

    def scalings(self, sigma: Tensor) -> tuple[Tensor | float, Tensor, Tensor | float, Tensor]:
        return 1.0, -sigma, (sigma.square() + 1).rsqrt(), (self.M - 1) * self.sigma_inv(sigma)


def vp_sigma(t: Tensor, beta_d: float, beta_min: float) -> Tensor:
    """Noise level of the VP process at time `t`, any shape (Karras et al. 2022, table 1)."""
    # exp - 1, not expm1: sigma_min of the published networks carries the cancellation of the float32 formula
    return ((0.5 * beta_d * t.square() + beta_min * t).exp() - 1).sqrt()


def vp_time(sigma: Tensor, beta_d: float, beta_min: float) -> Tensor:
    """Time of noise level `sigma`, any shape: the inverse of `vp_sigma`."""
    log_term = (1 + sigma.square()).log()
    return ((beta_min**2 + 2 * beta_d * log_term).sqrt() - beta_min) / beta_d


class VEPrecond(Precond):
    """Variance exploding: c_skip 1, c_out sigma, c_in 1, c_noise log(sigma / 2)."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0.02,
        sigma_max: float = 100,
        model_type: str = "SongUNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(
            img_resolution, img_channels, label_dim, use_fp16, sigma_min, sigma_max, model_type, model_kwargs
        )

    def scalings(self, sigma: Tensor) -> tuple[Tensor | float, Tensor, Tensor | float, Tensor]:
        return 1.0, sigma, 1.0, (0.5 * sigma).clamp_min(TINY).log()


class iDDPMPrecond(Precond):
    """Improved DDPM: c_skip 1, c_out -sigma, c_in 1/sqrt(sigma^2 + 1), c_noise M - 1 - index(sigma).

    Supports the M + 1 discrete levels of buffer `u` (decreasing, u[M] = 0). The network also predicts a variance per
    channel, which nothing here uses.
    """

    u: Tensor

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        C_1: float = 0.001,
        C_2: float = 0.008,
        M: int = 1000,
        model_type: str = "DhariwalUNet",
        **model_kwargs: Any,
    ) -> None:
        u = iddpm_levels(M, C_1, C_2)
        super().__init__(
            img_resolution,
            img_channels,
            label_dim,
            use_fp16,
            u[M - 1],
            u[0],
            model_type,
            model_kwargs,
            2 * img_channels,
        )
        self.C_1, self.C_2, self.M = C_1, C_2, M
        self.register_buffer("u", torch.tensor(u, dtype=torch.float32))

    def round_sigma(self, sigma: Tensor | float, return_index: bool = False) -> Tensor:
        """The nearest level of `u` (the first of equally near ones), in the dtype and device of sigma, or its index."""
        sigma = torch.as_tensor(sigma)
        query = sigma.to(device=self.u.device, dtype=torch.float64)
        ascending = self.u.to(torch.float64).flip(0)
        above = torch.searchsorted(ascending, query).clamp(max=self.M)
        high, low = ascending[above], ascending[(above - 1).clamp(min=0)]
        nearest = torch.where(high - query <= query - low, high, low)
        if return_index:  # the last of equal entries upwards is the first of them in u
            return (self.M + 1 - torch.searchsorted(ascending, nearest, right=True)).to(sigma.device)
        return nearest.to(device=sigma.device, dtype=sigma.dtype if sigma.is_floating_point() else torch.float32)

    def scalings(self, sigma: Tensor) -> tuple[Tensor | float, Tensor, Tensor | float, Tensor]:
        c_noise = self.M - 1 - self.round_sigma(sigma, return_index=True).to(torch.float32)
        return 1.0, -sigma, (sigma.square() + 1).rsqrt(), c_noise


def iddpm_levels(M: int, C_1: float, C_2: float) -> list[float]:
    """The M + 1 noise levels of the cosine schedule, from u[0] (largest) to u[M] = 0, by the float32 recursion.

    u[j-1]^2 + 1 = (u[j]^2 + 1) / max(abar(j-1) / abar(j), C_1) with abar(j) = sin^2(pi/2 * j / M / (C_2 + 1)).
    """
    if M < 1:
        raise ValueError(f"M={M} leaves no noise level: give at least 1 step")
    j = torch.arange(M + 1, dtype=torch.float32, device="cpu")
    abar = (0.5 * math.pi * j / M / (C_2 + 1)).sin().square()
    ratio = (abar[:-1] / abar[1:]).clamp(min=C_1)
    u = [torch.zeros_like(ratio[0])]
    for r in ratio.flip(0):
        u.append(((u[-1].square() + 1) / r - 1).sqrt())
    return torch.stack(u[::-1]).tolist()
