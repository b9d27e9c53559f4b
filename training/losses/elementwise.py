"""Denoisers for element-wise noise levels: `train.py edm --precond=edm_gamma` (edm_alpha is plain EDM).

    t = exp(P_mean + P_std n),  c random,  gamma = gamma(t; c),  weight (gamma^2 + sd^2) / (gamma sd)^2 per element,
    loss = weight * (D(data + gamma * noise; t, gamma) - data)^2

Lee et al. 2024, arXiv 2404.14161. Random c are uniform in (-1, 1), smoothed and stretched back to that range map by map
and scaled ("defined"); the published code summed all maps to one, and used f for g where channels share coefficients
("published"), which is kept for comparison with its checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from networks.models.coefficients import (
    CoefficientFamily,
    crop,
    filter_sigma,
    filter_size,
    low_pass,
    parse_flags,
    rescale_like,
)
from torch_utils.options import OptionGroup, opt
from torch_utils.rng import TorchRNG
from training.losses.denoising import EDMLoss

COEFFICIENT_SAMPLERS = ("defined", "published")


@dataclass(frozen=True, kw_only=True)
class RandomCoefficients:
    """Random c for square images.

    Attributes:
        resolution, family: of the images, and of what c is for.
        scale, multidimensionality, lpf, gauss_kernel_sigma: as of `CoefficientNet`.
        variant: key of COEFFICIENT_SAMPLERS.
    """

    resolution: int
    family: CoefficientFamily
    scale: float = 0.05
    multidimensionality: str = "111"
    lpf: bool = True
    gauss_kernel_sigma: float = 4.0
    variant: str = "defined"

    def __post_init__(self) -> None:
        parse_flags(self.multidimensionality)
        if self.variant not in COEFFICIENT_SAMPLERS:
            raise ValueError(
                f"there is no coefficient sampler '{self.variant}': choose from {', '.join(COEFFICIENT_SAMPLERS)}"
            )
        if not self.scale > 0:
            raise ValueError(f"scale={self.scale:g} bounds the coefficients and must be positive: 0.05 is usual")

    def __call__(self, batch: int, rng: TorchRNG) -> Tensor:
        """`[batch, maps, H, W]`; published with low-pass: `[batch, 1, H, W]`, one map for all. One uniform draw."""
        channel, height, width = parse_flags(self.multidimensionality)
        colours, size = self.family.channels, filter_size(self.resolution)
        side = self.resolution + (size + 1 if self.lpf else 0)
        drawn = 2 * (colours if channel else 1) * self.family.M
        u = rng.rand([batch, drawn, side if height else 1, side if width else 1]) * 2 - 1
        if not channel:
            f, g = u.chunk(2, dim=1)
            if self.variant == "published":
                g = f
            u = torch.cat([f.repeat(1, colours, 1, 1), g.repeat(1, colours, 1, 1)], dim=1)
        u = u.expand(-1, -1, side, side)
        if not self.lpf:
            return u * self.scale
        smooth = u.sum(1, keepdim=True) if self.variant == "published" else u
        smooth = low_pass(smooth, size, filter_sigma(self.resolution, self.gauss_kernel_sigma)) / self.family.maps
        return crop(rescale_like(smooth, u), (size + 1) // 2) * self.scale


@dataclass(frozen=True)
class EDMGammaLoss(EDMLoss):
    """The EDM loss with a noise level for every element: `net(x, t, labels, gamma=..., augment_labels=...)`."""

    coefficients: RandomCoefficients | None = None  # required; fields after those with defaults need one

    def levels(self, sigma: Tensor, rng: TorchRNG) -> tuple[Tensor, dict[str, Tensor]]:
        """gamma of random coefficients, which the network is told."""
        with torch.no_grad():
            gamma = self.coefficients.family.gamma(sigma.flatten(), self.coefficients(len(sigma), rng))
        return gamma, {"gamma": gamma}


@dataclass(frozen=True, kw_only=True)
class CoefficientOptions:
    """The coefficient family on the command line; None = not given, see `coefficient_settings`."""

    group: ClassVar = OptionGroup(
        "Coefficients", "With --precond=edm_gamma, and in train_trajectory.py: a level for every element.", 3.5
    )

    scale: float | None = opt(None, "MAC: bound of the coefficients [default: 0.05]", metavar="FLOAT", above=0)
    basis_num: int | None = opt(None, "MAC: number of basis functions [default: 5]", metavar="INT", at_least=1)
    multidimensionality: str | None = opt(
        None, "MAC: whether coefficients differ along channel, height, width, e.g. 011 [default: 111]", metavar="BITS"
    )
    lpf: bool | None = opt(None, "MAC: smooth the coefficients [default: True]", metavar="BOOL")
    gauss_kernel_sigma: float | None = opt(
        None, "MAC: width of the smoothing in pixels of a 32-pixel image [default: 4]", metavar="PIXELS", above=0
    )
    rho: float | None = opt(None, "MAC: exponent that spreads basis (and schedule) [default: 7]", metavar="FLOAT",
                            above=0)  # fmt: skip

    DEFAULTS: ClassVar = {
        "scale": 0.05, "basis_num": 5, "multidimensionality": "111", "lpf": True, "gauss_kernel_sigma": 4.0, "rho": 7.0,
    }  # fmt: skip

    def coefficient_options_given(self) -> list[str]:
        return [name for name in (*self.DEFAULTS, "coefficient_sampler") if getattr(self, name, None) is not None]

    def coefficient_settings(self) -> dict[str, object]:
        """All of them, with defaults.

        Raises:
            ValueError: flags that are no flags.
        """
        values = {n: default if getattr(self, n) is None else getattr(self, n) for n, default in self.DEFAULTS.items()}
        parse_flags(values["multidimensionality"])
        return values


def gamma_loss(net: object, settings: dict[str, object], variant: str | None, **kwargs: float) -> EDMGammaLoss:
    """The loss for a (bare) EDMGammaPrecond; `kwargs`: P_mean, P_std where given."""
    family = CoefficientFamily(net.img_channels, M=settings["basis_num"], rho=settings["rho"])
    names = ("scale", "multidimensionality", "gauss_kernel_sigma")
    coefficients = RandomCoefficients(
        resolution=net.img_resolution, family=family, variant=variant or "defined",
        lpf=settings["lpf"] and net.img_resolution > 1,  # one pixel has no neighbours
        **{n: settings[n] for n in names},
    )  # fmt: skip
    return EDMGammaLoss(sigma_data=net.sigma_data, coefficients=coefficients, **kwargs)
