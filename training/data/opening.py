"""DataOptions and the data set they open: images or latents of a folder or zip, points, a series, or shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch_utils.options import OptionGroup, opt, refuse
from training.data.archive import ImageArchive
from training.data.image_dataset import ImageDataset
from training.data.latent_dataset import LatentDataset, holds_latents
from training.data.series import SeriesDataset, is_series
from training.data.shapes import ShapeDataset, is_shapes
from training.data.toys import ToyDataset, is_toy


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Options of the data set and of how it is read."""

    group: ClassVar = OptionGroup("Data", "The data set, and how it is read.", rank=1)
    takes_shapes: ClassVar = False  # the method learns sets of parts

    data: str = opt(
        None, "Data set made by dataset_tool.py; points: toy:NAME[:size=N][:seed=S]; a series: series:NAME|FILE[:...] "
        "(docs/series.md); shapes: shapes:boxes or FILE.npz (docs/shapes.md)", metavar="ZIP|DIR|TOY|SERIES|SHAPES",
        required=True,
    )  # fmt: skip
    cond: bool = opt(False, "Train a class-conditional model; the data set must have labels", metavar="BOOL")
    xflip: bool = opt(False, "Double the data set with mirrored copies", metavar="BOOL")
    cache: bool = opt(
        True, "Keep the decoded data set in memory, on the GPU if it fits", metavar="BOOL", may_change=True
    )
    workers: int = opt(1, "Threads that read and decode images", metavar="INT", at_least=1, may_change=True)
    decoder: str | None = opt(
        None, "Data sets of latents: the autoencoder that made them, for pictures and FID [default: the one that the "
        "data set names, where its file is at hand]", metavar="FILE|NAME", may_change=True,
    )  # fmt: skip


def open_dataset(options: DataOptions) -> ImageDataset | ToyDataset | SeriesDataset | ShapeDataset:
    """The data set of `--data`.

    Raises:
        ValueError, OSError: nothing there, something else, or no labels where they are asked for.
    """
    if is_series(options.data):
        if options.xflip:
            raise ValueError(f"--xflip mirrors images, and {options.data} is a series: leave it out")
        return SeriesDataset(options.data)
    if is_shapes(options.data):
        if not options.takes_shapes:
            raise ValueError(f"{options.data} holds shapes, which train.py combostoc and sit learn: give other data")
        refuse(options, ("xflip",), f"mirrors images, {options.data} has shapes")
        dataset = ShapeDataset(options.data, use_labels=options.cond)
    elif is_toy(options.data):
        dataset = ToyDataset(options.data, use_labels=options.cond, xflip=options.xflip)
    else:
        archive = ImageArchive(options.data)
        opened = LatentDataset if holds_latents(archive) else ImageDataset
        dataset = opened(archive, use_labels=options.cond, xflip=options.xflip)
    if options.cond and not dataset.has_labels:
        raise ValueError(
            f"--cond=1 needs labels, and {options.data} has none: build the data set from a source with labels, "
            "or leave --cond=0"
        )
    return dataset
