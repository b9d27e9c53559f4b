"""Inception-v3 as in the TensorFlow graph of 2015-12-05, whose pooled features define the published FID numbers.

Architecture: Szegedy et al. 2015, arXiv 1512.00567; use as a metric: Heusel et al. 2017, arXiv 1706.08500. It differs
from the later ImageNet model: 1008 outputs, no auxiliary head, average pools that do not count padding, a max pool in
the last block, batch norm epsilon 1e-3, and images resized to 299 x 299 by TF1's bilinear rule (no half-pixel offset,
no antialiasing) and scaled as (x - 128) / 128. Module names are torchvision's, so that state dicts in circulation load.

Legend: B batch, C channels, H x W image, D = 2048 features.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from networks.trunks.convolution import convolve

FEATURES = 2048
CLASSES = 1008
RESOLUTION = 299

avg_pool = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
max_pool = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
max_pool_down = partial(F.max_pool2d, kernel_size=3, stride=2)


def _source_pixels(size: int, target: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Source pixels of each of `target` outputs: index of the left, of the right one, and the right one's weight."""
    position = torch.arange(target, dtype=torch.float32, device=device) * (size / target)
    left = position.floor()
    index = left.long()
    return index, (index + 1).clamp(max=size - 1), position - left


def resize_bilinear_tf1(x: Tensor, height: int, width: int) -> Tensor:
    """TF1 `resize_bilinear` with align_corners=False: output pixel i samples the source at i * (in / out).

    Args:
        x: `[B, C, H, W]` float.
    """
    left, right, weight = _source_pixels(x.shape[3], width, x.device)
    a, b = x[..., left], x[..., right]
    x = a + (b - a) * weight
    top, bottom, weight = _source_pixels(x.shape[2], height, x.device)
    a, b = x[:, :, top], x[:, :, bottom]
    return a + (b - a) * weight[:, None]


class BasicConv2d(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        y = convolve(x, conv.weight, conv.bias) if conv.kernel_size == (1, 1) else conv(x)
        return F.relu(self.bn(y), inplace=True)

    def fold(self) -> None:
        """Move the batch norm into the convolution, for evaluation: one pass over memory less."""
        self.conv, self.bn = fuse_conv_bn_eval(self.conv, self.bn), nn.Identity()


ROW = {"kernel": (1, 7), "padding": (0, 3)}
COLUMN = {"kernel": (7, 1), "padding": (3, 0)}
SHORT_ROW = {"kernel": (1, 3), "padding": (0, 1)}
SHORT_COLUMN = {"kernel": (3, 1), "padding": (1, 0)}
SQUARE = {"kernel": 3, "padding": 1}
DOWN = {"kernel": 3, "stride": 2}


class MixedA(nn.Module):
    """35 x 35 block: 1x1, 5x5, double 3x3 and pooled branches."""

    def __init__(self, channels: int, pool_channels: int) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(channels, 64)
        self.branch5x5_1 = BasicConv2d(channels, 48)
        self.branch5x5_2 = BasicConv2d(48, 64, kernel=5, padding=2)
        self.branch3x3dbl_1 = BasicConv2d(channels, 64)
        self.branch3x3dbl_2 = BasicConv2d(64, 96, **SQUARE)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, **SQUARE)
        self.branch_pool = BasicConv2d(channels, pool_channels)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), wide, double, self.branch_pool(avg_pool(x))], dim=1)


class MixedB(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = BasicConv2d(channels, 384, **DOWN)
        self.branch3x3dbl_1 = BasicConv2d(channels, 64)
        self.branch3x3dbl_2 = BasicConv2d(64, 96, **SQUARE)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, **DOWN)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, max_pool_down(x)], dim=1)


