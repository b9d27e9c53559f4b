"""The fastest way to the same convolution: which algorithm, for which sizes, on which device.

1x1, fewer than 16 images on a CPU   one image row per sample: PyTorch then takes oneDNN instead of unfolding
3x3 in float32 on a CPU              Winograd's minimal filtering, where it wins (torch_utils/winograd.py)
everything else                      `F.conv2d`
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from torch_utils import winograd

_ONEDNN_BATCH = 16  # from here on PyTorch itself takes oneDNN for a 1x1 convolution on one thread


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: int = 0) -> Tensor:
    """`F.conv2d(x, weight, bias, padding=padding)`: `[N, C, H, W], [O, C, k, k], [O]` -> `[N, O, H', W']`."""
    if padding == 1 and winograd.pays(x, weight):
        return winograd.convolve(x, weight, bias)
    n, channels, height, width = x.shape
    if (
        weight.shape[2:] == (1, 1)
        and padding == 0
        and x.device.type == "cpu"
        and n < _ONEDNN_BATCH <= n * height
        and x.permute(0, 2, 3, 1).is_contiguous()
    ):
        rows = x.permute(0, 2, 3, 1).view(n * height, 1, width, channels).permute(0, 3, 1, 2)
        out = F.conv2d(rows, weight, bias).permute(0, 2, 3, 1)
        return out.reshape(n, height, width, -1).permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias, padding=padding)
