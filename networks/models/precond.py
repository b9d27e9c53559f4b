"""Preconditioners: a network F wrapped into a denoiser D(x; sigma) of x = data + sigma * noise.

    D(x; sigma) = c_skip * x + c_out * F(c_in * x; c_noise)      Karras et al. 2022, arXiv 2206.00364, eq. 7, table 1

EDM's own are here, those before it in `networks/models/baselines.py`. These networks were trained with one noise level
per sample; driven along an element-wise map, their scalings and embedding see the mean of each sample.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from networks.models.base import Model, make_trunk
from networks.trunks.context import ContextTrunk
from networks.trunks.dhariwal_unet import DhariwalUNet
from networks.trunks.mlp import FourierMLP
from networks.trunks.song_unet import SongUNet
from torch_utils.misc import expand_to

MODELS: dict[str, type[nn.Module]] = {
    "SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet, "FourierMLP": FourierMLP, "ContextTrunk": ContextTrunk,
}  # fmt: skip

# Floor of logarithms: sigma = 0 stays finite and every normal float32 stays as it is.
TINY = torch.finfo(torch.float32).tiny


class Precond(Model):
    """What the four preconditioners share; a subclass defines `scalings`.

    Attributes:
        sigma_min, sigma_max: range of noise levels (floats).
        compute_dtype: as of every model; the embedding stays float32.
        path, predicts: how samplers read this model.
    """

    path = "ve"
    predicts = "data"

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        use_fp16: bool,
        sigma_min: float,
        sigma_max: float,
        model_type: str,
        model_kwargs: dict[str, Any],
        out_channels: int | None = None,
        in_channels: int | None = None,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.use_fp16 = use_fp16
        inside, outside = in_channels or img_channels, out_channels or img_channels
        self.model = make_trunk(
            MODELS, model_type, img_resolution, inside, outside, label_dim=label_dim, **model_kwargs
        )

    @property
    def use_fp16(self) -> bool:
        return self.compute_dtype == torch.float16

    @use_fp16.setter
    def use_fp16(self, value: bool) -> None:
        self.compute_dtype = torch.float16 if value else torch.float32

    def scalings(self, sigma: Tensor) -> tuple[Tensor | float, Tensor, Tensor | float, Tensor]:
        """(c_skip, c_out, c_in, c_noise) of noise levels `sigma [N or 1, 1, 1, 1]`, float32."""
        raise TypeError(f"{type(self).__name__} does not define scalings")

    def _labels(self, labels: Tensor | None, x: Tensor) -> Tensor | None:
        if self.label_dim == 0:
            return None
        if labels is None:
            return torch.zeros(1, self.label_dim, device=x.device)
        labels = labels.to(torch.float32)
        labels = labels[None] if labels.ndim == 1 else labels
        if labels.ndim != 2 or labels.shape[0] not in (1, x.shape[0]) or labels.shape[1] != self.label_dim:
            raise ValueError(
                f"class labels of shape {list(labels.shape)} do not fit: give one-hot rows "
                f"[{x.shape[0]}, {self.label_dim}], one per image, or one row for all"
            )
        return labels

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        force_fp32: bool = False,
        **model_kwargs: Any,
    ) -> Tensor:
        """The clean estimate of x, float32.

        Args:
            x: `[N, C, H, W]`, data + sigma * noise.
            sigma: noise level, any dtype: one value, one per sample `[N]`, or a map that broadcasts to x.
            class_labels: one-hot `[N, label_dim]`; None: no label. Ignored by an unconditional network.
            force_fp32: compute in float32 whatever `compute_dtype` says.
            model_kwargs: passed to the network, for example augment_labels `[N, augment_dim]`.

        Raises:
            ValueError: sigma or labels of a shape that does not fit x.
        """
        x = x.to(torch.float32)
        sigma = per_sample_level(sigma, x)
        dtype = self.trunk_dtype(x, force_fp32)
        c_skip, c_out, c_in, c_noise = self.scalings(sigma)
        out = self.model((c_in * x).to(dtype), c_noise.flatten(), self._labels(class_labels, x), **model_kwargs)
        return c_skip * x + c_out * out[:, : self.img_channels].to(torch.float32)


def per_sample_level(sigma: Tensor | float, x: Tensor) -> Tensor:
    """Noise levels as float32 `[N or 1, 1, 1, 1]`; of a map, the mean over the elements of each sample."""
    sigma = expand_to(torch.as_tensor(sigma, device=x.device), x)
    if math.prod(sigma.shape[1:]) > 1:
        sigma = sigma.mean(dim=tuple(range(1, sigma.ndim)), dtype=torch.float64)
    return sigma.to(torch.float32).reshape(-1, *[1] * (x.ndim - 1))


class EDMPrecond(Precond):
    """EDM: c_skip sd^2 / v, c_out sigma sd / sqrt(v), c_in 1 / sqrt(v), c_noise log(sigma) / 4 with v = sigma^2 + sd^2.

    `sigma_data` (sd) is the standard deviation of the data. At sigma = 0 the denoiser is the identity.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0,
        sigma_max: float = math.inf,
        sigma_data: float = 0.5,
        model_type: str = "DhariwalUNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(
            img_resolution, img_channels, label_dim, use_fp16, sigma_min, sigma_max, model_type, model_kwargs
        )
        self.sigma_data = sigma_data

    def scalings(self, sigma: Tensor) -> tuple[Tensor | float, Tensor, Tensor | float, Tensor]:
        variance = sigma.square() + self.sigma_data**2
        c_in = variance.rsqrt()
        return self.sigma_data**2 / variance, sigma * self.sigma_data * c_in, c_in, sigma.clamp_min(TINY).log() / 4


class EDMGammaPrecond(EDMPrecond):
    """EDM with a noise level for every element, which the network also sees (Lee et al. 2024, arXiv 2404.14161).

    c_skip, c_out and c_in of EDM are maps of gamma; the network is given c_in * x besides ln(gamma) / 4, 2 img_channels
    in all, and its embedding ln(sigma) / 4 of the nominal level sigma. Keys as EDMPrecond.
    """

    takes_gamma = True

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0,
        sigma_max: float = math.inf,
        sigma_data: float = 0.5,
        model_type: str = "SongUNet",
        **model_kwargs: Any,
    ) -> None:
        Precond.__init__(
            self, img_resolution, img_channels, label_dim, use_fp16, sigma_min, sigma_max, model_type, model_kwargs,
            in_channels=2 * img_channels,
        )  # fmt: skip
        self.sigma_data = sigma_data

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        force_fp32: bool = False,
        *,
        gamma: Tensor | None = None,
        **model_kwargs: Any,
    ) -> Tensor:
        """The clean estimate of x = data + gamma * noise, float32.

        Args:
            sigma: nominal noise level.
            gamma: noise level of every element, broadcasts to x; None: sigma, and of a map of sigma the mean is told as
                the nominal level.
            x, class_labels, force_fp32, model_kwargs: as of every preconditioner.
        """
        x = x.to(torch.float32)
        gamma = torch.as_tensor(sigma, device=x.device) if gamma is None else gamma
        gamma = expand_to(gamma, x).to(torch.float32).expand_as(x)
        dtype = self.trunk_dtype(x, force_fp32)
        c_skip, c_out, c_in, told = self.scalings(gamma)
        seen = torch.cat([c_in * x, told], dim=1).to(dtype)
        c_noise = self.scalings(per_sample_level(sigma, x))[3].flatten()
        out = self.model(seen, c_noise, self._labels(class_labels, x), **model_kwargs)
        return c_skip * x + c_out * out.to(torch.float32)
