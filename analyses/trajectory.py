"""`analyze.py trajectory`: geometry of saved trajectories. The maths is in samplers/analysis/trajectory_file.py."""

from __future__ import annotations

import click

from analyses.shared import OUTDIR, make_folder, write
from samplers.analysis import figures
from samplers.analysis.trajectory_file import load_trajectory, summarise
from torch_utils.cli import Command


@click.command("trajectory", cls=Command)
@click.argument("file", metavar="FILE.npz")
@OUTDIR
@click.option("--num", type=click.IntRange(1), default=64, metavar="INT", help="Most samples that are looked at")
@click.option("--rows", type=click.IntRange(1), default=6, metavar="INT", help="Samples in strip.png")
@click.option("--columns", type=click.IntRange(2), default=12, metavar="INT", help="Most steps in strip.png")
def command(file: str, outdir: str, num: int, rows: int, columns: int) -> None:
    """Geometry of trajectories that `generate.py --save-traj` saved: trajectory, projection and strip."""
    loaded = load_trajectory(file, num)
    summary = summarise(loaded)
    folder = make_folder(outdir)
    more = []
    if "projection" in summary:
        more.append("projection.png")
        figures.draw_projection(summary, folder / more[-1])
    if loaded.x.ndim == 5 and loaded.x.shape[2] in (1, 3):
        more.append("strip.png")
        figures.draw_strip(loaded, folder / more[-1], rows=rows, columns=columns)
    else:
        click.echo(f"no strip.png: states of shape {list(loaded.x.shape[2:])} are not images of 1 or 3 channels")
    write(folder, "trajectory", {"file": file, **summary}, figures.draw_trajectory, more)
