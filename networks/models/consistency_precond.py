"""CMPrecond: the denoiser that consistency models start from (Song et al. 2023, arXiv 2303.01469).

EDM's scalings around a guided-diffusion U-Net that is told 1000 ln(sigma) / 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from networks.models.base import Model
from networks.models.precond import EDMPrecond
from networks.trunks.adm_unet import ADMUNet


class CMPrecond(EDMPrecond):
    """EDM's denoiser with an `ADMUNet`. Distilled consistency models have other scalings and are no denoisers.

    Args:
        img_resolution, img_channels, label_dim: of the images and classes.
        network: further arguments of `ADMUNet`.
        sigma_min, sigma_max, sigma_data: noise levels and standard deviation of the data.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        network: Mapping[str, Any],
        label_dim: int = 0,
        sigma_min: float = 0.002,
        sigma_max: float = 80,
        sigma_data: float = 0.5,
    ) -> None:
        Model.__init__(self, img_resolution, img_channels, label_dim)
        self.sigma_min, self.sigma_max, self.sigma_data = sigma_min, sigma_max, sigma_data
        shape = {"img_resolution": img_resolution, "in_channels": img_channels, "out_channels": img_channels}
        self.model = ADMUNet(**{**shape, "label_dim": label_dim, **network})

    def scalings(self, sigma: Tensor) -> tuple[Tensor | float, Tensor, Tensor | float, Tensor]:
        c_skip, c_out, c_in, c_noise = super().scalings(sigma)
        return c_skip, c_out, c_in, 1000 * c_noise

    def _labels(self, labels: Tensor | None, x: Tensor) -> Tensor | None:
        if self.label_dim and labels is None:
            raise ValueError(f"this network has {self.label_dim} classes and none was given: pass class_labels")
        return super()._labels(labels, x)
