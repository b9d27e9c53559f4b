"""`analyze.py curve`: loss and speed of a training run, read by training/runs/curve.py."""

from __future__ import annotations

import click

from analyses.shared import OUTDIR, make_folder, write
from samplers.analysis import figures
from torch_utils.cli import Command
from training.runs.curve import read_curve


@click.command("curve", cls=Command)
@click.argument("run_dir", metavar="RUN_DIR")
@OUTDIR
def command(run_dir: str, outdir: str) -> None:
    """Loss and speed of a training run."""
    write(make_folder(outdir), "curve", {"run_dir": run_dir, **read_curve(run_dir)}, figures.draw_curve)
