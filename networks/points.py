"""Networks of trajectory optimisation for points in the plane: coefficients and discriminator as small MLPs.

The roles of `CoefficientNet` and `ProjectedDiscriminator` for data `[B, C, 1, 1]` that have no neighbours to smooth
over and no pretrained features (Lee et al. 2024, arXiv 2404.14161, two-dimensional experiments).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from networks.coefficients import parse_flags
from networks.layers import Init, Linear
from torch_utils.rng import TorchRNG

__all__ = ["CoefficientMLP", "PointDiscriminator"]

_INIT = Init("kaiming_normal")
_INIT_SMALL = Init("kaiming_normal", weight=0.1)  # c begins small, not zero: gamma depends on its squares


def _mlp(inputs: int, width: int, layers: int, outputs: int, last: Init, activation: type[nn.Module]) -> nn.Sequential:
    sizes = [inputs, *[width] * layers]
    hidden = [[Linear(a, b, init=_INIT), activation()] for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*itertools.chain(*hidden), Linear(width, outputs, init=last))


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
        self.MLP = _mlp(
            img_channels + label_dim, model_channels, num_blocks, 2 * img_channels * M, _INIT_SMALL, nn.SiLU
        )

    def forward(self, noise: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """`noise [B, C, 1, 1]` of unit variance, one-hot labels `[B, label_dim]` or None -> c `[B, 2 C M, 1, 1]`."""
        z = noise.to(torch.float32).flatten(1)
        c = self.MLP(_with_labels(z if self.x_0_conditioning else torch.ones_like(z), class_labels, self.label_dim))
        c = c.tanh().unflatten(1, (2, self.channels, self.M))
        if not self.flags[0]:
            c = c.mean(2, keepdim=True).expand_as(c)
        return c.flatten(1)[:, :, None, None] * self.scale


class PointDiscriminator(nn.Module):
    """Logits of points, with the interface of `ProjectedDiscriminator`; sees coordinates in units of `std`."""

    def __init__(
        self, img_channels: int, label_dim: int = 0, std: float = 1.0, width: int = 128, layers: int = 3
    ) -> None:
        super().__init__()
        self.label_dim, self.std = label_dim, std
        self.discriminators = _mlp(img_channels + label_dim, width, layers, 1, _INIT, nn.SiLU)
        self.feature_networks = nn.ModuleList()

    def forward(self, x: Tensor, class_labels: Tensor | None = None, rng: TorchRNG | None = None) -> list[Tensor]:
        """`[B, C, 1, 1]` -> one tensor of logits `[B, 1]`; nothing is augmented, so `rng` is not used."""
        return [
            self.discriminators(_with_labels(x.to(torch.float32).flatten(1) / self.std, class_labels, self.label_dim))
        ]


def _with_labels(x: Tensor, class_labels: Tensor | None, label_dim: int) -> Tensor:
    if not label_dim:
        return x
    labels = x.new_zeros(len(x), label_dim) if class_labels is None else class_labels.to(x.dtype).expand(len(x), -1)
    return torch.cat([x, labels], dim=1)
