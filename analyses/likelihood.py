"""`analyze.py likelihood`: bits per dimension of images. The maths is in samplers/analysis/likelihood.py."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import click

from analyses.shared import AnalysisDevice, make_folder
from samplers.run import prepare
from torch_utils import distributed as dist
from torch_utils.cli import Command
from torch_utils.files import write_json
from torch_utils.options import OptionGroup, opt, options_of
from training.likelihood import image_likelihood
from training.trained import open_network


@dataclass(frozen=True, kw_only=True)
class Rated:
    group: ClassVar = OptionGroup("Images and model", "Which images, under which model.", rank=0)

    network: str = opt(None, "Network: a file, an address, or a name", metavar="FILE|URL|NAME", required=True)
    data: str = opt(None, "Images: a folder or zip; labels are read with them", metavar="PATH", required=True)
    outdir: str | None = opt(None, "Folder of likelihood.json [default: none is written]", metavar="DIR")
    num: int | None = opt(None, "Images, chosen at random [default: all]", metavar="INT", at_least=1)
    seed: int = opt(0, "Seed of the choice, of the spread of grey values and of signs", metavar="INT")


@dataclass(frozen=True, kw_only=True)
class Flow:
    group: ClassVar = OptionGroup("Solver", "How closely the flow is followed.", rank=1)

    solver: str = opt("dopri5", "Adaptive, or euler and others with --steps", metavar="NAME")
    steps: int | None = opt(None, "Equal steps, of solvers that choose none", metavar="INT", at_least=1)
    rtol: float | None = opt(None, "Adaptive solvers: relative tolerance [default: 1e-5]", metavar="FLOAT", above=0)
    atol: float | None = opt(None, "Adaptive solvers: absolute tolerance [default: 1e-5]", metavar="FLOAT", above=0)


@dataclass(frozen=True, kw_only=True)
class LikelihoodOptions(AnalysisDevice, Flow, Rated):
    """All options of `likelihood`."""


@click.command("likelihood", cls=Command)
@options_of(LikelihoodOptions)
def command(options: LikelihoodOptions) -> None:
    """Bits per dimension of images of 8 bits under a model, by its flow."""
    how = {k: getattr(options, k) for k in ("num", "seed", "solver", "steps", "rtol", "atol", "batch")}
    with dist.process_group(options.device) as device:
        net = open_network(options.network, partial(prepare, device=device))
        found = image_likelihood(net, options.data, device=device, **how)
        if dist.get_rank() == 0:
            error = "" if found["bpd_se"] is None else f" +- {found['bpd_se']:.4f}"
            click.echo(f"{found['bpd']:.4f}{error} bits per dimension, {found['num']} images")
            if options.outdir is not None:
                result = {"network": options.network, "data": options.data, **found}
                write_json(make_folder(options.outdir) / "likelihood.json", result)
        dist.barrier()
