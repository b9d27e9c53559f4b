"""`analyze.py curvature`: how straight trajectories are. The maths is in samplers/analysis/straightness.py."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import click
from tqdm import tqdm

from analyses.shared import AnalysisDevice, make_folder, write
from samplers.analysis import figures
from samplers.analysis.compare import HELD_OUT
from samplers.analysis.straightness import curvature_table, measure_curvature
from samplers.run import prepare
from torch_utils import distributed as dist
from torch_utils.cli import Command
from torch_utils.options import OptionGroup, opt, options_of
from training.trained import open_network


@dataclass(frozen=True, kw_only=True)
class Straightness:
    group: ClassVar = OptionGroup("What is measured", "Trajectories of each network, from the same seeds.", rank=0)

    outdir: str = opt(None, "Folder of curvature.json and curvature.png", metavar="DIR", required=True)
    num: int = opt(256, "Trajectories of each network", metavar="INT", at_least=2)
    label: tuple[str, ...] = opt((), "Name of a network, in their order [default: file name]", metavar="TEXT")
    prior: str | None = opt(
        None, "Start distribution, of models that have several [default: the model's]", metavar="NAME"
    )
    seed: int = opt(HELD_OUT, "First seed", metavar="INT")


@dataclass(frozen=True, kw_only=True)
class Steps:
    group: ClassVar = OptionGroup("Solver", "How finely a trajectory is followed.", rank=1)

    N: int = opt(100, "Network evaluations of each", metavar="INT", at_least=1)
    solver: str = opt("euler", "Solver; heun takes an odd --N", choices=["euler", "heun"])


@dataclass(frozen=True, kw_only=True)
class StraightnessOptions(AnalysisDevice, Steps, Straightness):
    """All options of `curvature`."""


@click.command("curvature", cls=Command)
@click.argument("networks_", nargs=-1, required=True, metavar="NETWORK...")
@options_of(StraightnessOptions)
def command(options: StraightnessOptions, networks_: tuple[str, ...]) -> None:
    """How straight the trajectories of networks are; of several trained with different beta, a sweep."""
    with dist.process_group(options.device) as device:
        if options.label and len(options.label) != len(networks_):
            given = f"--label is given {len(options.label)} times for {len(networks_)} networks"
            raise ValueError(f"{given}: once each, or not at all")
        folder, results = make_folder(options.outdir), []
        for name, text in zip(networks_, options.label or networks_, strict=True):
            net = open_network(name, partial(prepare, device=device))
            with tqdm(total=options.num, unit="img", desc=text, disable=dist.get_rank() > 0 or None) as bar:
                report = measure_curvature(
                    net, evaluations=options.N, solver=options.solver, prior=options.prior, num=options.num,
                    seed=options.seed, batch=options.batch, device=device, progress=bar.update,
                )  # fmt: skip
            results.append({"network": name, "label": text, "beta": _beta(net), **report})
        if dist.get_rank() == 0:
            click.echo(curvature_table(results).text())
            write(folder, "curvature", {"results": results}, figures.draw_curvature)
        dist.barrier()


def _beta(net: Any) -> float | None:
    """The weight of the prior that a network was trained with, as its file says."""
    options = getattr(net, "info", {}).get("options") or {}
    return None if options.get("independent") else options.get("weight_prior")
