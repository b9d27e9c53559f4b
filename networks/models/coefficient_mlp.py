"""MAC's coefficients for points in the plane: the role of `CoefficientNet`, as a small MLP.

For data `[B, C, 1, 1]` that have no neighbours to smooth over (Lee et al. 2024, arXiv 2404.14161, two-dimensional
experiments).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from networks.models.coefficients import parse_flags
from networks.trunks.layers import Init
from networks.trunks.mlp import dense, with_labels

_INIT_SMALL = Init("kaiming_normal", weight=0.1)  # c begins small, not zero: gamma depends on its squares


class CoefficientMLP(nn.Module):
    """c `[B, 2 C M, 1, 1]` of a point from its starting noise: MLP, tanh, averages over shared axes, scale.

    Args:
        img_channels, label_dim, M: as of `CoefficientNet`.
        scale: bound of |c|.
        multidimensionality: the first digit says whether the coordinates differ; the others have nothing to say.
        x_0_conditioning: look at the noise; else at ones.
        model_channels, num_blocks: width and number of hidden layers.
    """

    lpf = False
    downsample = 1

    def __init__(
        self,
        img_channels: int,
        label_dim: int = 0,
        M: int = 5,
        scale: float = 0.05,
        multidimensionality: str = "111",
        x_0_conditioning: bool = True,
        model_channels: int = 64,
        num_blocks: int = 2,
    ) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale={scale:g} bounds the coefficients and must be positive: 0.05 is usual")
        self.channels, self.label_dim, self.M, self.scale = img_channels, label_dim, M, scale
        self.flags, self.x_0_conditioning = parse_flags(multidimensionality), x_0_conditioning
        self.MLP = dense(
            img_channels + label_dim, model_channels, num_blocks, 2 * img_channels * M, _INIT_SMALL, nn.SiLU
        )

    def forward(self, noise: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """`noise [B, C, 1, 1]` of unit variance, one-hot labels `[B, label_dim]` or None -> c `[B, 2 C M, 1, 1]`."""
        z = noise.to(torch.float32).flatten(1)
        c = self.MLP(with_labels(z if self.x_0_conditioning else torch.ones_like(z), class_labels, self.label_dim))
        c = c.tanh().unflatten(1, (2, self.channels, self.M))
        if not self.flags[0]:
            c = c.mean(2, keepdim=True).expand_as(c)
        return c.flatten(1)[:, :, None, None] * self.scale
