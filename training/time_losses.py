"""The loss of a model over time: the mean squared error of its velocity, for `--diffusion-form=KL-eta`.

Of a network that predicts velocity this is the loss that it was trained on; what others predict is seen as a velocity,
as their loss with the weight "velocity" sees it. A model in sigma coordinates is seen on the linear path.
"""

from __future__ import annotations

from typing import Any

import torch

from samplers.field import as_field
from samplers.planning.interpolant import on_a_path, reached_times
from samplers.planning.loss_table import LossTable
from samplers.recipe import path_name
from torch_utils import distributed as dist
from torch_utils.images import from_uint8
from training.data.archive import ImageArchive
from training.data.image_dataset import ImageDataset
from training.data.latent_dataset import LatentDataset, holds_latents
from training.likelihood import images_for, questions


def losses_over_time(
    net: Any,
    data: str,
    *,
    times: int = 21,
    num: int | None = None,
    seed: int = 0,
    batch: int = 64,
    device: torch.device | str = "cpu",
) -> LossTable:
    """Losses at `times` equally spaced times, means over images or latents and their elements.

    Args:
        data: folder or zip; a conditional model is given the labels in it.
        num: images, chosen at random; None: all.
        seed: of the choice and of the noise; an image has the same noise at all times.
        batch: images at once on one process.

    Raises:
        ValueError: data of another shape, or without the labels that the model needs.
    """
    field, archive = on_a_path(as_field(net)), ImageArchive(data)
    dataset = images_for(field, archive, num, seed, LatentDataset if holds_latents(archive) else ImageDataset)
    stored = dataset.images()
    grid = torch.linspace(*reached_times(field), times, dtype=torch.float64)
    total = torch.zeros(times, dtype=torch.float64, device=device)
    for items, rng, bound in questions(field, dataset, seed, batch, device):
        drawn = from_uint8(stored[items]) if dataset.latents is None else dataset.draw(stored[items], rng)
        noise, x = rng.randn(list(drawn.shape)).to(device), drawn.to(device)
        for k, t in enumerate(grid):
            with torch.no_grad():
                found = bound.velocity(field.path.mix(x, noise, t), t.to(device))
            error = found.double() - field.path.target(x, noise, t, "velocity")
            total[k] += error.square().flatten(1).mean(1).sum()
    losses = torch.tensor(dist.all_gather_object(total.tolist()), dtype=torch.float64).sum(0) / len(dataset)
    pairs = tuple(zip(grid.tolist(), losses.tolist(), strict=True))
    return LossTable(path=path_name(field.path), pairs=pairs, model_hash=field.weights_hash())
