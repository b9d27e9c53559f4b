"""`analyze.py shapes`: generated shapes against a data set. The maths is in training/shape_metrics.py."""

from __future__ import annotations

import click
import torch

from analyses.shared import OUTDIR, make_folder, write
from networks.features.pointnet import load_point_features
from torch_utils.cli import Command
from torch_utils.images import save_image
from torch_utils.report.boxes import draw_shapes
from training.data.boxes import TOLERANCE
from training.data.shapes import Shapes, read_shapes
from training.shape_metrics import compare_shapes, has_rules


@click.command("shapes", cls=Command)
@click.argument("generated", metavar="SHAPES.npz")
@click.option("--data", required=True, metavar="SHAPES", help="Unseen shapes to compare with: shapes:boxes or .npz")
@OUTDIR
@click.option("--num", type=click.IntRange(2), default=500, metavar="INT", help="Most shapes of each")
@click.option("--points", type=click.IntRange(1), default=256, metavar="INT", help="Points on a surface")
@click.option(
    "--features", default="random", metavar="random|FILE",
    help="Features of the Fréchet distance: fixed random ones, or weights",
)  # fmt: skip
@click.option(
    "--tolerance", type=click.FloatRange(0, min_open=True), default=TOLERANCE, metavar="FLOAT",
    help="How far from the rules of shapes:boxes a shape may be",
)  # fmt: skip
def command(
    generated: str, data: str, outdir: str, num: int, points: int, features: str, tolerance: float
) -> None:  # fmt: skip
    """Validity, Chamfer and Fréchet distances of generated shapes to those of a data set, and a picture of both."""
    net = load_point_features(features)
    made, reference = (_first(read_shapes(source), num) for source in (generated, data))
    folder = make_folder(outdir)
    numbers = {"generated": generated, "data": data, "features": features, "points": points, "tolerance": tolerance}
    numbers |= compare_shapes(
        made, reference, ruled=has_rules(reference), points=points, tolerance=tolerance, features=net
    )
    for name in ("valid", "valid_wide", "right_class", "mmd", "coverage", "cov_distance", "fidelity", "fpd"):
        if numbers[name] is not None:
            click.echo(f"{name:<14}{numbers[name]:.4g}")
    most = max(made.parts.shape[1], reference.parts.shape[1])
    rows = torch.cat([_slots(s.parts[:24], most) for s in (made, reference)])
    titles = ["generated", "", "", "data"] if len(made.parts) >= 24 else []
    write(folder, "shapes", numbers, lambda _, path: save_image(draw_shapes(rows, titles=titles), path))


def _first(shapes: Shapes, num: int) -> Shapes:
    return shapes._replace(
        parts=shapes.parts[:num], labels=None if shapes.labels is None else shapes.labels[:num]
    )  # fmt: skip


def _slots(parts: torch.Tensor, count: int) -> torch.Tensor:
    """Parts with empty slots after them, `count` in all."""
    return torch.nn.functional.pad(parts, (0, 0, 0, count - parts.shape[1]))
