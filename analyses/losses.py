"""`analyze.py losses`: how well a model has learnt each time. The work is in training/time_losses.py."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from analyses.shared import OUTDIR, make_folder
from samplers.run import prepare
from torch_utils import distributed as dist
from torch_utils.cli import Command
from training.time_losses import losses_over_time
from training.trained import open_network


@click.command("losses", cls=Command)
@click.option("--network", required=True, metavar="FILE|URL|NAME", help="Network: a file, an address, or a name")
@click.option("--data", required=True, metavar="PATH", help="Images or latents: a folder or zip; labels are read too")
@OUTDIR
@click.option("--times", type=click.IntRange(2, 1000), default=21, metavar="INT", show_default=True, help="Equally far")
@click.option("--num", type=click.IntRange(1), metavar="INT", help="Images, chosen at random [default: all]")
@click.option("--seed", type=int, default=0, metavar="INT", help="Seed of the choice and of the noise")
@click.option("--batch", type=click.IntRange(1), default=64, metavar="INT", help="Most images at once")
@click.option("--device", default="auto", metavar="DEVICE", help="cpu, cuda or auto (a GPU when there is one)")
def command(network: str, data: str, outdir: str, device: str, **how: Any) -> None:
    """Mean squared error of a model's velocity over time, for generate.py --diffusion-losses."""
    folder = make_folder(outdir)
    with dist.process_group(device) as dev:
        found = losses_over_time(open_network(network, partial(prepare, device=dev)), data, device=dev, **how)
        if dist.get_rank() == 0:
            for t, loss in found.pairs:
                click.echo(f"t = {t:.4f}   {loss:.4f}")
            found.save(folder / "losses.json", {"network": network, "data": data, **how})
            click.echo(f"Wrote {folder / 'losses.json'}")
        dist.barrier()
