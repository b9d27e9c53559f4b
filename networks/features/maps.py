"""Maps from images to features for calibration: floating point in and out, small images enlarged only as far as needed.

Metrics (`networks.features.table`) pool the last block and bring every image to the resolution of evaluation, which is
what makes figures comparable and costs up to 50 times as much. A calibration has to tell two samples of the same noise
apart, and to step towards one of them: from EfficientNets it takes maps at strides 4, 8 and 16, each position scaled to
length 1 over channels, as perceptual distances do (Zhang et al. 2018, arXiv 1801.03924).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from networks.features.efficientnet_lite import VARIANTS, preprocess
from networks.features.table import load_efficientnet, load_features

SMALLEST = 48  # pixels of the shorter side that an EfficientNet is shown at least
GRIDS = {1: 12, 2: 6, 4: 3}  # stage -> positions a side that are kept of its maps; what 48 pixels give

FeatureMap = tuple[
    Callable[[Tensor], Tensor], str
]  # images [b, 1 or 3, H, W] in [-1, 1] -> [b, F]; hash of the weights


def _efficientnet(variant: str, device: torch.device) -> FeatureMap:
    net, largest = load_efficientnet(variant, device), VARIANTS[variant].resolution

    blocks = [net.stages[i] for i in GRIDS]

    def features(images: Tensor) -> Tensor:
        side = min(max(min(images.shape[2:]), SMALLEST), largest)
        found = net.blocks(preprocess(images.float() * 127.5 + 127.5, side), blocks)
        maps = [
            F.adaptive_avg_pool2d(F.normalize(x, dim=1), grid) for x, grid in zip(found, GRIDS.values(), strict=True)
        ]
        return torch.cat([x.flatten(1) / grid for x, grid in zip(maps, GRIDS.values(), strict=True)], dim=1)

    return features, VARIANTS[variant].sha256


def _inception(device: torch.device) -> FeatureMap:
    extractor = load_features("inception", device=device)
    return lambda images: extractor.function(images.float() * 127.5 + 127.5), extractor.weights


MAPS: dict[str, Callable[[torch.device], FeatureMap]] = {
    "efficientnet-lite0": partial(_efficientnet, "lite0"),
    "efficientnet-lite2": partial(_efficientnet, "lite2"),
    "inception": _inception,
}


def load_map(name: str, device: torch.device | str = "cpu") -> FeatureMap:
    """A key of `MAPS` as a function of images, and the hash of its weights.

    Raises:
        ValueError: another name, weights that are not there.
    """
    if name not in MAPS:
        raise ValueError(f"no features of images are called '{name}': use one of {', '.join(MAPS)}")
    return MAPS[name](torch.device(device))
