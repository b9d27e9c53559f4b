"""Images from a network: any snapshot or published checkpoint, any sampler, one image per seed.

Everything about the sampler is decided and printed before the first image (`samplers/planning/plan.py`); what a seed's
image looks like does not depend on the batch size or on the number of processes (`samplers/run.py`).
"""

from __future__ import annotations

from torch_utils import process

if __name__ == "__main__":
    process.begin()  # before torch starts its threads

import click

from torch_utils.cli import Command
from torch_utils.options import options_of
from training.generation_options import Options

EXAMPLES = """\b
Examples:
  # 64 images, EDM's sampler with 18 steps
  python generate.py --network=edm-cifar10-32x32-cond-vp --outdir=out

\b
  # A grid in 6 network evaluations per image, along a searched schedule
  python generate.py --network=edm-cifar10-32x32-uncond-vp --solver=ipndm --num-steps=7 --dp --grid=grid.png

\b
  # 50000 images on 4 GPUs, in folders of 1000
  torchrun --standalone --nproc_per_node=4 generate.py --network=net.pkl --outdir=out --seeds=0-49999 --subdirs

The same command again makes only what is missing (--overwrite to redo); another network, sampler or class is refused
where its images would be mixed with those that are there."""


@click.command(cls=Command, epilog=EXAMPLES)
@options_of(Options)
def main(options: Options) -> None:
    """Make images with a trained network.

    EDM's samplers (--steps) make N steps down to noise level 0. All other solvers (--num-steps) make N - 1 steps
    between N noise levels. Options that do not belong to the chosen sampler are errors.
    """
    with process.late_imports():
        from training.generation import run
    run(options)


if __name__ == "__main__":
    main()
