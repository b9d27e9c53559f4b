"""Denoising losses: weight(sigma) * (D(data + sigma * noise; sigma) - data)^2, element by element, not reduced.

    VPLoss   sigma = VP noise level at a uniform time      weight 1 / sigma^2           (Song et al. 2021, 2011.13456)
    VELoss   ln sigma uniform                              weight 1 / sigma^2           (Song et al. 2021, 2011.13456)
    EDMLoss  ln sigma ~ N(P_mean, P_std^2)                 weight (sigma^2 + sigma_data^2) / (sigma * sigma_data)^2

as tabulated in Karras et al. 2022 (arXiv 2206.00364, table 1). Per batch the random numbers come in this order: noise
levels, augmentation, noise. `loss_for` reads from the network what loss and preconditioning must agree on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from networks.models.baselines import vp_sigma
from torch_utils.rng import TorchRNG
from training.augment import AugmentPipe


@dataclass(frozen=True)
class DenoisingLoss:
    """What the three share; a member says how levels are drawn and weighted."""

    def draw(self, rng: TorchRNG, shape: list[int]) -> Tensor:
        """The random variable behind the noise level; uniform on [0, 1) unless a member overrides it."""
        return rng.rand(shape)

    def sigma(self, r: Tensor) -> Tensor:
        """Noise level for a drawn variable."""
        raise TypeError(f"{type(self).__name__} does not say how noise levels are distributed")

    def weight(self, sigma: Tensor) -> Tensor:
        return 1 / sigma**2

    def levels(self, sigma: Tensor, rng: TorchRNG) -> tuple[Tensor, dict[str, Tensor]]:
        """Levels of the noise of elements at nominal levels `sigma`, and what the network is told besides these."""
        return sigma, {}

    def __call__(
        self,
        net: Callable[..., Tensor],
        images: Tensor,
        labels: Tensor | None = None,
        augment_pipe: AugmentPipe | None = None,
        rng: TorchRNG | None = None,
    ) -> Tensor:
        """Loss of every element, of the shape of `images`. Drawn in this order: levels, augmentation, noise.

        Args:
            net: `net(x, sigma, labels, augment_labels=...)` -> clean estimate; sigma is `[N, 1, ...]`. The keyword is
                passed only if there is an augmentation pipe.
            images: `[N, ...]` floating point; any rank unless they are augmented.
            labels: `[N, label_dim]` or None, handed to the network.
            augment_pipe: `pipe(images, rng=...) -> (images, labels)`.
            rng: source of all draws; None = torch's global generator of the images' device.

        Raises:
            ValueError: integer images.
        """
        if not images.is_floating_point():
            raise ValueError(f"a loss needs floating-point images in [-1, 1], got {images.dtype}: convert them first")
        rng = TorchRNG(images.device) if rng is None else rng
        sigma = self.sigma(self.draw(rng, [images.shape[0]] + [1] * (images.ndim - 1)))
        level, extra = self.levels(sigma, rng)
        if augment_pipe is not None:
            images, extra["augment_labels"] = augment_pipe(images, rng=rng)
        noise = rng.randn_like(images)
        denoised = net(images + noise * level, sigma, labels, **extra)
        return self.weight(level) * (denoised - images) ** 2


@dataclass(frozen=True)
class VPLoss(DenoisingLoss):
    """Time uniform on [epsilon_t, 1] of the variance-preserving process with linear beta."""

    beta_d: float = 19.9
    beta_min: float = 0.1
    epsilon_t: float = 1e-5

    def sigma(self, r: Tensor) -> Tensor:
        t = 1 + r * (self.epsilon_t - 1)
        # exp(..) - 1 rather than expm1: the levels of published VP models, whose smallest ones carry float32 rounding.
        return vp_sigma(t, self.beta_d, self.beta_min)


@dataclass(frozen=True)
class VELoss(DenoisingLoss):
    """Geometric levels between sigma_min and sigma_max."""

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def sigma(self, r: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** r


@dataclass(frozen=True)
class EDMLoss(DenoisingLoss):
    """Log-normal levels, weighted so that every level starts with a loss of about one."""

    P_mean: float = -1.2
    P_std: float = 1.2
    sigma_data: float = 0.5

    def draw(self, rng: TorchRNG, shape: list[int]) -> Tensor:
        return rng.randn(shape)

    def sigma(self, r: Tensor) -> Tensor:
        return torch.exp(self.P_mean + self.P_std * r)

    def weight(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


LOSSES: dict[str, type[DenoisingLoss]] = {"VPLoss": VPLoss, "VELoss": VELoss, "EDMLoss": EDMLoss}

_SHARED = ("sigma_data", "beta_d", "beta_min", "epsilon_t")  # what a preconditioning and its loss must agree on


def loss_for(net: Any, name: str, **kwargs: Any) -> DenoisingLoss:
    """The loss `name` of `LOSSES` for a (bare) network; sigma_data and the VP constants not given are the network's.

    Raises:
        ValueError: unknown loss or option; the message names the known ones.
    """
    if name not in LOSSES:
        raise ValueError(f"unknown loss '{name}': choose one of {', '.join(LOSSES)}")
    known = [f.name for f in fields(LOSSES[name])]
    unknown = sorted(kwargs.keys() - set(known))
    if unknown:
        raise ValueError(f"{name} has no option '{unknown[0]}': it takes {', '.join(known)}")
    shared = {key: getattr(net, key) for key in _SHARED if key in known and hasattr(net, key)}
    return LOSSES[name](**{**shared, **kwargs})
