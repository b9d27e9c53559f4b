"""A network that predicts the noise of a variance-preserving process, as the denoiser D(x; sigma) that samplers drive.

    x_in = x / sqrt(1 + sigma^2),    eps = net(x_in, time(sigma), condition),    D(x; sigma) = x - sigma * eps

`levels` tells noise levels from times: `NoiseTable` (networks trained on a table of alphas_cumprod) or `VPLevels`.
With a `classifier` of noisy images (Dhariwal and Nichol 2021, arXiv 2105.05233, Algorithm 2), y the class,

    eps <- eps - sigma / sqrt(1 + sigma^2) * guidance_rate * grad_{x_in} log p(y | x_in, time)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from samplers.field import Facts
from samplers.path import VE, VP
from torch_utils.misc import expand_to

__all__ = ["EpsDenoiser", "NoiseLevels", "VPLevels"]


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

    def sigma(self, t: Tensor | float) -> Tensor:
        return self._path.level_at(torch.as_tensor(t, dtype=torch.float64))

    def sigma_inv(self, sigma: Tensor | float) -> Tensor:
        return self._path.time_of(torch.as_tensor(sigma, dtype=torch.float64))

    def network_time(self, sigma: Tensor | float) -> Tensor:
        return (self.M - 1) * self.sigma_inv(sigma)

    @property
    def _path(self) -> VP:
        return VP(self.beta_d, self.beta_min)

    @property
    def sigma_min(self) -> float:
        """Noise level at time 0.001."""
        return float(self.sigma(1e-3))

    @property
    def sigma_max(self) -> float:
        """Noise level at time 1."""
        return float(self.sigma(1.0))


@dataclass(frozen=True, eq=False)
class EpsDenoiser:
    """A denoiser made of a network that predicts noise, called like every network: `denoiser(x, sigma, class_labels)`.

    Attributes:
        net: `net(x_in [B, C, ...], time [B], condition) -> [B, C or more, ...]`, float32; the first C channels are the
            noise. The condition is the third argument of the call, whatever it is.
        levels: noise level and time.
        clamp: range that clean estimates are drawn into.
        classifier: `classifier(x_in, time) -> logits [B, classes]`, float32 and differentiable in `x_in`.
        guidance_rate: strength of the classifier; 0 does not call it.
    """

    net: Callable[..., Tensor]
    levels: NoiseLevels
    clamp: tuple[float, float] | None = None
    classifier: Callable[[Tensor, Tensor], Tensor] | None = None
    guidance_rate: float = 0.0

    @property
    def facts(self) -> Facts:
        """The facts of `net` as a denoiser over `levels`."""
        classifier = None if self.classifier is None else lambda rate: replace(self, guidance_rate=rate)
        return replace(
            Facts.of(self.net), path=VE(), predicts="data", sigma_min=self.sigma_min, sigma_max=self.sigma_max,
            noise_table=self, with_classifier=classifier,
        )  # fmt: skip

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

    def __call__(self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None, **cond: Any) -> Tensor:
        """The clean estimate of x = data + sigma * noise, in the dtype of x.

        Args:
            x: `[B, C, ...]`.
            sigma: one value or one per sample, `[]`, `[B]` or `[B, 1, ...]`.
            class_labels: the network's condition; for classifier guidance `[B]` indices or one-hot `[B, classes]`.
            cond: further keyword arguments of the network.

        Raises:
            ValueError: a noise level per element; classifier guidance without classes.
        """
        sigma = expand_to(torch.as_tensor(sigma, dtype=torch.float64, device=x.device), x)
        if sigma.shape[1:].numel() > 1:
            raise ValueError(
                f"this network knows one noise level per sample, not a map of shape {list(sigma.shape)}: "
                "give one value or one per sample"
            )
        alpha = (1 + sigma.square()).rsqrt()
        x_in = (alpha * x).to(torch.float32)
        time = self.levels.network_time(sigma.flatten()).to(torch.float32).expand(len(x))
        eps = self.net(x_in, time, class_labels, **cond)[:, : x.shape[1]]
        if self.guidance_rate and self.classifier is not None:
            slope = _log_probability_slope(self.classifier, x_in, time, class_labels)
            eps = eps - (self.guidance_rate * sigma * alpha).to(eps.dtype) * slope
        data = x - sigma.to(x.dtype) * eps.to(x.dtype)
        return data if self.clamp is None else data.clamp(*self.clamp)


def _log_probability_slope(
    classifier: Callable[[Tensor, Tensor], Tensor], x_in: Tensor, time: Tensor, labels: Tensor | None
) -> Tensor:
    """grad_{x_in} log p(labels | x_in, time), also where gradients are switched off around the sampler."""
    if labels is None:
        raise ValueError("classifier guidance moves towards a class and none was given: pass class_labels")
    index = labels if labels.ndim == 1 else labels.argmax(1)
    keep = torch.is_grad_enabled() and x_in.requires_grad
    with torch.inference_mode(False), torch.enable_grad():
        if not keep:  # tensors of inference mode cannot enter a graph: clone
            x_in, time, index = x_in.detach().clone().requires_grad_(), time.clone(), index.clone()
        log_p = classifier(x_in, time).log_softmax(dim=1)
        chosen = log_p.gather(1, index.to(torch.int64)[:, None]).sum()
        return torch.autograd.grad(chosen, x_in, create_graph=keep)[0]
