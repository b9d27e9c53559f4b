"""Noise levels of a model trained on a table of alphas_cumprod, as functions of a continuous time in [0, 1].

Entry j = 1..M of the table is at time t_j = j / M. log alpha(t) = log(alphas_cumprod) / 2 is interpolated linearly in t
(and extended linearly beyond the table), sigma(t) = sqrt(1 - alpha^2) / alpha; the inverse interpolates back from
log alpha = -log(1 + sigma^2) / 2 (Lu et al. 2022, arXiv 2206.00927, Appendix D.4). Float64 throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["NoiseTable", "scaled_linear_alphas"]


def scaled_linear_alphas(start: float = 0.00085, end: float = 0.012, num: int = 1000) -> Tensor:
    """alphas_cumprod `[num]` of betas whose square roots are equidistant; the defaults are those of Stable Diffusion 1.

    Rounded to float32, as the published models hold them; returned in float64.
    """
    betas = torch.linspace(start**0.5, end**0.5, num, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float().double()


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
        log_alpha = _interpolate(torch.as_tensor(t, dtype=torch.float64), self._time, self._log_alpha)
        return torch.expm1(-2 * log_alpha).sqrt()

    def sigma_inv(self, sigma: Tensor | float) -> Tensor:
        """Time at which the noise level is `sigma`, any shape."""
        log_alpha = -torch.log1p(torch.as_tensor(sigma, dtype=torch.float64) ** 2) / 2
        return _interpolate(log_alpha, self._log_alpha.flip(0), self._time.flip(0))

    def network_time(self, sigma: Tensor | float) -> Tensor:
        """What a network trained on the table is told of a noise level: its index from 0, fractional in between."""
        return len(self.alphas_cumprod) * self.sigma_inv(sigma) - 1

    @property
    def sigma_min(self) -> float:
        """Noise level at time 0.001."""
        return float(self.sigma(1e-3))

    @property
    def sigma_max(self) -> float:
        """Noise level at time 1."""
        return float(self.sigma(1.0))


def _interpolate(v: Tensor, nodes: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear through (`nodes`, `values`), nodes rising; the outermost pieces go on beyond the ends."""
    nodes, values = nodes.to(v.device), values.to(v.device)  # towards v: moving v would wait for the device
    right = torch.searchsorted(nodes, v.contiguous()).clamp(1, len(nodes) - 1)
    left = right - 1
    share = (v - nodes[left]) / (nodes[right] - nodes[left])
    return values[left] + share * (values[right] - values[left])
