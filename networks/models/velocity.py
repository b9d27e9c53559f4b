"""VelocityNetwork: a network v(x_t, t) that predicts dx_t/dt = noise - data along x_t = (1 - t) data + t noise.

Lipman et al. 2023 (arXiv 2210.02747), Liu et al. 2023 (arXiv 2209.03003); with noise that depends on the data, Lee,
Kim, Ye 2023 (arXiv 2301.12003). Unlike a preconditioned denoiser it wraps nothing around its trunk: the trunk is given
x_t and the time as they are. `Field` translates to a denoiser in sigma coordinates.

A model that was trained on a learned coupling does not start from the Gaussian that it was pulled towards but from the
distribution q(z) of encoded data, which is narrower. `NoisePrior` is a Gaussian with moments measured on q(z).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from networks.models.base import Model, make_trunk
from networks.models.precond import per_sample_level
from networks.trunks.adm_unet import ADMUNet
from networks.trunks.mlp import MLP, FourierMLP
from networks.trunks.song_unet import SongUNet

TRUNKS: dict[str, type[nn.Module]] = {"SongUNet": SongUNet, "ADMUNet": ADMUNet, "MLP": MLP, "FourierMLP": FourierMLP}


class NoisePrior(nn.Module):
    """A Gaussian over start noise: measured deviation per element, and further factors along some directions.

    z = std * (rest * eps + sum_k (gain_k - rest) u_k <u_k, eps>), eps ~ N(0, I): the symmetric root of a covariance
    that is diagonal plus low rank, so that unit noise maps to start noise without further random numbers. The mean
    stays 0: a measured one made samples worse (docs/curvature.md).

    Keys (all buffers): std `[C, H, W]`; directions `[rank, D]` orthonormal; gains `[rank]`; rest `[]`.
    """

    std: Tensor
    directions: Tensor
    gains: Tensor
    rest: Tensor

    def __init__(self, shape: Sequence[int], rank: int = 0) -> None:
        if not 0 <= rank <= math.prod(shape):
            raise ValueError(f"prior_rank={rank} is not possible for {math.prod(shape)} elements: give 0 or more")
        super().__init__()
        self.register_buffer("std", torch.ones(*shape))
        self.register_buffer("directions", torch.zeros(rank, math.prod(shape)))
        self.register_buffer("gains", torch.ones(rank))
        self.register_buffer("rest", torch.ones(()))

    def forward(self, noise: Tensor) -> Tensor:
        """Unit noise `[B, ...]` -> start noise `[B, ...]`, in its dtype."""
        eps, dtype = noise.flatten(1), noise.dtype
        directions = self.directions.to(dtype)
        along = eps @ directions.T * (self.gains - self.rest).to(dtype)
        z = self.rest.to(dtype) * eps + along @ directions
        return self.std.to(dtype) * z.reshape(noise.shape)


class VelocityNetwork(Model):
    """A trunk as a velocity field in native time, t = 0 at the data.

    Args:
        img_resolution, img_channels: of the data, `[B, C, H, W]` with H = W = img_resolution.
        label_dim: width of one-hot class labels; SongUNet only.
        model_type: key of TRUNKS; `model_kwargs` are its further arguments.
        time_scale: the trunk is given time_scale * t.
        gaussian_noise: the noise of training was Gaussian and independent of the data, so that scores can be had.
        prior_std: deviations per channel of the Gaussian that training aimed at; None: 1.
        prior_rank: directions of the measured prior; None: no measured prior.
        path: "linear", or instead "vp", the variance-preserving path, or "trig", cos and sin of time.

    Attributes:
        path, predicts, start: how samplers read this model. start = "exact": the state at infinite sigma is known.

    Raises:
        ValueError: arguments that do not fit, in one sentence.
    """

    models = TRUNKS
    predicts = "velocity"

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        model_type: str = "SongUNet",
        time_scale: float = 1.0,
        gaussian_noise: bool = False,
        prior_std: Sequence[float] | None = None,
        prior_rank: int | None = None,
        path: str = "linear",
        **model_kwargs: Any,
    ) -> None:
        if label_dim and model_type != "SongUNet":
            raise ValueError(f"a velocity network of type {model_type} takes no class labels: train it with --cond=0")
        if prior_std is not None and (len(prior_std) != img_channels or min(prior_std) <= 0):
            raise ValueError(f"prior_std={list(prior_std)}: give {img_channels} positive deviations, one per channel")
        if path not in ("linear", "vp", "trig"):
            raise ValueError(f"a velocity network lives on the path linear, vp or trig, not on '{path}'")
        super().__init__(img_resolution, img_channels, label_dim)
        self.time_scale, self.gaussian_noise = time_scale, gaussian_noise
        self.path, self.start = path, "scaled" if path == "vp" else "exact"
        self.prior_std = None if prior_std is None else list(prior_std)
        labels = {"label_dim": label_dim} if model_type == "SongUNet" else {}
        self.model = make_trunk(
            TRUNKS, model_type, img_resolution, img_channels, img_channels, **labels, **model_kwargs
        )
        shape = (img_channels, img_resolution, img_resolution)
        self.prior = None if prior_rank is None else NoisePrior(shape, prior_rank)

    @property
    def priors(self) -> tuple[str, ...]:
        """The start distributions that `start_noise` knows, the recommended one first.

        As measured (docs/curvature.md): points start best from the matched one. Few steps make images too narrow, for
        which the wider prior makes up.
        """
        if self.prior is None:
            return ("standard",)
        return ("matched", "standard") if self.img_resolution == 1 else ("standard", "matched")

    def start_noise(self, noise: Tensor, prior: str | None = None) -> Tensor:
        """Unit noise `[B, C, H, W]` -> noise as the model was trained to start from.

        Args:
            prior: "standard", the Gaussian that training aimed at, or "matched", measured on encoded data; None: the
                first of `priors`.

        Raises:
            ValueError: a prior that the model does not have.
        """
        prior = prior or self.priors[0]
        if prior not in self.priors:
            raise ValueError(
                f"prior '{prior}' is not possible: this model has {' and '.join(self.priors)}"
                + ("; a matched prior is measured at the end of training with an encoder" if prior == "matched" else "")
            )
        if prior == "matched":
            return self.prior(noise)
        if self.prior_std is None:
            return noise
        return noise * torch.tensor(self.prior_std, dtype=noise.dtype, device=noise.device)[:, None, None]

    def forward(self, x: Tensor, t: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        """Velocity at x_t, float32.

        Args:
            x: `[N, C, H, W]`.
            t: time in [0, 1]: one value, `[N]`, or a map that broadcasts to x (its mean per sample counts).
            class_labels: one-hot `[N, label_dim]`; ignored by an unconditional network.
        """
        x = x.to(torch.float32)
        time = per_sample_level(t, x).flatten() * self.time_scale
        labels = (class_labels,) if self.label_dim else ()
        return self.model(x.to(self.trunk_dtype(x)), time, *labels).to(torch.float32)
