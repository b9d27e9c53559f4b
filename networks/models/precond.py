"""Preconditioners: a network F wrapped into a denoiser D(x; sigma) of x = data + sigma * noise.

    D(x; sigma) = c_skip * x + c_out * F(c_in * x; c_noise)      Karras et al. 2022, arXiv 2206.00364, eq. 7, table 1

VP and VE after Song et al. 2021 (arXiv 2011.13456), iDDPM after Nichol and Dhariwal 2021 (arXiv 2102.09672), EDM after
Karras et al. themselves. These networks were trained with one noise level per sample; driven along an element-wise map,
their scalings and embedding see the mean of each sample.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from networks.trunks.dhariwal_unet import DhariwalUNet
from networks.trunks.mlp import FourierMLP
from networks.trunks.song_unet import SongUNet
from torch_utils.misc import expand_to

__all__ = [
    "MODELS",
    "EDMGammaPrecond",
    "EDMPrecond",
    "Precond",
    "VEPrecond",
    "VPPrecond",
    "iDDPMPrecond",
    "vp_sigma",
    "vp_time",
]

MODELS: dict[str, type[nn.Module]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet, "FourierMLP": FourierMLP}

# Floor of logarithms: sigma = 0 stays finite and every normal float32 stays as it is.
_TINY = torch.finfo(torch.float32).tiny


class Precond(nn.Module):
    """What the four preconditioners share; a subclass defines `scalings`.

    Attributes:
        img_resolution, img_channels, label_dim: of the images and one-hot labels.
        sigma_min, sigma_max: range of noise levels (floats).
        compute_dtype: dtype of the convolutional trunk. float16 counts on CUDA only, bfloat16 everywhere; the embedding
            stays float32. A matter of the moment, not of the weights: set it at any time.
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
        if model_type not in MODELS:
            raise ValueError(f"model_type '{model_type}' is unknown: choose one of {', '.join(MODELS)}")
        super().__init__()
        self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.compute_dtype = torch.float16 if use_fp16 else torch.float32
        self.model = MODELS[model_type](
            img_resolution=img_resolution,
            in_channels=in_channels or img_channels,
            out_channels=out_channels or img_channels,
            label_dim=label_dim,
            **model_kwargs,
        )

    @property
    def use_fp16(self) -> bool:
        return self.compute_dtype == torch.float16

    @use_fp16.setter
    def use_fp16(self, value: bool) -> None:
        self.compute_dtype = torch.float16 if value else torch.float32

    @property
    def label_dropout(self) -> float:
        """Share of the labels left out in training; above 0, the network also knows the empty label (zeros)."""
        return self.model.label_dropout

    def scalings(self, sigma: Tensor) -> tuple[Tensor | float, Tensor, Tensor | float, Tensor]:
        """(c_skip, c_out, c_in, c_noise) of noise levels `sigma [N or 1, 1, 1, 1]`, float32."""
        raise TypeError(f"{type(self).__name__} does not define scalings")

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """The nearest noise level that the network supports: every one."""
        return torch.as_tensor(sigma)

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

    def _dtype(self, x: Tensor, force_fp32: bool) -> torch.dtype:
        """Of the trunk in this call."""
        if force_fp32 or (self.compute_dtype == torch.float16 and x.device.type != "cuda"):
            return torch.float32
        return self.compute_dtype

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
        dtype = self._dtype(x, force_fp32)
        c_skip, c_out, c_in, c_noise = self.scalings(sigma)
        out = self.model((c_in * x).to(dtype), c_noise.flatten(), self._labels(class_labels, x), **model_kwargs)
        return c_skip * x + c_out * out[:, : self.img_channels].to(torch.float32)


def per_sample_level(sigma: Tensor | float, x: Tensor) -> Tensor:
    """Noise levels as float32 `[N or 1, 1, 1, 1]`; of a map, the mean over the elements of each sample."""
    sigma = expand_to(torch.as_tensor(sigma, device=x.device), x)
    if math.prod(sigma.shape[1:]) > 1:
        sigma = sigma.mean(dim=tuple(range(1, sigma.ndim)), dtype=torch.float64)
    return sigma.to(torch.float32).reshape(-1, *[1] * (x.ndim - 1))


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
        return 1.0, sigma, 1.0, (0.5 * sigma).clamp_min(_TINY).log()


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
        return self.sigma_data**2 / variance, sigma * self.sigma_data * c_in, c_in, sigma.clamp_min(_TINY).log() / 4


class EDMGammaPrecond(EDMPrecond):
    """EDM with a noise level for every element, which the network also sees (Lee et al. 2024, arXiv 2404.14161).

    c_skip, c_out and c_in of EDM are maps of gamma; the network is given c_in * x beside ln(gamma) / 4, 2 img_channels
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
        dtype = self._dtype(x, force_fp32)
        c_skip, c_out, c_in, told = self.scalings(gamma)
        seen = torch.cat([c_in * x, told], dim=1).to(dtype)
        c_noise = self.scalings(per_sample_level(sigma, x))[3].flatten()
        out = self.model(seen, c_noise, self._labels(class_labels, x), **model_kwargs)
        return c_skip * x + c_out * out.to(torch.float32)
