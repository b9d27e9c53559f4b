"""The picture that goes with a snapshot: samples from fixed seeds, one row per class where there are classes.

The same seeds at every snapshot, so that the pictures of a run show one set of images taking shape.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samplers.field import as_field
from samplers.planning.plan import SamplerOptions, build_plan
from samplers.run import decoded, image_shape
from samplers.solvers.churn import edm_sampler
from torch_utils.images import enlarged, make_grid, save_image, to_uint8
from torch_utils.report.boxes import draw_shapes
from torch_utils.report.scatter import scatter
from torch_utils.rng import PerSampleRNG
from training.data.series import SeriesDataset
from training.data.shapes import ShapeDataset
from training.data.toys import ToyDataset
from training.pictures.series import draw_continuation

MAX_ROWS = 10
POINTS = 2048  # samples in a picture of points in the plane


Sampler = Callable[[Any, Tensor, Tensor | None], Tensor]  # of (net, noise, labels)


def preview_of(dataset: Any, **how: Any) -> Callable[[Path, Mapping[str, nn.Module]], None]:
    """What writes the picture of a snapshot; of images, `how` is as of `sample_grid`."""
    return functools.partial(draw, dataset, **how)


@functools.singledispatch
def draw(dataset: Any, path: Path, averaged: Mapping[str, nn.Module], **how: Any) -> None:
    """Images: a grid of samples. Each other kind of data registers its own picture below."""
    save_image(sample_grid(averaged["ema"], **how), path)


@draw.register
def _(dataset: ToyDataset, path: Path, averaged: Mapping[str, nn.Module]) -> None:
    save_image(scatter(sample_points(averaged["ema"]), reference=shown_part(dataset.images())), path)


@draw.register
def _(dataset: ShapeDataset, path: Path, averaged: Mapping[str, nn.Module]) -> None:
    save_image(draw_shapes(sample_shapes(averaged["ema"], repeat=8)), path)


@draw.register
def _(dataset: SeriesDataset, path: Path, averaged: Mapping[str, nn.Module]) -> None:
    draw_continuation(path, averaged, dataset=dataset)


@torch.inference_mode()
def sample_grid(net: Any, columns: int = 8, sampler: Sampler = edm_sampler) -> Tensor:
    """`[C, H', W']` uint8: rows of `columns` samples."""
    rows = min(net.label_dim or columns, MAX_ROWS) if getattr(net, "conditions", None) is None else columns
    noise, labels = fixed_starts(net, rows * columns, repeat=columns)
    images = to_uint8(decoded(as_field(net), sampler(net, noise, labels)))
    return enlarged(make_grid(torch.nn.functional.pad(images, (1, 1, 1, 1)), columns=columns))


@torch.inference_mode()
def sample_points(net: Any) -> Tensor:
    """`[POINTS, C, 1, 1]`: points by the EDM sampler, all classes in turn."""
    return edm_sampler(net, *fixed_starts(net, POINTS)).float().cpu()


@torch.inference_mode()
def sample_shapes(net: Any, count: int = 40, evaluations: int = 50, repeat: int = 1, solver: str = "euler") -> Tensor:
    """`[count, L, V]` in the units of the data: shapes by equal steps, classes in turn, each `repeat` times."""
    plan = build_plan(net, SamplerOptions(N=evaluations, solver=solver))
    rng = PerSampleRNG(range(count, 2 * count), "cpu")  # of noise along the way, another than that of the starts
    return net.decode(plan(net, *fixed_starts(net, count, repeat), rng=rng)).float().cpu()


def shown_part(data: Tensor, count: int = POINTS) -> Tensor:
    """At most `count` points at equal distances through `data`: the order of a toy may mean something."""
    return data[:: max(len(data) // count, 1)][:count]


def fixed_starts(net: Any, count: int, repeat: int = 1) -> tuple[Tensor, Tensor | None]:
    """Noise `[count, ...]` from fixed seeds, and conditions in turn, each `repeat` times, or None."""
    device = next(net.parameters()).device
    rng = PerSampleRNG(range(count), "cpu")  # drawn on the CPU: the same images on any device
    noise = rng.randn([count, *image_shape(net)]).to(device)
    return noise, example_conditions(net, count, repeat)


def example_conditions(net: Any, count: int, repeat: int = 1) -> Tensor | None:
    """Conditions `[count, label_dim]` in turn, each `repeat` times: one-hot classes, or those of its data where they
    are no classes, which the network has as its attribute `conditions`."""
    if not net.label_dim:
        return None
    device, known = next(net.parameters()).device, getattr(net, "conditions", None)
    rows = torch.eye(net.label_dim, device=device) if known is None else shown_part(known, MAX_ROWS).to(device)
    return rows[torch.arange(count) // repeat % len(rows)]
