"""Pictures beside a snapshot of trajectory optimisation: samples, coefficients and the path they make.

samples-NNNNNN.png               a grid of samples along the learned levels
plain-NNNNNN.png                 the same noise along the ordinary levels (all coefficients 0)
coefficients/NNNNNN/I.png        map I of c of the first sample, grey, -scale black to +scale white
paths/NNNNNN/J.png               noise levels of its elements at step J, in logarithms from 0.002 to 80
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from networks.mac import MACNetwork
from samplers.mac import sample_mac
from torch_utils.images import make_grid, save_image, to_uint8
from torch_utils.rng import PerSampleRNG

__all__ = ["level_picture", "write"]

COLUMNS, MAX_ROWS = 6, 10


@torch.inference_mode()
def write(path: Path, averaged: Mapping[str, nn.Module]) -> None:
    """All pictures of the averaged network; `path` is that of the grid, samples-NNNNNN.png."""
    net: MACNetwork = averaged["ema"]
    number = path.stem.removeprefix("samples-")
    noise, labels = _starts(net)
    levels = [*net.schedule, 0.0]
    c = net.coefficients(noise, labels)
    for name, chosen in ((path.name, c), (f"plain-{number}.png", torch.zeros_like(c[:1]))):
        images = sample_mac(net, noise, levels, class_labels=labels, coefficients=chosen)
        save_image(make_grid(to_uint8(images).cpu(), columns=COLUMNS), path.parent / name)
    for i, grey in enumerate(to_uint8(c[0] / net.C.scale).cpu()):
        save_image(grey[None], path.parent / "coefficients" / number / f"{i}.png")
    for j, level in enumerate(levels):
        save_image(level_picture(net.family.gamma(level, c[:1])[0]).cpu(), path.parent / "paths" / number / f"{j}.png")


def level_picture(gamma: Tensor, low: float = 0.002, high: float = 80.0) -> Tensor:
    """Noise levels `[C, H, W]` as uint8: black at `low` and below, white at `high`, even in logarithms."""
    share = (gamma.clamp(min=low).log() - math.log(low)) / math.log(high / low)
    image = to_uint8(2 * share - 1)
    return image if image.shape[0] in (1, 3, 4) else image[:1]


def _starts(net: MACNetwork) -> tuple[Tensor, Tensor | None]:
    """Noise from fixed seeds; one class per row where there are classes."""
    device = next(net.parameters()).device
    rows = min(net.label_dim or COLUMNS, MAX_ROWS)
    size = (net.img_channels, net.img_resolution, net.img_resolution)
    noise = PerSampleRNG(range(rows * COLUMNS), "cpu").randn([rows * COLUMNS, *size]).to(device)
    if not net.label_dim:
        return noise, None
    return noise, torch.eye(net.label_dim, device=device)[:rows].repeat_interleave(COLUMNS, dim=0)
