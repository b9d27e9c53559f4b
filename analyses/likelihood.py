"""`analyze.py likelihood`: bits per dimension of images. The maths is in samplers/analysis/likelihood.py."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from analyses.shared import make_folder
from samplers.run import prepare
from torch_utils import distributed as dist
from torch_utils.cli import Command
from torch_utils.files import write_json
from training.likelihood import image_likelihood
from training.trained import open_network


@click.command("likelihood", cls=Command)
@click.option("--network", required=True, metavar="FILE|URL|NAME", help="Network: a file, an address, or a name")
@click.option("--data", required=True, metavar="PATH", help="Images: a folder or zip; labels are read with them")
@click.option("--outdir", metavar="DIR", help="Folder of likelihood.json [default: none is written]")
@click.option("--num", type=click.IntRange(1), metavar="INT", help="Images, chosen at random [default: all]")
@click.option("--solver", default="dopri5", metavar="NAME", help="Adaptive, or euler and others with --steps")
@click.option("--steps", type=click.IntRange(1), metavar="INT", help="Equal steps, of solvers that choose none")
@click.option(
    "--rtol", type=click.FloatRange(0, min_open=True), metavar="FLOAT", help="Adaptive solvers [default: 1e-5]"
)
@click.option(
    "--atol", type=click.FloatRange(0, min_open=True), metavar="FLOAT", help="Adaptive solvers [default: 1e-5]"
)
@click.option(
    "--seed", type=int, default=0, metavar="INT", help="Seed of the choice, of the spread of grey values and of signs"
)
@click.option("--batch", type=click.IntRange(1), default=64, metavar="INT", help="Most images at once")
@click.option("--device", default="auto", metavar="DEVICE", help="cpu, cuda or auto (a GPU when there is one)")
def command(network: str, data: str, outdir: str | None, device: str, **how: Any) -> None:
    """Bits per dimension of images of 8 bits under a model, by its flow."""
    with dist.process_group(device) as dev:
        result = {
            "network": network,
            "data": data,
            **image_likelihood(open_network(network, partial(prepare, device=dev)), data, device=dev, **how),
        }
        if dist.get_rank() == 0:
            error = "" if result["bpd_se"] is None else f" +- {result['bpd_se']:.4f}"
            click.echo(f"{result['bpd']:.4f}{error} bits per dimension, {result['num']} images")
            if outdir is not None:
                write_json(make_folder(outdir) / "likelihood.json", result)
        dist.barrier()