class MixedC(nn.Module):
    """17 x 17 block with 7x7 kernels split into rows and columns; `inner` channels between them."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(768, 192)
        self.branch7x7_1 = BasicConv2d(768, inner)
        self.branch7x7_2 = BasicConv2d(inner, inner, **ROW)
        self.branch7x7_3 = BasicConv2d(inner, 192, **COLUMN)
        self.branch7x7dbl_1 = BasicConv2d(768, inner)
        self.branch7x7dbl_2 = BasicConv2d(inner, inner, **COLUMN)
        self.branch7x7dbl_3 = BasicConv2d(inner, inner, **ROW)
        self.branch7x7dbl_4 = BasicConv2d(inner, inner, **COLUMN)
        self.branch7x7dbl_5 = BasicConv2d(inner, 192, **ROW)
        self.branch_pool = BasicConv2d(768, 192)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(avg_pool(x))], dim=1)


class MixedD(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = BasicConv2d(768, 192)
        self.branch3x3_2 = BasicConv2d(192, 320, **DOWN)
        self.branch7x7x3_1 = BasicConv2d(768, 192)
        self.branch7x7x3_2 = BasicConv2d(192, 192, **ROW)
        self.branch7x7x3_3 = BasicConv2d(192, 192, **COLUMN)
        self.branch7x7x3_4 = BasicConv2d(192, 192, **DOWN)

    def forward(self, x: Tensor) -> Tensor:
        large = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), large, max_pool_down(x)], dim=1)


class MixedE(nn.Module):
    """8 x 8 block with branches that fan out into a row and a column kernel; `max_pooled` in the last block."""

    def __init__(self, channels: int, *, max_pooled: bool) -> None:
        super().__init__()
        self.pool = max_pool if max_pooled else avg_pool
        self.branch1x1 = BasicConv2d(channels, 320)
        self.branch3x3_1 = BasicConv2d(channels, 384)
        self.branch3x3_2a = BasicConv2d(384, 384, **SHORT_ROW)
        self.branch3x3_2b = BasicConv2d(384, 384, **SHORT_COLUMN)
        self.branch3x3dbl_1 = BasicConv2d(channels, 448)
        self.branch3x3dbl_2 = BasicConv2d(448, 384, **SQUARE)
        self.branch3x3dbl_3a = BasicConv2d(384, 384, **SHORT_ROW)
        self.branch3x3dbl_3b = BasicConv2d(384, 384, **SHORT_COLUMN)
        self.branch_pool = BasicConv2d(channels, 192)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branches = [
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(self.pool(x)),
        ]
        return torch.cat(branches, dim=1)


class Inception2015(nn.Module):
    """uint8 images `[B, 1 or 3, H, W]` of any size to pooled features `[B, 2048]` float32."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, **DOWN)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, kernel=3)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, **SQUARE)
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, kernel=3)
        self.Mixed_5b = MixedA(192, pool_channels=32)
        self.Mixed_5c = MixedA(256, pool_channels=64)
        self.Mixed_5d = MixedA(288, pool_channels=64)
        self.Mixed_6a = MixedB(288)
        self.Mixed_6b = MixedC(inner=128)
        self.Mixed_6c = MixedC(inner=160)
        self.Mixed_6d = MixedC(inner=160)
        self.Mixed_6e = MixedC(inner=192)
        self.Mixed_7a = MixedD()
        self.Mixed_7b = MixedE(1280, max_pooled=False)
        self.Mixed_7c = MixedE(FEATURES, max_pooled=True)
        self.fc = nn.Linear(FEATURES, CLASSES)  # class logits, for the Inception score

    def forward(self, images: Tensor) -> Tensor:
        x = images.float()
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        x = (resize_bilinear_tf1(x, RESOLUTION, RESOLUTION) - 128) / 128  # [B, 3, 299, 299]
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = max_pool_down(x)  # [B, 64, 73, 73]
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = max_pool_down(x)  # [B, 192, 35, 35]
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6a(x)  # [B, 768, 17, 17]
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # [B, 2048, 8, 8]
        return x.mean(dim=(2, 3))
