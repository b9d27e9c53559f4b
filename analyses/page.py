"""`analyze.py page`: the pictures, charts and tables of a folder as one page."""

from __future__ import annotations

import json
from pathlib import Path

import click

from samplers.analysis.charts import CHARTS, charts_of
from samplers.analysis.compare import tables
from torch_utils.cli import Command
from torch_utils.report.page import write_page

CAPTIONS = {
    "compare.png": "Error of solvers against a fine teacher from the same held-out noise, by network evaluations.",
    "trajectory.png": "Geometry of sampling trajectories, from noise (left) to data (right); thin lines are samples.",
    "projection.png": "Sampling trajectories along their chord and the two leading directions orthogonal to it.",
    "strip.png": "States and denoised estimates along sampling trajectories, one pair of rows per seed.",
    "schedules.png": "Noise levels of schedules.",
    "cost.png": "Cost of every Euler jump between levels, and the cheapest path of jumps.",
    "curve.png": "Training loss and speed.",
    "curvature.png": "Curvature along sampling trajectories (band: two standard errors), and by weight of the prior.",
    "forecast.png": "A series, what came of it (black, or the first row) and an ensemble of forecasts.",
    "leads.png": "Errors of forecasts by the number of frames ahead.",
    "trajectories.png": "One long forecast: what came (black) and members of the ensemble.",
    "ramachandran.png": "Pairs of angles, recorded and made; the first and last 30 frames of one trajectory stand out.",
    "shapes.png": "Generated shapes above those of the data.",
}


@click.command("page", cls=Command)
@click.argument("folder", metavar="DIR")
@click.option("--title", default="Results", metavar="TEXT", help="Head of the page")
@click.option("--caption", multiple=True, metavar="FILE=TEXT", help="Caption of a picture; may be repeated")
def command(folder: str, title: str, caption: tuple[str, ...]) -> None:
    """Write DIR/index.html, one file to look at or send: every PNG of DIR, and what analyze.py wrote there as charts to
    zoom into and tables to sort."""
    if wrong := next((c for c in caption if "=" not in c), None):
        raise ValueError(f"--caption='{wrong}' names no picture: write for example --caption=classes.png=Samples")
    given = dict(c.split("=", 1) for c in caption)
    tables_, charts = [], []
    found = [name for name in CHARTS if (Path(folder) / name).is_file()]
    for name in found:
        path = Path(folder) / name
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            charts += charts_of(name, report)
            tables_ += tables(report) if name == "compare.json" else []
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    twins = {name.replace(".json", ".png") for name in found}  # pictures of what the charts show
    written = write_page(
        folder, title, tables=tables_, charts=charts, captions={**CAPTIONS, **given},
        first=list(given) + list(CAPTIONS), without=twins - set(given),
    )  # fmt: skip
    click.echo(written)
