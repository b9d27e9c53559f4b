"""The picture that goes with a snapshot: samples from fixed seeds, one row per class where there are classes.

The same seeds at every snapshot, so that the pictures of a run show one set of images taking shape.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from samplers.stochastic import edm_sampler
from torch_utils.images import make_grid, to_uint8
from torch_utils.rng import PerSampleRNG

__all__ = ["sample_grid"]

MAX_ROWS = 10
MIN_WIDTH = 512  # pixels


@torch.inference_mode()
def sample_grid(net: Any, columns: int = 8, num_steps: int = 18) -> Tensor:
    """`[C, H', W']` uint8: rows of `columns` samples by the EDM sampler, 2 * num_steps - 1 evaluations."""
    device = next(net.parameters()).device
    rows = min(net.label_dim or columns, MAX_ROWS)
    rng = PerSampleRNG(range(rows * columns), "cpu")  # drawn on the CPU: the same images on any device
    noise = rng.randn([rows * columns, net.img_channels, net.img_resolution, net.img_resolution]).to(device)
    labels = None
    if net.label_dim:
        labels = torch.eye(net.label_dim, device=device)[:rows].repeat_interleave(columns, dim=0)
    images = to_uint8(edm_sampler(net, noise, labels, num_steps=num_steps))
    grid = make_grid(torch.nn.functional.pad(images, (1, 1, 1, 1)), columns=columns)
    zoom = max(MIN_WIDTH // grid.shape[2], 1)  # tiny images are shown as blocks rather than blurred by a viewer
    return grid.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
