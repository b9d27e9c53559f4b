"""Bits per dimension of a data set of images under a model, over all processes (`samplers/analysis/likelihood.py`)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from samplers.analysis.likelihood import bits_per_dimension, dequantised, likelihood, signs
from samplers.field import Field, as_field
from samplers.run import image_shape, seed_batches
from torch_utils import distributed as dist
from torch_utils.rng import PerSampleRNG
from training.data.archive import ImageArchive
from training.data.image_dataset import ImageDataset


def images_for(
    field: Field, archive: ImageArchive, num: int | None, seed: int, kind: type[ImageDataset] = ImageDataset
) -> ImageDataset:
    """`num` images (None: all) that a model is asked about, chosen by `seed`, with the labels that it needs.

    Raises:
        ValueError: images of another shape, or without the labels.
    """
    shape, label_dim = image_shape(field), field.facts.label_dim or 0
    dataset = kind(archive, max_size=num, use_labels=bool(label_dim), random_seed=seed)
    if tuple(dataset.image_shape) != shape:
        raise ValueError(
            f"the images of {archive.path} are {'x'.join(map(str, dataset.image_shape))} (channels, height, width), "
            f"and samples of this network {'x'.join(map(str, shape))}: give its own kind of data"
        )
    if label_dim != dataset.label_dim:
        raise ValueError(
            f"the network has {label_dim} classes, and {archive.path} has labels of {dataset.label_dim} numbers: give "
            "data with the labels that it was trained on"
        )
    return dataset


def questions(
    field: Field, dataset: ImageDataset, seed: int, batch: int, device: torch.device | str
) -> Iterator[tuple[list[int], PerSampleRNG, Field]]:
    """This process's share of a data set in batches: items, their random numbers, and the field with their labels.

    Args:
        seed: with the place of an image in the data set it decides its numbers.
    """
    labels = dataset.labels()
    for items in seed_batches(range(len(dataset)), batch, dist.get_rank(), dist.get_world_size()):
        rng = PerSampleRNG([seed * 1_000_003 + int(dataset.raw_idx[i]) for i in items])
        yield items, rng, field.bind(labels[items].to(device), **field.cond) if dataset.label_dim else field


def image_likelihood(
    net: Any,
    data: str,
    *,
    num: int | None = None,
    solver: str = "dopri5",
    steps: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    batch: int = 64,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """What a model says of images: `bpd` and its standard error, `nats` per image, and how it was found.

    Args:
        data: folder or zip; a conditional model is given the labels in it.
        num: images, chosen at random; None: all.
        solver, steps, rtol, atol: of the flow, see `likelihood`.
        seed: of the choice of images; the numbers of an image come from `seed` and its place in the data set.
        batch: images at once on one process.

    Raises:
        ValueError: images of another shape, or without the labels that the model needs.
    """
    field = as_field(net)
    dataset, shape = images_for(field, ImageArchive(data), num, seed), image_shape(field)
    options = {name: value for name, value in (("rtol", rtol), ("atol", atol)) if value is not None}
    images, size = dataset.images(), math.prod(shape)
    logp, evaluations = [], []
    for items, rng, bound in questions(field, dataset, seed, batch, device):
        x = dequantised(images[items], rng).to(device)
        random_signs = signs(x, rng)
        found = likelihood(
            bound, x, random_signs, solver=solver, steps=steps, options=options, count=evaluations.extend
        )
        logp += found.logp.tolist()
    gathered = [v for part in dist.all_gather_object(logp) for v in part]
    counts = [v for part in dist.all_gather_object(evaluations) for v in part]
    nats = torch.tensor(gathered, dtype=torch.float64)
    bits = bits_per_dimension(nats, size)
    error = bits.std().item() / math.sqrt(len(bits)) if len(bits) > 1 else None
    return {
        "num": len(bits), "bpd": bits.mean().item(), "bpd_se": error,
        "nats": nats.mean().item(), "solver": solver, "steps": steps, **options, "seed": seed,
        "evaluations": sum(counts) / len(counts) if counts else None,
    }  # fmt: skip
