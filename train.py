"""Train a model. `train.py METHOD --help` lists a method's options; without a method, EDM is trained."""

from __future__ import annotations

from torch_utils import process

if __name__ == "__main__":
    process.tune()  # before torch starts its threads

import click

from torch_utils.cli import Group
from torch_utils.options import options_of
from training.launch import launch
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

The same command again continues an unfinished run."""


@click.group(cls=Group, default="edm", epilog=EXAMPLES)
def main() -> None:
    """Train a flow or diffusion model.

    `train.py --outdir=... --data=...` without a method is `train.py edm ...`.
    """


def _add(name: str) -> None:
    method = METHODS[name]

    @main.command(name, help=method.help, epilog=EXAMPLES)
    @options_of(method.options)
    def command(options) -> None:  # noqa: ANN001
        launch(name, options)


for _name in METHODS:
    _add(_name)

if __name__ == "__main__":
    main()
