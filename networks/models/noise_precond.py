"""A network that predicts the noise of a variance-preserving process, as the denoiser D(x; sigma) that samplers drive.

    x_in = x / sqrt(1 + sigma^2),    eps = net(x_in, time(sigma), condition),    D(x; sigma) = x - sigma * eps

Noise levels are told from times by `VPLevels` or by a table of alphas_cumprod (`NoiseTable`). With a classifier of
noisy images (Dhariwal and Nichol 2021, arXiv 2105.05233, Algorithm 2), y the class,

    eps <- eps - sigma / sqrt(1 + sigma^2) * guidance_rate * grad_{x_in} log p(y | x_in, time)

All of it in float32 around the network; levels and times in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from networks.models.base import Model
from networks.models.baselines import vp_sigma, vp_time
from networks.trunks.adm_classifier import ADMClassifier
from networks.trunks.adm_unet import ADMUNet
from torch_utils.misc import expand_to
from torch_utils.noise_table import NoiseTable

CONVENTIONS = ("vp-continuous", "table")


class NoiseLevels(Protocol):
    """Noise level as a function of a time in [0, 1], and what the network is told of it; any shape, float64."""

    sigma_min: float
    sigma_max: float

    def sigma(self, t: Tensor | float) -> Tensor: ...
    def sigma_inv(self, sigma: Tensor | float) -> Tensor: ...
    def network_time(self, sigma: Tensor | float) -> Tensor: ...


@dataclass(frozen=True)
class VPLevels:
    """sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1); networks trained with M steps are told (M - 1) t."""

    beta_d: float = 19.9
    beta_min: float = 0.1
    M: int = 1000
    epsilon_t: float = 1e-3

    def sigma(self, t: Tensor | float) -> Tensor:
        return vp_sigma(torch.as_tensor(t, dtype=torch.float64), self.beta_d, self.beta_min)

    def sigma_inv(self, sigma: Tensor | float) -> Tensor:
        return vp_time(torch.as_tensor(sigma, dtype=torch.float64), self.beta_d, self.beta_min)

    def network_time(self, sigma: Tensor | float) -> Tensor:
        return (self.M - 1) * self.sigma_inv(sigma)

    @property
    def sigma_min(self) -> float:
        """Noise level at time `epsilon_t`."""
        return float(self.sigma(self.epsilon_t))

    @property
    def sigma_max(self) -> float:
        """Noise level at time 1."""
        return float(self.sigma(1.0))


def denoise(
    predict: Callable[[Tensor, Tensor], Tensor],
    levels: NoiseLevels,
    x: Tensor,
    sigma: Tensor | float,
    *,
    clamp: bool = False,
    slope: Callable[[Tensor, Tensor], Tensor] | None = None,
    rate: float = 0.0,
) -> Tensor:
    """The clean estimate of x = data + sigma * noise, in the dtype of x.

    Args:
        predict: `(x_in [B, C, ...], time [B])`, float32 -> noise in the first C channels.
        levels: noise level and time.
        x: `[B, C, ...]`.
        sigma: one value or one per sample, `[]`, `[1]`, `[B]` or `[B, 1, ...]`.
        clamp: draw the estimate into [-1, 1].
        slope: `(x_in, time)` -> grad_{x_in} log p(y | x_in, time), which guides at strength `rate`.

    Raises:
        ValueError: a noise level per element.
    """
    sigma = expand_to(torch.as_tensor(sigma, dtype=torch.float64, device=x.device), x)
    if sigma.shape[1:].numel() > 1:
        raise ValueError(
            f"this network knows one noise level per sample, not a map of shape {list(sigma.shape)}: "
            "give one value or one per sample"
        )
    alpha = (1 + sigma.square()).rsqrt()
    x_in = (alpha * x).to(torch.float32)
    time = levels.network_time(sigma.flatten()).to(torch.float32).expand(len(x))
    eps = predict(x_in, time)[:, : x.shape[1]]
    if rate and slope is not None:
        eps = eps - (rate * sigma * alpha).to(eps.dtype) * slope(x_in, time)
    data = x - sigma.to(x.dtype) * eps.to(x.dtype)
    return data.clamp(-1, 1) if clamp else data


def log_probability_slope(
    classifier: Callable[[Tensor, Tensor], Tensor], x_in: Tensor, time: Tensor, index: Tensor
) -> Tensor:
    """grad_{x_in} log p(index | x_in, time), also where gradients are switched off around the sampler."""
    keep = torch.is_grad_enabled() and x_in.requires_grad
    with torch.inference_mode(False), torch.enable_grad():
        if not keep:  # tensors of inference mode cannot enter a graph: clone
            x_in, time, index = x_in.detach().clone().requires_grad_(), time.clone(), index.clone()
        chosen = classifier(x_in, time).log_softmax(dim=1).gather(1, index[:, None]).sum()
        return torch.autograd.grad(chosen, x_in, create_graph=keep)[0]


class OnLevels:
    """The maps between noise levels and times that samplers ask of a denoiser, all from its `levels`."""

    path = "ve"
    predicts = "data"
    levels: NoiseLevels

    @property
    def sigma_min(self) -> float:
        return self.levels.sigma_min

    @property
    def sigma_max(self) -> float:
        return self.levels.sigma_max

    def sigma(self, t: Tensor | float) -> Tensor:
        """Noise level at time `t` in [0, 1], any shape."""
        return self.levels.sigma(t)

    def sigma_inv(self, sigma: Tensor | float) -> Tensor:
        """Time of a noise level, any shape."""
        return self.levels.sigma_inv(sigma)

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """The nearest noise level that the network supports: every one."""
        return torch.as_tensor(sigma)


class NoisePrecond(OnLevels, Model):
    """An `ADMUNet` that predicts noise, with a classifier beside it where there is one.

    Args:
        img_resolution, img_channels: of what is denoised.
        network: further arguments of `ADMUNet`; its own label_dim where it was trained with classes.
        label_dim: classes of the network or the classifier, 0: none; the condition is one-hot rows or indices.
        classifier: arguments of `ADMClassifier` besides the resolution and channels; None: no classifier.
        time_convention: "vp-continuous" (what the published tables of few-step samplers were measured with) or "table"
            (what the network was trained on: differs by up to 3.4 of 1000 steps).
        num_levels: entries of the table.
        clip_denoised: draw clean estimates into [-1, 1].

    Attributes:
        compute_dtype: of the trunk in a call, as in every preconditioner; the classifier stays in float32.
        classifier_calls: evaluations of the classifier so far.

    Keys: model.*, classifier.*, alphas_cumprod [num_levels] float64 (of a table).
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        network: Mapping[str, Any],
        label_dim: int = 0,
        classifier: Mapping[str, Any] | None = None,
        time_convention: str = "vp-continuous",
        num_levels: int = 1000,
        clip_denoised: bool = True,
    ) -> None:
        if time_convention not in CONVENTIONS:
            raise ValueError(f"time_convention is '{time_convention}': choose from {', '.join(CONVENTIONS)}")
        super().__init__(img_resolution, img_channels, label_dim)
        self.clip_denoised, self.num_levels = clip_denoised, num_levels
        self.classifier_calls = 0
        self.sees_classes = bool(network.get("label_dim"))
        self.model = self.make_trunk(network)
        self.classifier = None
        if classifier is not None:
            self.classifier = ADMClassifier(img_resolution=img_resolution, in_channels=img_channels, **classifier)
        self.alphas_cumprod: Tensor | None
        table = torch.empty(num_levels, dtype=torch.float64) if time_convention == "table" else None
        self.register_buffer("alphas_cumprod", table)

    def make_trunk(self, network: Mapping[str, Any]) -> nn.Module:
        """The network that predicts noise."""
        channels = self.img_channels
        options = {"out_channels": channels, **network}
        return ADMUNet(img_resolution=self.img_resolution, in_channels=channels, **options)

    def evaluate(self, x: Tensor, time: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """The trunk's output for images `x`, times `[B]` and what `condition` gave."""
        return self.model(x, time, **condition)

    @property
    def levels(self) -> NoiseLevels:
        """The map between noise levels and times."""
        return VPLevels(M=self.num_levels) if self.alphas_cumprod is None else NoiseTable(self.alphas_cumprod)

    @property
    def conditioning(self) -> str:
        """What the third argument of a call is: "none" or "classes"."""
        return "classes" if self.label_dim else "none"

    @property
    def with_classifier(self) -> Callable[[float], Callable[..., Tensor]] | None:
        """Rate -> this model guided by its classifier; None without one."""
        return None if self.classifier is None else lambda rate: partial(self, guidance_rate=float(rate))

    @property
    def classify(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """Samples data + sigma * noise and their level -> logits of the classifier; None without one."""
        return None if self.classifier is None else self._logits

    def _logits(self, x: Tensor, sigma: Tensor) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=torch.float64, device=x.device)
        time = self.levels.network_time(sigma.flatten()).to(torch.float32).expand(len(x))
        return self.classifier((x * (1 + sigma.square()).rsqrt()).to(torch.float32), time)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        *,
        guidance_rate: float = 0.0,
        force_fp32: bool = False,
    ) -> Tensor:
        """The clean estimate of x, in the dtype of x.

        Args:
            x: `[B, C, H, W]`, data + sigma * noise.
            sigma: one value or one per sample.
            class_labels: one-hot `[B or 1, label_dim]` or indices `[B or 1]`; ignored without classes.
            guidance_rate: strength of the classifier; 0 does not call it.
            force_fp32: compute in float32 whatever `compute_dtype` says.

        Raises:
            ValueError: a level per element, labels that are missing or do not fit, guidance without a classifier.
        """
        dtype = self.trunk_dtype(x, force_fp32)
        condition = self.condition(class_labels, x)
        slope = None
        if guidance_rate:
            if self.classifier is None:
                raise ValueError(
                    "classifier guidance needs a model that comes with a classifier, and this one has none"
                )
            index = self._index(class_labels, x)
            self.classifier_calls += len(x)

            def slope(x_in: Tensor, time: Tensor) -> Tensor:
                return log_probability_slope(self.classifier, x_in, time, index)

        def predict(x_in: Tensor, time: Tensor) -> Tensor:
            return self.evaluate(x_in.to(dtype), time, condition).to(torch.float32)

        return denoise(predict, self.levels, x, sigma, clamp=self.clip_denoised, slope=slope, rate=guidance_rate)

    def condition(self, labels: Tensor | None, x: Tensor) -> dict[str, Tensor]:
        """What the trunk is given besides the image and the time."""
        return {"class_labels": self._index(labels, x)} if self.sees_classes else {}

    def _index(self, labels: Tensor | None, x: Tensor) -> Tensor:
        """Class of every sample, `[B]`."""
        if labels is None:
            raise ValueError(f"this network has {self.label_dim} classes and none was given: pass class_labels")
        if labels.ndim == 2 and labels.shape[1] == self.label_dim:
            labels = labels.argmax(1)
        if labels.ndim != 1 or len(labels) not in (1, len(x)) or labels.is_floating_point():
            raise ValueError(
                f"class labels of shape {list(labels.shape)} do not fit: give one-hot rows "
                f"[{len(x)}, {self.label_dim}] or indices [{len(x)}], one per image, or one for all"
            )
        return labels.to(torch.int64).expand(len(x))
