"""Features of point clouds: a map of every point, and the maximum over points (PointNet: Qi et al. 2017, 1612.00593).

The Fréchet distance of such features of two sets of clouds is the Fréchet point cloud distance (Shu et al. 2019, arXiv
1905.06292). Weights come from a .safetensors file, `layers.K.{weight, bias}` of linear maps with a ReLU in between
(norms folded in), or are random and fixed, so that figures compare with each other alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.trunks.layers import Linear
from torch_utils.checkpoint import load_safetensors

WIDTHS = (64, 128, 256)


class PointNet(nn.Module):
    """`[N, P, 3]` -> `[N, D]`, whatever the order of the points.

    Args:
        widths: of the maps; D is the last.
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear(a, b) for a, b in zip((3, *widths[:-1]), widths, strict=True))

    def forward(self, points: Tensor) -> Tensor:
        h = points
        for layer in self.layers[:-1]:
            h = F.relu(layer(h))
        return self.layers[-1](h).amax(1)


def load_point_features(source: str) -> nn.Module:
    """The feature network of `random`, or of a file of weights.

    Raises:
        ValueError: a file that holds no such network.
    """
    if source == "random":
        net = PointNet()
        generator = torch.Generator().manual_seed(0)
        for layer in net.layers:
            scale = math.sqrt(2 / layer.weight.shape[1])
            layer.weight.data = scale * torch.randn(layer.weight.shape, generator=generator)
            layer.bias.data = 0.5 * torch.randn(layer.bias.shape, generator=generator)
    else:
        net = _of_tensors(load_safetensors(source).payload, source)
    return net.eval().requires_grad_(False)


def _of_tensors(tensors: Mapping[str, Tensor], source: str) -> PointNet:
    weights = [tensors.get(f"layers.{k}.weight") for k in range(len(tensors) // 2)]
    widths = tuple(len(w) for w in weights if w is not None and w.ndim == 2)
    if len(widths) < len(weights) or not widths:
        raise ValueError(f"{source} is no feature network of points: it must hold layers.0.weight, layers.0.bias, ...")
    net = PointNet(widths)
    try:
        net.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise ValueError(f"{source} is no feature network of points: {str(error).splitlines()[-1].strip()}") from error
    return net
