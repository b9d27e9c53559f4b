"""A discriminator of points in the plane: the role of `ProjectedDiscriminator`, as a small MLP.

For data `[B, C, 1, 1]` that have no pretrained features (Lee et al. 2024, arXiv 2404.14161, two-dimensional
experiments).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from networks.trunks.mlp import DENSE_INIT, dense, with_labels
from torch_utils.rng import TorchRNG


class PointDiscriminator(nn.Module):
    """Logits of points, with the interface of `ProjectedDiscriminator`; sees coordinates in units of `std`."""

    def __init__(self, img_channels: int, label_dim: int = 0, std: float = 1.0) -> None:
        super().__init__()
        self.label_dim, self.std = label_dim, std
        self.discriminators = dense(img_channels + label_dim, 128, 3, 1, DENSE_INIT, nn.SiLU)
        self.feature_networks = nn.ModuleList()

    def forward(self, x: Tensor, class_labels: Tensor | None = None, rng: TorchRNG | None = None) -> list[Tensor]:
        """`[B, C, 1, 1]` -> one tensor of logits `[B, 1]`; nothing is augmented, so `rng` is not used."""
        return [
            self.discriminators(with_labels(x.to(torch.float32).flatten(1) / self.std, class_labels, self.label_dim))
        ]
