"""CouplingEncoder: q(z | x) = N(mu(x), diag(exp(logvar(x)))), which noise goes with which data.

A U-Net with twice the channels of the data at its output, mu first; always evaluated at time 1. Trained together with
the velocity network (`training/methods/curvature.py`), not needed to sample. Lee, Kim, Ye 2023, arXiv 2301.12003,
section 3.2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from networks.models.base import make_trunk
from networks.models.precond import per_sample_level
from networks.models.velocity import TRUNKS


class Encoded(NamedTuple):
    """Noise z = mu + eps * exp(logvar / 2) and the moments it was drawn with, each `[N, C, H, W]` float32."""

    z: Tensor
    mu: Tensor
    logvar: Tensor


class CouplingEncoder(nn.Module):
    """Keys: encoder.<key of the trunk>.

    Args:
        img_resolution, img_channels: of the data.
        model_type: key of TRUNKS; `model_kwargs` are its further arguments.
    """

    models = TRUNKS

    def __init__(
        self, img_resolution: int, img_channels: int, model_type: str = "SongUNet", **model_kwargs: Any
    ) -> None:
        super().__init__()
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.encoder = make_trunk(TRUNKS, model_type, img_resolution, img_channels, 2 * img_channels, **model_kwargs)

    def forward(self, x: Tensor, eps: Tensor, t: Tensor | float = 1.0) -> Encoded:
        """Data `[N, C, H, W]` in [-1, 1] and unit noise of the same shape -> `Encoded`."""
        x = x.to(torch.float32)
        mu, logvar = self.encoder(x, per_sample_level(t, x).flatten()).chunk(2, dim=1)
        return Encoded(mu + eps * torch.exp(logvar / 2), mu, logvar)
