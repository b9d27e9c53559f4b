"""A picture of graded control: references, and what a network makes of them at rising strengths.

    python -m bench.graded --network=NET --reference=datasets/photos64.zip --outdir=runs/graded

Rows: the references; strengths 0, 0.25, 0.5 and 0.75 everywhere; the left half at 0.5, 0.75 and 1; quadrants at 0,
0.25, 0.5 and 0.75; and with more than one channel the first at 1, the first at 0.75 and the last at 1. References are
spread evenly over the data set.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch

import networks
from bench import commands
from torch_utils.cli import Command
from torch_utils.images import make_grid, save_image
from training.data.image_dataset import ImageDataset, decoded

STRENGTHS = ("0", "0.25", "0.5", "0.75", "left:0.5", "left:0.75", "left:1", "quadrants:0,0.25,0.5,0.75")
CHANNELS = ("channels:0=1", "channels:0=0.75", "channels:{last}=1")


@click.command(cls=Command)
@click.option("--network", type=Path, required=True, help="Network of images or latents")
@click.option("--reference", type=Path, required=True, help="Data set to keep something of")
@click.option("--outdir", type=Path, default="runs/graded", show_default=True, help="Where graded.png goes")
@click.option("--columns", type=click.IntRange(1), default=10, show_default=True, help="References")
@click.option("--steps", type=click.IntRange(1), default=40, show_default=True, help="Equal steps")
def main(network: Path, reference: Path, outdir: Path, columns: int, steps: int) -> None:
    """Generate every row by generate.py, and put them below the references."""
    last = networks.load_network(network).img_channels - 1
    dataset = ImageDataset(str(reference))
    seeds = range(0, len(dataset), max(len(dataset) // columns, 1))[:columns]
    rows = list(decoded(dataset, seeds, columns))
    for keep in (*STRENGTHS, *(CHANNELS if last else ())):
        file = outdir / "row.npz"
        commands.call(
            "generate.py",
            f"--network={network} --reference={reference} --keep={keep.format(last=last)} --N={steps} "
            f"--seeds={','.join(map(str, seeds))} --npz={file} --overwrite",
        )
        with np.load(file) as made:
            rows.append(torch.from_numpy(made["images"]).permute(0, 3, 1, 2))
        file.unlink()
    save_image(make_grid(torch.cat(rows), len(seeds)), outdir / "graded.png")


if __name__ == "__main__":
    main()
