"""`analyze.py losses`: how well a model has learnt each time. The work is in training/time_losses.py."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import click

from analyses.shared import AnalysisDevice, make_folder
from samplers.run import prepare
from torch_utils import distributed as dist
from torch_utils.cli import Command
from torch_utils.options import OptionGroup, opt, options_of
from training.time_losses import losses_over_time
from training.trained import open_network


@dataclass(frozen=True, kw_only=True)
class LossesOptions(AnalysisDevice):
    """All options of `losses`."""

    group: ClassVar = OptionGroup("Images and model", "Which images, under which model.", rank=0)

    network: str = opt(None, "Network: a file, an address, or a name", metavar="FILE|URL|NAME", required=True)
    data: str = opt(None, "Images or latents: a folder or zip; labels are read too", metavar="PATH", required=True)
    outdir: str = opt(None, "Folder of losses.json", metavar="DIR", required=True)
    times: int = opt(21, "Times, equally far apart", metavar="INT", at_least=2, at_most=1000)
    num: int | None = opt(None, "Images, chosen at random [default: all]", metavar="INT", at_least=1)
    seed: int = opt(0, "Seed of the choice and of the noise", metavar="INT")


@click.command("losses", cls=Command)
@options_of(LossesOptions)
def command(options: LossesOptions) -> None:
    """Mean squared error of a model's velocity over time, for generate.py --diffusion-losses."""
    folder = make_folder(options.outdir)
    how = {k: getattr(options, k) for k in ("times", "num", "seed", "batch")}
    with dist.process_group(options.device) as device:
        net = open_network(options.network, partial(prepare, device=device))
        found = losses_over_time(net, options.data, device=device, **how)
        if dist.get_rank() == 0:
            for t, loss in found.pairs:
                click.echo(f"t = {t:.4f}   {loss:.4f}")
            found.save(folder / "losses.json", {"network": options.network, "data": options.data, **how})
            click.echo(f"Wrote {folder / 'losses.json'}")
        dist.barrier()
