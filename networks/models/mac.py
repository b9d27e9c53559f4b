"""MACNetwork: a denoiser together with the coefficient network that chooses its noise levels.

As a network it is its denoiser V. `family.gamma` turns nominal levels into the element-wise ones gamma(sigma; c) with
c = `coefficients(noise, labels)`, along which `samplers.solvers.elementwise` samples: x_i = data + gamma(sigma_i)
* noise (Lee et al. 2024, arXiv 2404.14161). The nominal schedule it was trained with is part of it. V may live on
another path than that of denoisers; levels are then those of the field in sigma coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from networks.models.coefficient_families import FAMILIES
from networks.models.coefficient_mlp import CoefficientMLP
from networks.models.coefficients import CoefficientNet
from networks.models.noise_precond import OnLevels
from networks.models.precond import per_sample_level


class MACNetwork(nn.Module):
    """V and C. State-dict keys: `V.*` of the denoiser, `C.UNet.*` of the coefficient network (of points: `C.MLP.*`).

    Args:
        network: V; in `net.config`, and for `networks.build`, its class name and arguments.
        coefficients: arguments of `CoefficientNet` or `CoefficientMLP` (points): all but size, channels, labels, M.
        schedule: nominal noise levels, noisy to clean, without the final 0; of a flow family they begin at infinity.
        M, rho, k, t_max: the family, see `CoefficientFamily`; t_max of "edm" alone.
        family: key of `networks.models.coefficient_families.FAMILIES`.

    Raises:
        ValueError: parts that do not fit each other.
    """

    PARTS = ("network",)

    def __init__(
        self,
        network: nn.Module,
        coefficients: Mapping[str, Any],
        schedule: Sequence[float],
        M: int = 5,
        rho: float = 7,
        k: float = 0,
        t_max: float = 80.0,
        family: str = "edm",
    ) -> None:
        super().__init__()
        self.V = network
        for name in ("img_resolution", "img_channels", "label_dim"):
            setattr(self, name, getattr(self.V, name))
        self.path, self.predicts = self.V.path, self.V.predicts
        self.gaussian_noise = getattr(self.V, "gaussian_noise", True)
        self._set_family(family, M, rho, k, t_max)
        if self.img_resolution == 1:
            self.C = CoefficientMLP(self.img_channels, self.label_dim, M, **coefficients)
        else:
            self.C = CoefficientNet(self.img_resolution, self.img_channels, self.label_dim, M, **coefficients)
        self.schedule = tuple(float(s) for s in schedule)

    def _set_family(self, family: str, M: int, rho: float, k: float, t_max: float) -> None:
        if family not in FAMILIES:
            raise ValueError(f"there is no family '{family}': choose from {', '.join(FAMILIES)}")
        flow = family != "edm"
        if flow and self.path not in ("linear", "trig"):
            raise ValueError(
                f"the family {family} begins in pure noise, which a network on the path {self.path} does not know: "
                "use edm"
            )
        self.start = "exact" if flow else "scaled"
        ends = {} if flow else {"t_max": t_max}
        self.family = FAMILIES[family](self.img_channels, M, rho, k, **ends)

    def __getattr__(self, name: str) -> Any:
        """The range of levels is V's: of one with a table it is known only when that is filled."""
        if name in ("sigma_min", "sigma_max"):
            return getattr(super().__getattr__("V"), name)
        return super().__getattr__(name)

    @property
    def takes_gamma(self) -> bool:
        """V is told the element-wise levels besides the nominal one."""
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
        """What V predicts; see `Precond.forward`, and `VelocityNetwork.forward` on another path.

        A V with a table of levels, which knows one a sample, is told the mean over its elements, as others take it.
        """
        if isinstance(self.V, OnLevels):
            sigma = per_sample_level(sigma, x)
        return self.V(x, sigma, class_labels, **kwargs)

    def coefficients(self, noise: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """c `[B, 2 C M, H, W]` of unit noise `[B, C, H, W]`."""
        return self.C(noise, class_labels)
