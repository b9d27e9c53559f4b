"""MACNetwork: a denoiser together with the coefficient network that chooses its noise levels.

As a network it is its denoiser V. `levels(noise, labels, sigmas)` turns nominal levels into the element-wise ones
gamma(sigma; c), c = C(noise, labels), along which `samplers.mac` samples: x_i = data + gamma(sigma_i) * noise
(Lee et al. 2024, arXiv 2404.14161). The nominal schedule it was trained with is part of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from networks.coefficients import CoefficientFamily, CoefficientNet

__all__ = ["MACNetwork"]


class MACNetwork(nn.Module):
    """V and C. State-dict keys: `V.*` of the denoiser, `C.UNet.*` of the coefficient network.

    Args:
        network: class name and arguments of V, as in `net.config`.
        coefficients: arguments of `CoefficientNet` beside resolution, channels, labels and M.
        schedule: nominal noise levels, noisy to clean, without the final 0.
        M, rho, k, t_max: the family, see `CoefficientFamily`.

    Raises:
        ValueError: parts that do not fit each other.
    """

    path = "ve"
    predicts = "data"

    def __init__(
        self,
        network: Mapping[str, Any],
        coefficients: Mapping[str, Any],
        schedule: Sequence[float],
        M: int = 5,
        rho: float = 7,
        k: float = 0,
        t_max: float = 80.0,
    ) -> None:
        from networks.registry import build  # the registry lists this class

        if network.get("class_name") == "MACNetwork":
            raise ValueError("the denoiser of a MACNetwork cannot be a MACNetwork itself")
        super().__init__()
        self.V = build(**network)
        for name in ("img_resolution", "img_channels", "label_dim", "sigma_min", "sigma_max"):
            setattr(self, name, getattr(self.V, name))
        self.family = CoefficientFamily(self.img_channels, M, rho, k, t_max)
        self.C = CoefficientNet(self.img_resolution, self.img_channels, self.label_dim, M, **coefficients)
        self.schedule = tuple(float(s) for s in schedule)

    @property
    def takes_gamma(self) -> bool:
        """V is told the element-wise levels beside the nominal one."""
        return getattr(self.V, "takes_gamma", False)

    @property
    def compute_dtype(self) -> torch.dtype:
        return self.V.compute_dtype

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype) -> None:
        self.V.compute_dtype = dtype

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        return self.V.round_sigma(sigma)

    def forward(self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None, **kwargs: Any) -> Tensor:
        """The clean estimate of V; see `Precond.forward`."""
        return self.V(x, sigma, class_labels, **kwargs)

    def coefficients(self, noise: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """c `[B, 2 C M, H, W]` of unit noise `[B, C, H, W]`."""
        return self.C(noise, class_labels)

    def levels(self, noise: Tensor, class_labels: Tensor | None, sigmas: Tensor | Sequence[float]) -> list[Tensor]:
        """Maps `[B, C, H, W]` float64, one per nominal level; zeros where the level is 0."""
        c = self.coefficients(noise, class_labels)
        nominal = torch.as_tensor(sigmas, dtype=torch.float64).tolist()
        return [self.family.gamma(torch.tensor(s, dtype=torch.float64), c) for s in nominal]
