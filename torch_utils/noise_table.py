"""Noise levels of a model trained on a table of alphas_cumprod, as functions of a continuous time in [0, 1].

Entry j = 1..M of the table is at time t_j = j / M. log alpha(t) = log(alphas_cumprod) / 2 is interpolated linearly in t
(and extended linearly beyond the table), sigma(t) = sqrt(1 - alpha^2) / alpha; the inverse interpolates back from
log alpha = -log(1 + sigma^2) / 2 (Lu et al. 2022, arXiv 2206.00927, Appendix D.4). Float64 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


def _linear(start: float, end: float, num: int) -> Tensor:
    return torch.linspace(start, end, num, dtype=torch.float64)


def _sqrt_linear_squared(start: float, end: float, num: int) -> Tensor:
    return torch.linspace(start**0.5, end**0.5, num, dtype=torch.float64).square()


def _sqrt(start: float, end: float, num: int) -> Tensor:
    return torch.linspace(start, end, num, dtype=torch.float64).sqrt()


# kind -> betas [num]; files of latent diffusion call the second "linear" and the first "sqrt_linear"
BETAS = {"linear": _linear, "sqrt_linear_squared": _sqrt_linear_squared, "sqrt": _sqrt}
SCHEDULER_BETAS = {"linear": "linear", "scaled_linear": "sqrt_linear_squared", "squaredcos_cap_v2": "cosine"}


def betas_of(
    kind: str,
    steps: int = 1000,
    beta_start: float | None = None,
    beta_end: float | None = None,
    s: float = 0.008,
    max_beta: float = 0.999,
) -> Tensor:
    """The betas `[steps]`, float64, of a schedule.

    Args:
        kind: linear, sqrt_linear_squared, sqrt, or cosine (Nichol and Dhariwal 2021, arXiv 2102.09672).
        beta_start, beta_end: ends of the first three.
        s, max_beta: offset and largest beta of "cosine".

    Raises:
        ValueError: an unknown kind, or ends that are missing or outside of (0, 1).
    """
    if steps < 2:
        raise ValueError(f"a noise table has two or more steps, not {steps}")
    if kind == "cosine":
        f = ((_linear(0, 1, steps + 1) + s) / (1 + s) * (math.pi / 2)).cos().square()
        return (1 - f[1:] / f[:-1]).clamp(0, max_beta)
    if kind not in BETAS:
        raise ValueError(f"there is no noise schedule '{kind}': choose from {', '.join([*BETAS, 'cosine'])}")
    if beta_start is None or beta_end is None or not 0 < beta_start < 1 or not 0 < beta_end < 1:
        raise ValueError(f"the noise schedule {kind} needs beta_start and beta_end between 0 and 1")
    return BETAS[kind](beta_start, beta_end, steps)


def alphas_cumprod(betas: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """The cumulative product of 1 - betas, rounded to `dtype` as a model holds it, returned in float64."""
    return (1 - betas.double()).cumprod(0).to(dtype).double()


def scheduler_alphas(config: Mapping[str, Any]) -> Tensor:
    """alphas_cumprod that a scheduler of diffusers with this configuration has, rounded to float32.

    Raises:
        ValueError: a noise schedule of another name.
    """
    betas = config.get("trained_betas")
    if betas is None:
        name = config.get("beta_schedule", "linear")
        if name not in SCHEDULER_BETAS:
            raise ValueError(f"there is no noise schedule '{name!s:.80}': choose from {', '.join(SCHEDULER_BETAS)}")
        ends = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)  # of no use to the cosine
        betas = betas_of(SCHEDULER_BETAS[name], config.get("num_train_timesteps", 1000), *ends)
    return alphas_cumprod(torch.as_tensor(betas, dtype=torch.float64), torch.float32)


def scaled_linear_alphas(start: float = 0.00085, end: float = 0.012, num: int = 1000) -> Tensor:
    """alphas_cumprod `[num]` of betas whose square roots are equidistant; the defaults are those of Stable Diffusion 1.

    Rounded to float32, as the published models hold them; returned in float64.
    """
    return alphas_cumprod(betas_of("sqrt_linear_squared", num, start, end), torch.float32)


@dataclass(frozen=True, eq=False)
class NoiseTable:
    """The maps `sigma(t)` and `sigma_inv(sigma)` that the discrete schedule asks of a model.

    Attributes:
        alphas_cumprod: `[M]`, falling, in (0, 1).
    """

    alphas_cumprod: Tensor

    def __post_init__(self) -> None:
        table = self.alphas_cumprod
        if table.ndim != 1 or len(table) < 2:
            raise ValueError(f"a noise table is a list of two or more alphas_cumprod, got shape {list(table.shape)}")

    @cached_property
    def _log_alpha(self) -> Tensor:
        return self.alphas_cumprod.double().log() / 2

    @cached_property
    def _time(self) -> Tensor:
        m = len(self.alphas_cumprod)
        return torch.arange(1, m + 1, dtype=torch.float64, device=self.alphas_cumprod.device) / m

    def sigma(self, t: Tensor | float) -> Tensor:
        """Noise level at time `t`, any shape."""
        log_alpha = interpolate(torch.as_tensor(t, dtype=torch.float64), self._time, self._log_alpha)
        return torch.expm1(-2 * log_alpha).sqrt()

    def sigma_inv(self, sigma: Tensor | float) -> Tensor:
        """Time at which the noise level is `sigma`, any shape."""
        log_alpha = -torch.log1p(torch.as_tensor(sigma, dtype=torch.float64) ** 2) / 2
        return interpolate(log_alpha, self._log_alpha.flip(0), self._time.flip(0))

    def network_time(self, sigma: Tensor | float) -> Tensor:
        """What a network trained on the table is told of a noise level: its index from 0, fractional in between."""
        return len(self.alphas_cumprod) * self.sigma_inv(sigma) - 1

    @property
    def sigma_min(self) -> float:
        """Noise level of the first entry."""
        return float(self.sigma(1 / len(self.alphas_cumprod)))

    @property
    def sigma_max(self) -> float:
        """Noise level of the last entry."""
        return float(self.sigma(1.0))


def interpolate(v: Tensor, nodes: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear through (`nodes`, `values`), nodes rising; the outermost pieces go on beyond the ends."""
    nodes, values = nodes.to(v.device), values.to(v.device)  # towards v: moving v would wait for the device
    right = torch.searchsorted(nodes, v.contiguous()).clamp(1, len(nodes) - 1)
    left = right - 1
    share = (v - nodes[left]) / (nodes[right] - nodes[left])
    return values[left] + share * (values[right] - values[left])
