"""`analyze.py shapes`: generated shapes against a data set. The maths is in training/shape_metrics.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import click
import torch

from analyses.shared import make_folder, write
from networks.features.pointnet import load_point_features
from torch_utils.cli import Command
from torch_utils.images import save_image
from torch_utils.options import OptionGroup, opt, options_of
from torch_utils.report.boxes import draw_shapes
from training.data.boxes import TOLERANCE
from training.data.shapes import Shapes, read_shapes
from training.shape_metrics import compare_shapes, has_rules


@dataclass(frozen=True, kw_only=True)
class Compared:
    group: ClassVar = OptionGroup("What is compared", "Generated shapes with those of a data set.", rank=0)

    data: str = opt(None, "Unseen shapes to compare with: shapes:boxes or .npz", metavar="SHAPES", required=True)
    outdir: str = opt(None, "Folder of shapes.json and shapes.png", metavar="DIR", required=True)
    num: int = opt(500, "Most shapes of each", metavar="INT", at_least=2)


@dataclass(frozen=True, kw_only=True)
class Distances:
    group: ClassVar = OptionGroup("Distances", "What a shape is judged by.", rank=1)

    points: int = opt(256, "Points on a surface", metavar="INT", at_least=1)
    features: str = opt(
        "random", "Features of the Fréchet distance: fixed random ones, or weights", metavar="random|FILE"
    )
    tolerance: float = opt(TOLERANCE, "How far from the rules of shapes:boxes a shape may be", metavar="FLOAT", above=0)


@dataclass(frozen=True, kw_only=True)
class ShapeOptions(Distances, Compared):
    """All options of `shapes`."""


@click.command("shapes", cls=Command)
@click.argument("generated", metavar="SHAPES.npz")
@options_of(ShapeOptions)
def command(options: ShapeOptions, generated: str) -> None:
    """Validity, Chamfer and Fréchet distances of generated shapes to those of a data set, and a picture of both."""
    net = load_point_features(options.features)
    made, reference = (_first(read_shapes(source), options.num) for source in (generated, options.data))
    folder = make_folder(options.outdir)
    how = {"points": options.points, "tolerance": options.tolerance}
    numbers = {"generated": generated, "data": options.data, "features": options.features, **how}
    numbers |= compare_shapes(made, reference, ruled=has_rules(reference), features=net, **how)
    for name in ("valid", "valid_wide", "right_class", "mmd", "coverage", "cov_distance", "fidelity", "fpd"):
        if numbers[name] is not None:
            click.echo(f"{name:<14}{numbers[name]:.4g}")
    most = max(made.parts.shape[1], reference.parts.shape[1])
    rows = torch.cat([_slots(s.parts[:24], most) for s in (made, reference)])
    titles = ["generated", "", "", "data"] if len(made.parts) >= 24 else []
    write(folder, "shapes", numbers, lambda _, path: save_image(draw_shapes(rows, titles=titles), path))


def _first(shapes: Shapes, num: int) -> Shapes:
    return shapes._replace(parts=shapes.parts[:num], labels=None if shapes.labels is None else shapes.labels[:num])


def _slots(parts: torch.Tensor, count: int) -> torch.Tensor:
    """Parts with empty slots after them, `count` in all."""
    return torch.nn.functional.pad(parts, (0, 0, 0, count - parts.shape[1]))
