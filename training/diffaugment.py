"""DiffAugment: differentiable augmentation of what a discriminator sees, real and generated images alike.

Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training", arXiv 2006.10738. Three parts:

- `color`: brightness `x + (u - 1/2)`, saturation `2u (x - m) + m` around the channel mean m, contrast
  `(u + 1/2)(x - m) + m` around the image mean m;
- `translation`: by up to 1/8 of each side, zeros move in;
- `cutout`: a rectangle of 1/5 of each side, centred anywhere, becomes zero.

Every part is piecewise linear in the image, so that gradients reach the generator.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torch_utils.rng import TorchRNG

POLICY = "color,translation,cutout"


def diff_augment(images: Tensor, rng: TorchRNG | None = None, policy: str = POLICY) -> Tensor:
    """Augment every image independently.

    Args:
        images: `[B, C, H, W]` in [-1, 1]; results may leave that range.
        rng: source of all draws; None = torch's global generator of the images' device.
        policy: parts in order of application, separated by commas.

    Raises:
        ValueError: unknown part.
    """
    rng = TorchRNG(images.device) if rng is None else rng
    for part in parse_policy(policy):
        images = PARTS[part](images, rng)
    return images


def parse_policy(policy: str) -> list[str]:
    """`"color,cutout" -> ["color", "cutout"]`; ValueError for a part that does not exist."""
    parts = [part.strip() for part in policy.split(",")]
    if unknown := [part for part in parts if part not in PARTS]:
        raise ValueError(
            f"'{policy}' is not a policy of DiffAugment: '{unknown[0]}' is none of {', '.join(PARTS)} "
            "(separate several by commas)"
        )
    return parts


def _color(x: Tensor, rng: TorchRNG) -> Tensor:
    shape = [x.shape[0], 1, 1, 1]
    x = x + (rng.rand(shape) - 0.5)
    mean = x.mean(dim=1, keepdim=True)
    x = (x - mean) * (rng.rand(shape) * 2) + mean
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) * (rng.rand(shape) + 0.5) + mean


def _translation(x: Tensor, rng: TorchRNG) -> Tensor:
    """out(i, j) = x(i + dy, j + dx)"""
    shifts = []
    for size in x.shape[2:]:
        reach = int(size * 0.125 + 0.5)
        shifts.append(rng.randint(2 * reach + 1, [x.shape[0], 1, 1]) - reach)
    for dim, shift in zip((2, 3), shifts, strict=True):
        x = _shift(x, shift, dim)
    return x


def _shift(x: Tensor, shift: Tensor, dim: int) -> Tensor:
    """x read `shift: [B, 1, 1]` positions further along `dim`, zero outside."""
    size = x.shape[dim]
    source = _positions(x, dim) + shift.unsqueeze(-1)
    # gather and mask: the gradient is a scatter of distinct positions, the same in every run
    moved = x.gather(dim, source.clamp(0, size - 1).expand_as(x))
    return moved.masked_fill((source < 0) | (source >= size), 0)


def _cutout(x: Tensor, rng: TorchRNG) -> Tensor:
    inside = []
    for dim in (2, 3):
        size = x.shape[dim]
        side = int(size * 0.2 + 0.5)
        centre = rng.randint(size + 1 - side % 2, [x.shape[0], 1, 1]).unsqueeze(-1)
        offset = _positions(x, dim) - (centre - side // 2)
        inside.append((offset >= 0) & (offset < side))
    return x.masked_fill(inside[0] & inside[1], 0)


def _positions(x: Tensor, dim: int) -> Tensor:
    """0..size-1 along `dim` of a `[1, 1, H or 1, W or 1]` tensor."""
    shape = [1] * x.ndim
    shape[dim] = -1
    return torch.arange(x.shape[dim], device=x.device).reshape(shape)


PARTS: dict[str, Callable[[Tensor, TorchRNG], Tensor]] = {
    "color": _color,
    "translation": _translation,
    "cutout": _cutout,
}
