"""The Fréchet distance with scipy's matrix square root, and Inception features layer by layer as the graph says.

(Dowson and Landau 1982; Heusel et al. 2017, arXiv 1706.08500, eq. 6.)
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["frechet_distance", "inception_features", "moments"]


def moments(batches: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance from running sums of features and of their outer products, in float64."""
    dim, count = batches[0].shape[1], 0
    total, products = torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64)
    for features in batches:
        features = features.to(torch.float64)
        count += len(features)
        total += features.sum(0)
        products += features.T @ features
    mean = total / count
    return mean.numpy(), ((products - mean.outer(mean) * count) / (count - 1)).numpy()


def frechet_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    root = scipy.linalg.sqrtm(sigma1 @ sigma2)
    return float(np.real(np.square(mu1 - mu2).sum() + np.trace(sigma1 + sigma2 - 2 * root)))


def _resize(x: Tensor, size: int) -> Tensor:
    """Bilinear sampling at i * (in / out), as the graph resizes."""
    height, width = x.shape[2:]
    grid = torch.zeros(len(x), size, size, 2)
    steps = torch.arange(size, dtype=torch.float32)
    grid[..., 0] = (2 * steps / size * width / max(width - 1, 1) - 1)[None, None]
    grid[..., 1] = (2 * steps / size * height / max(height - 1, 1) - 1)[None, :, None]
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=True)


def inception_features(net: nn.Module, images: Tensor) -> Tensor:
    """The features of `net` (`Inception2015`, contiguous) with every layer an operation of its own."""

    def layer(block: nn.Module, x: Tensor) -> Tensor:
        conv, bn = block.conv, block.bn
        x = F.conv2d(x, conv.weight, None, conv.stride, conv.padding)
        x = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
        return F.relu(x)

    def chain(block: nn.Module, names: str, x: Tensor) -> Tensor:
        for name in names.split():
            x = layer(getattr(block, name), x)
        return x

    def average(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

    x = _resize(images.float().expand(-1, 3, -1, -1), 299)
    x = (x - 128) / 128
    x = chain(net, "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3", x)
    x = F.max_pool2d(x, 3, 2)
    x = chain(net, "Conv2d_3b_1x1 Conv2d_4a_3x3", x)
    x = F.max_pool2d(x, 3, 2)
    for b in (net.Mixed_5b, net.Mixed_5c, net.Mixed_5d):
        parts = [
            chain(b, n, x)
            for n in ("branch1x1", "branch5x5_1 branch5x5_2", "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3")
        ]
        x = torch.cat([*parts, chain(b, "branch_pool", average(x))], 1)
    b = net.Mixed_6a
    parts = [chain(b, n, x) for n in ("branch3x3", "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3")]
    x = torch.cat([*parts, F.max_pool2d(x, 3, 2)], 1)
    for b in (net.Mixed_6b, net.Mixed_6c, net.Mixed_6d, net.Mixed_6e):
        single = " ".join(f"branch7x7_{k}" for k in (1, 2, 3))
        double = " ".join(f"branch7x7dbl_{k}" for k in (1, 2, 3, 4, 5))
        parts = [chain(b, n, x) for n in ("branch1x1", single, double)]
        x = torch.cat([*parts, chain(b, "branch_pool", average(x))], 1)
    b = net.Mixed_7a
    parts = [chain(b, "branch3x3_1 branch3x3_2", x)]
    parts += [chain(b, " ".join(f"branch7x7x3_{k}" for k in (1, 2, 3, 4)), x), F.max_pool2d(x, 3, 2)]
    x = torch.cat(parts, 1)
    for b, pool in ((net.Mixed_7b, average), (net.Mixed_7c, lambda y: F.max_pool2d(y, 3, stride=1, padding=1))):
        fans = []
        for names, tail in (("branch3x3_1", "branch3x3_2"), ("branch3x3dbl_1 branch3x3dbl_2", "branch3x3dbl_3")):
            y = chain(b, names, x)
            fans += [chain(b, f"{tail}a", y), chain(b, f"{tail}b", y)]
        x = torch.cat([chain(b, "branch1x1", x), *fans, chain(b, "branch_pool", pool(x))], 1)
    return F.adaptive_avg_pool2d(x, (1, 1)).flatten(1)
