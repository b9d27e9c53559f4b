"""Multidimensional adaptive coefficients: a noise level for every element, along a path that a network chooses.

With tau = t / t_max, u = tau^(1/rho) and weights c, two maps per image channel,

    S = sum_m c_m sin(pi m u) / m^k,  m = 1..M          f = 1 - tau + S_f^2          g = tau + S_g^2
    gamma(t) = t_max g / (f + g)                        x(t) = data + gamma(t) * noise

c = 0 is the ordinary path gamma(t) = t; gamma(0) = 0 and gamma(t_max) = t_max for every c. `CoefficientNet` predicts c
once per image from the starting noise; smooth maps come from a Gaussian low-pass. Source: Lee et al. 2024/2025,
"Multidimensional adaptive coefficient for inference trajectory optimization", arXiv 2404.14161.

B batch, C image channels, M basis functions; c is [B, 2 C M, H, W]: f of every channel, then g, M running fastest.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.trunks.song_unet import SongUNet
from networks.trunks.unet_block import condition_labels

_EPS = 1e-8  # keeps a constant map finite when it is stretched


@dataclass(frozen=True)
class CoefficientFamily:
    """gamma(t; c) as above, a pure function.

    Attributes:
        channels: image channels C.
        M: basis functions.
        rho: exponent that spreads the basis over noise levels; the rho of the schedule makes u evenly spaced.
        k: smoothness; larger damps higher frequencies. Any real number.
        t_max: largest noise level.
    """

    channels: int = 3
    M: int = 5
    rho: float = 7
    k: float = 0
    t_max: float = 80.0

    def __post_init__(self) -> None:
        if self.M < 1 or self.channels < 1 or not self.rho > 0 or not self.t_max > 0:
            raise ValueError(
                f"coefficients need M >= 1 basis functions, channels >= 1, rho > 0 and t_max > 0; got M={self.M}, "
                f"channels={self.channels}, rho={self.rho:g}, t_max={self.t_max:g}"
            )

    @property
    def maps(self) -> int:
        """Channels of c."""
        return 2 * self.channels * self.M

    def basis(self, t: Tensor) -> Tensor:
        """`t [n] -> [n, M]`, sin(pi m u) / m^k in the dtype of t."""
        m = torch.arange(1, self.M + 1, device=t.device, dtype=t.dtype)
        u = (t / self.t_max) ** (1 / self.rho)
        return torch.sin(math.pi * m * u[:, None]) * m ** -float(self.k)

    def gamma(self, t: Tensor | float, c: Tensor) -> Tensor:
        """Noise level of every element at nominal level `t`.

        Args:
            t: one level or one per sample, [] or [B].
            c: `[B, 2 C M, H, W]`, or one map `[B, 1, H, W]` for all; H and W may be 1.

        Returns:
            `[B, C, H, W]` in the wider of the dtypes of t and c. The sum over the basis is made in the dtype of c.

        Raises:
            ValueError: c with another number of maps.
        """
        f, g = self.shares(t, c)
        return self.t_max * g / (f + g)

    def endpoints(self, t: Tensor | float, c: Tensor) -> tuple[Tensor, Tensor]:
        """Shares of data and noise in the state; here 1 and gamma. For others see `coefficient_families.py`."""
        gamma = self.gamma(t, c)
        return torch.ones_like(gamma), gamma

    def shares(self, t: Tensor | float, c: Tensor) -> tuple[Tensor, Tensor]:
        """f and g, each `[B, C, H, W]`; arguments as of `gamma`, t up to t_max."""
        t = torch.as_tensor(t, device=c.device)
        t = t.to(torch.promote_types(t.dtype, c.dtype)).reshape(-1)
        if c.shape[1] not in (1, self.maps):
            raise ValueError(
                f"coefficients of {self.channels} channels and M={self.M} are {self.maps} maps (or 1 for all), "
                f"got {c.shape[1]}"
            )
        batch = max(len(t), c.shape[0])
        grouped = c.expand(batch, self.maps, -1, -1).unflatten(1, (2 * self.channels, self.M))
        s = torch.einsum("bgmhw,bm->bghw", grouped, self.basis(t).to(c.dtype).expand(batch, -1))
        tau = (t / self.t_max)[:, None, None, None]
        f, g = s.to(tau.dtype).square().chunk(2, dim=1)
        return 1 - tau + f, tau + g


# --- smooth maps -----------------------------------------------------------------------------------------------------


def filter_size(img_resolution: int) -> int:
    """Taps K of the low-pass: 20 * int(resolution / 32) - 1, and in proportion below 32 pixels.

    K + 1 is always a multiple of 4, so that padded maps can be halved as often as the image.
    """
    if img_resolution >= 32:
        return 20 * (img_resolution // 32) - 1
    return 4 * math.ceil(20 * img_resolution / 32 / 4) - 1


def filter_sigma(img_resolution: int, gauss_kernel_sigma: float) -> float:
    """Standard deviation in pixels of a low-pass given in pixels of a 32-pixel image."""
    if not gauss_kernel_sigma > 0:
        raise ValueError(f"gauss_kernel_sigma={gauss_kernel_sigma:g} must be positive: 4 is usual")
    return gauss_kernel_sigma * (img_resolution // 32 if img_resolution >= 32 else img_resolution / 32)


def gaussian_kernel(size: int, sigma: float) -> Tensor:
    """`[size]` float64 on the CPU, exp(-(i - (size - 1) / 2)^2 / (2 sigma^2)), sum 1."""
    i = torch.arange(size, dtype=torch.float64, device="cpu") - (size - 1) / 2
    kernel = torch.exp(-i.square() / (2 * sigma**2))
    return kernel / kernel.sum()


@functools.lru_cache(maxsize=64)
def _band(n: int, size: int, sigma: float, device: torch.device) -> Tensor:
    """The filter with zero padding as a symmetric matrix `[n, n]`, float32, made once per device."""
    with torch.inference_mode(False), torch.no_grad():  # first made while sampling, it must still serve training
        i = torch.arange(n, device="cpu")
        lag = i[:, None] - i + (size - 1) // 2
        inside = (lag >= 0) & (lag < size)
        kernel = gaussian_kernel(size, sigma)
        return torch.where(inside, kernel[lag.clamp(0, size - 1)], 0.0).to(device, torch.float32)


def low_pass(x: Tensor, size: int, sigma: float) -> Tensor:
    """Every map of `x [..., H, W]` filtered by the separable Gaussian of unit sum, zeros outside; same shape.

    Two matrix products: several times faster than a convolution of these sizes, on CPU and GPU.
    """
    height, width = (_band(n, size, sigma, x.device) for n in x.shape[-2:])
    return height.to(x.dtype) @ x @ width.to(x.dtype)


def rescale_like(x: Tensor, like: Tensor) -> Tensor:
    """Stretch each sample of `x [B, ...]` from its own range to that of the same sample of `like [B, ...]`."""
    axes = tuple(range(1, x.ndim))
    low, high = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
    bottom, top = like.amin(axes, keepdim=True), like.amax(axes, keepdim=True)
    return (x - low) / (high - low + _EPS) * (top - bottom) + bottom


def crop(x: Tensor, margin: int) -> Tensor:
    """`[..., H, W]` without `margin` pixels on every side."""
    return x[..., margin:-margin, margin:-margin] if margin else x


def parse_flags(multidimensionality: str) -> tuple[bool, bool, bool]:
    """`"011"` -> whether coefficients differ between channels, rows, columns.

    Raises:
        ValueError: anything but three digits 0 or 1.
    """
    if len(multidimensionality) != 3 or set(multidimensionality) - {"0", "1"}:
        raise ValueError(
            f"multidimensionality '{multidimensionality}' is not three digits 0 or 1 for channel, height and width: "
            "write 111 for a coefficient per element, 011 to share it between channels, 000 for one per image"
        )
    channel, height, width = (d == "1" for d in multidimensionality)
    return channel, height, width


# --- the network -----------------------------------------------------------------------------------------------------


class CoefficientUNet(SongUNet):
    """SongUNet without noise level: its blocks are steered by the class alone. Keys as SongUNet."""

    def embed(
        self, x: Tensor, noise_labels: Tensor | None, class_labels: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        if self.map_label is None:
            # Nothing to embed. The two layers are in the published checkpoints but unused; their zero share keeps them
            # in the graph, which gradient averaging over processes wants.
            unused = sum(p.sum() for layer in (self.map_layer0, self.map_layer1) for p in layer.parameters())
            return torch.zeros(1, self.map_layer1.weight.shape[0], device=x.device) + 0 * unused
        labels = condition_labels(class_labels, x, self.label_dim, self.label_dropout, self.training)
        emb = F.silu(self.map_layer0(self.map_label(labels * math.sqrt(self.label_dim))))
        return F.silu(self.map_layer1(emb))


class CoefficientNet(nn.Module):
    """c of an image from its starting noise: U-Net, tanh, averages over shared axes, low-pass, scale.

    Args:
        img_resolution, img_channels, label_dim: of the images and one-hot labels.
        M: basis functions.
        scale: bound of |c|.
        multidimensionality: which axes coefficients differ along, see `parse_flags`.
        lpf: smooth the maps; the network then sees noise padded by (K + 1) / 2 zeros on every side.
        gauss_kernel_sigma: of the low-pass, in pixels of a 32-pixel image.
        x_0_conditioning: look at the noise; else at ones, so that all images of a class share one c.
        downsample: work on noise averaged over squares of this side and enlarge the maps: a lean network.
        unet: further arguments of `CoefficientUNet`.

    Raises:
        ValueError: sizes that do not fit each other, in one sentence.

    Keys: `UNet.*`. The filter is no part of the state.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int = 3,
        label_dim: int = 0,
        M: int = 5,
        scale: float = 0.05,
        multidimensionality: str = "111",
        lpf: bool = True,
        gauss_kernel_sigma: float = 4.0,
        x_0_conditioning: bool = True,
        downsample: int = 1,
        model_channels: int = 256,
        channel_mult: Sequence[int] = (1, 2, 4),
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        channel_mult_emb: int = 4,
        dropout: float = 0,
        **unet: Any,
    ) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale={scale:g} bounds the coefficients and must be positive: 0.05 is usual")
        if downsample < 1 or img_resolution % downsample:
            raise ValueError(f"downsample={downsample} does not divide the resolution {img_resolution}")
        self.resolution, self.channels, self.label_dim, self.M = img_resolution, img_channels, label_dim, M
        self.scale, self.flags, self.lpf = scale, parse_flags(multidimensionality), lpf
        self.x_0_conditioning, self.downsample = x_0_conditioning, downsample
        inner = img_resolution // downsample
        self.filter = (filter_size(inner), filter_sigma(inner, gauss_kernel_sigma)) if lpf else None
        padded, halvings = inner + 2 * self.margin, len(channel_mult) - 1
        if padded % 2**halvings:
            raise ValueError(
                f"the filter cannot serve resolution {inner}: maps of {padded} pixels (padded for the low-pass) cannot "
                f"be halved {halvings} times; use fewer channel multipliers or leave the low-pass off"
            )
        self.UNet = CoefficientUNet(
            img_resolution=inner,
            in_channels=img_channels,
            out_channels=2 * img_channels * M,
            label_dim=label_dim,
            model_channels=model_channels,
            channel_mult=channel_mult,
            num_blocks=num_blocks,
            attn_resolutions=attn_resolutions,
            channel_mult_emb=channel_mult_emb,
            dropout=dropout,
            **unet,
        )

    @property
    def margin(self) -> int:
        """Pixels that the low-pass needs around the image."""
        return (self.filter[0] + 1) // 2 if self.filter else 0

    def forward(self, noise: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """`noise [B, C, H, W]` of unit variance, one-hot labels `[B, label_dim]` or None -> c `[B, 2 C M, H, W]`."""
        z = noise.to(torch.float32)
        if self.downsample > 1:
            z = F.avg_pool2d(z, self.downsample) * self.downsample  # still unit variance
        z = F.pad(z, [self.margin] * 4)
        out = self.UNet(z if self.x_0_conditioning else torch.ones_like(z), None, class_labels).tanh()
        out = self._share(out)
        if self.filter is not None:
            # The published kernel sums to 1 / maps, which sets the weight of the eps in the rescaling.
            smooth = low_pass(out, *self.filter) / out.shape[1]
            out = crop(rescale_like(smooth, out), self.margin)
        if self.downsample > 1:
            out = F.interpolate(out, scale_factor=self.downsample, mode="bilinear", align_corners=False)
        return out * self.scale

    def _share(self, c: Tensor) -> Tensor:
        """Averages along the axes that coefficients do not differ along, in the same shape."""
        channel, height, width = self.flags
        if not channel:
            grouped = c.unflatten(1, (2, self.channels, self.M))
            c = grouped.mean(2, keepdim=True).expand_as(grouped).flatten(1, 3)
        if not height:
            c = c.mean(2, keepdim=True).expand_as(c)
        if not width:
            c = c.mean(3, keepdim=True).expand_as(c)
        return c
