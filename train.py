"""Train a model. `train.py METHOD --help` lists a method's options; without a method, EDM is trained."""

from __future__ import annotations

from torch_utils import process

if __name__ == "__main__":
    process.begin()  # before torch starts its threads

import click

from torch_utils.cli import Command, LazyGroup
from torch_utils.options import options_of
from training.methods.table import METHODS

EXAMPLES = """\b
Examples:
  # A small conditional model of the 8x8 digits, on a CPU, in two minutes
  python dataset_tool.py --source=digits --dest=datasets/digits.zip
  python train.py --outdir=runs --data=datasets/digits.zip --cond=1 --cbase=32 --cres=1,2 \\
      --batch=128 --duration=0.08 --lr=2e-3 --lr-rampup=0.01 --ema=0.005 --dropout=0 --augment=0 --tick=10
\b
  # The published CIFAR-10 model on 8 GPUs
  torchrun --standalone --nproc_per_node=8 train.py --outdir=runs \\
      --data=datasets/cifar10-32x32.zip --cond=1 --arch=ddpmpp
\b
  # What would that do, and what would it cost?
  python train.py --outdir=runs --data=datasets/cifar10-32x32.zip --cond=1 --dry-run
\b
  # Straight flows: digits in minutes on a CPU, a published recipe
  python train.py curvature --outdir=runs --data=datasets/digits.zip --preset=digits
  torchrun --standalone --nproc_per_node=2 train.py curvature --outdir=runs --data=datasets/cifar10-32x32.zip \\
      --preset=cifar10
\b
  # Data and score on a bridge: points in the plane, a series
  python train.py idff --outdir=runs --data=toy:8gaussians
  python train.py idff --outdir=runs --data=series:elnino
\b
  # Diffusion transformers: shapes on a CPU, latents of images
  python train.py combostoc --outdir=runs --data=shapes:boxes --cond=1 --width=64 --depth=3 --num-heads=4 \\
      --batch=32 --lr=2e-3 --ema=0.002 --duration=0.04
  torchrun --standalone --nproc_per_node=4 train.py combostoc --outdir=runs --data=datasets/imagenet-256-latents.zip \\
      --cond=1 --model=ComboStoc-XL/2
\b
  # Diffusion transformers of latents
  torchrun --standalone --nproc_per_node=4 train.py sit --outdir=runs --data=datasets/imagenet-256-latents.zip \\
      --cond=1 --model=SiT-XL/2
\b
  # A flow in one step, from images that it made (docs/distillation.md)
  python train.py distill --outdir=runs --data=pairs --network=FLOW.pkl
"""


def _load(name: str) -> click.Command:
    """The command of a method, imported now, with all that trains it."""
    from training.launch import launch

    method = METHODS[name]

    @click.command(name, cls=Command, help=f"{method.help}\n\nThe same command again continues an unfinished run.")
    @options_of(method.options)
    def command(options) -> None:  # noqa: ANN001
        launch(name, options)

    return command


@click.group(
    cls=LazyGroup, default="edm", lines={name: method.help for name, method in METHODS.items()}, load=_load,
    epilog=EXAMPLES,
)  # fmt: skip
def main() -> None:
    """Train a flow or diffusion model.

    `train.py --outdir=... --data=...` without a method is `train.py edm ...`.
    """


if __name__ == "__main__":
    main()
