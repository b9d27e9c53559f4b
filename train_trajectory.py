"""Optimise the inference trajectory of a trained denoiser against a discriminator (MAC's second stage)."""

from __future__ import annotations

from torch_utils import process

if __name__ == "__main__":
    process.begin()  # before torch starts its threads

import click

from torch_utils.cli import Command
from torch_utils.options import options_of
from training.launch import launch
from training.methods.trajectory import TrajectoryOptions

EXAMPLES = """\b
Examples:
  # The published set-up for ImageNet-64 on 8 GPUs
  torchrun --standalone --nproc_per_node=8 train_trajectory.py --outdir=runs --data=datasets/imagenet-64x64.zip \\
      --cond=1 --network=edm-imagenet-64x64-cond-adm
\b
  # The 8x8 digits on a CPU: random features need no download
  python train_trajectory.py --outdir=runs --data=datasets/digits.zip --cond=1 --backbones=light \\
      --network=runs/00000-digits-cond-ddpmpp-edm-gpus1-batch128-fp32/network-snapshot-000080.pkl \\
      --coef-channels=32 --coef-mult=1,2 --coef-blocks=1 --batch=64 --batch-edm=64 --batch-disc=64 --kimg=10
\b
  # Points in the plane, here from a flow of train.py curvature --independent (docs/mac.md)
  python train_trajectory.py --outdir=runs --data=toy:moons --network=runs/flow/network-snapshot-001000.pkl \\
      --train-v=0 --scale=0.5 --coef-channels=64 --coef-blocks=2 --batch=256 --batch-disc=256 \\
      --glr=5e-4 --dlr=1e-3 --kimg=200
\b
  # What would that do, and what would a sample cost?
  python train_trajectory.py --outdir=runs --data=... --network=... --dry-run

The same command again continues an unfinished run. generate.py samples the snapshots."""


@click.command(cls=Command, epilog=EXAMPLES)
@options_of(TrajectoryOptions)
def main(options: TrajectoryOptions) -> None:
    """Train a few-step sampler: the denoiser V and a network C that chooses a noise level for every element.

    Starts from a denoiser of train.py (--precond=edm or edm_gamma) or a published EDM checkpoint.
    """
    launch("trajectory", options)


if __name__ == "__main__":
    main()
