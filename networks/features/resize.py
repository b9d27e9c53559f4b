"""Images as networks of a fixed resolution take them: resized with antialiasing, cut, not yet scaled."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def stretch(images: Tensor, height: int, width: int) -> Tensor:
    """Bicubic with antialiasing: 0..255 `[B, C, H, W]` of any type to float32 0..255 `[B, C, height, width]`."""
    x = images.float()
    if tuple(x.shape[2:]) == (height, width):
        return x
    return F.interpolate(x, size=[height, width], mode="bicubic", antialias=True).clamp(0, 255)


def centre_crop(images: Tensor, resolution: int) -> Tensor:
    """The shorter side brought to `resolution`, and the middle cut out: float32 `[B, C, resolution, resolution]`."""
    scale = resolution / min(images.shape[2:])
    x = stretch(images, *(max(round(n * scale), resolution) for n in images.shape[2:]))
    top, left = ((n - resolution) // 2 for n in x.shape[2:])
    return x[..., top : top + resolution, left : left + resolution]
