"""`analyze.py cost`: cost of jumps along saved trajectories. The maths is in samplers/gits/costs.py."""

from __future__ import annotations

import click

from analyses.shared import OUTDIR, make_folder, write
from samplers.analysis import figures
from samplers.analysis.trajectory_file import load_trajectory
from samplers.gits.costs import METRICS, cost_matrix, path_cost, shortest_path
from torch_utils.cli import Command


@click.command("cost", cls=Command)
@click.argument("file", metavar="FILE.npz")
@OUTDIR
@click.option("--num-steps", type=click.IntRange(2), default=7, metavar="INT", help="Levels of the chosen path")
@click.option("--metric", type=click.Choice(list(METRICS)), default="dev", help="Cost of a jump")
@click.option("--coeff", type=float, default=1.15, metavar="FLOAT", help="Factor on every later jump")
def command(file: str, outdir: str, num_steps: int, metric: str, coeff: float) -> None:
    """Cost of every jump along saved trajectories of a fine teacher, and the cheapest schedule."""
    loaded = load_trajectory(file)
    matrix = cost_matrix(loaded.x, loaded.drift, loaded.sigmas, metric)
    indices = shortest_path(matrix, num_steps, coeff)
    grid = loaded.sigmas.tolist()
    chosen = [grid[i] for i in indices]
    click.echo(f"{num_steps} levels: {', '.join(f'{v:.4g}' for v in chosen)}")
    numbers = {
        "file": file, "num_samples": len(loaded.seeds), "metric": metric, "coeff": coeff, "indices": indices,
        "chosen": chosen, "total": path_cost(matrix, indices, coeff), "sigmas": grid, "cost": matrix.tolist(),
    }  # fmt: skip
    write(make_folder(outdir), "cost", numbers, lambda _, p: figures.draw_cost(matrix, grid, indices, p, metric))
