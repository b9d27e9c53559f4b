"""`analyze.py curvature`: how straight trajectories are. The maths is in samplers/analysis/straightness.py."""

from __future__ import annotations

from functools import partial
from typing import Any

import click
from tqdm import tqdm

from analyses.shared import OUTDIR, make_folder, write
from samplers.analysis import figures
from samplers.analysis.compare import HELD_OUT
from samplers.analysis.straightness import curvature_table, measure_curvature
from samplers.run import prepare
from torch_utils import distributed as dist
from torch_utils.cli import Command
from training.trained import open_network


@click.command("curvature", cls=Command)
@click.argument("networks_", nargs=-1, required=True, metavar="NETWORK...")
@OUTDIR
@click.option("--label", multiple=True, metavar="TEXT", help="Name of a network, in their order [default: file name]")
@click.option("--num", type=click.IntRange(2), default=256, metavar="INT", help="Trajectories of each network")
@click.option("--N", "evaluations", type=click.IntRange(1), default=100, metavar="INT", help="Network evaluations each")
@click.option("--solver", type=click.Choice(["euler", "heun"]), default="euler", help="Solver; heun takes an odd --N")
@click.option("--prior", metavar="NAME", help="Start distribution, of models that have several [default: the model's]")
@click.option("--seed", type=int, default=HELD_OUT, metavar="INT", help="First seed")
@click.option("--batch", type=click.IntRange(1), default=64, metavar="INT", help="Most samples at once")
@click.option("--device", default="auto", metavar="DEVICE", help="cpu, cuda or auto (a GPU when there is one)")
def command(
    networks_: tuple[str, ...], outdir: str, label: tuple[str, ...], batch: int, device: str, **measured: Any
) -> None:
    """How straight the trajectories of networks are; of several trained with different beta, a sweep."""
    with dist.process_group(device) as dev:
        if label and len(label) != len(networks_):
            given = f"--label is given {len(label)} times for {len(networks_)} networks"
            raise ValueError(f"{given}: once each, or not at all")
        folder, results = make_folder(outdir), []
        for name, text in zip(networks_, label or networks_, strict=True):
            net = open_network(name, partial(prepare, device=dev))
            with tqdm(total=measured["num"], unit="img", desc=text, disable=dist.get_rank() > 0 or None) as bar:
                report = measure_curvature(net, **measured, batch=batch, device=dev, progress=bar.update)
            results.append({"network": name, "label": text, "beta": _beta(net), **report})
        if dist.get_rank() == 0:
            click.echo(curvature_table(results).text())
            write(folder, "curvature", {"results": results}, figures.draw_curvature)
        dist.barrier()


def _beta(net: Any) -> float | None:
    """The weight of the prior that a network was trained with, as its file says."""
    options = getattr(net, "info", {}).get("options") or {}
    return None if options.get("independent") else options.get("weight_prior")
