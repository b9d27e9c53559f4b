"""Figures of image quality: `fid.py calc` measures, `fid.py ref` describes a reference.

Images come from a folder, a zip, an npz, or straight from a network, batch by batch, and are seen once for all metrics
and features: FID (Heusel et al. 2017, arXiv 1706.08500), KID, precision and recall, Inception score. See
docs/evaluation.md.
"""

from __future__ import annotations

from torch_utils import process

if __name__ == "__main__":
    process.begin()  # before torch starts its threads

from typing import Any

import click

from torch_utils.cli import Command, LazyGroup
from torch_utils.options import options_of

EXAMPLES = """\b
Examples:
  # FID of generated images
  python fid.py calc --images=samples --ref=https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs/cifar10-32x32.npz
\b
  # FID of a network, no files in between, on 8 GPUs
  torchrun --standalone --nproc_per_node=8 fid.py calc --network=NET.pkl --steps=18 --ref=cifar10-32x32.npz
\b
  # Pixel distance of a small model to its data: no weights needed
  python fid.py calc --network=NET.pkl --num=10000 --ref=datasets/digits.zip --features=pixels
\b
  # All figures from one pass, in two kinds of features
  python fid.py calc --images=out --ref=datasets/cifar10-32x32.zip --metrics=fid,fd,kid,pr --features=inception,dinov2
\b
  # Reference statistics of a data set; with the features themselves, for KID, precision and recall
  python fid.py ref --data=datasets/cifar10-32x32.zip --dest=refs/cifar10-32x32.npz
  python fid.py ref --data=datasets/cifar10-32x32.zip --dest=refs/cifar10-kept.npz --keep-features"""

COMMANDS = {
    "calc": """Measure images, or a network's samples, against a reference.

    One figure alone is printed as a bare number.
    """,
    "ref": """Describe images, or a network's samples, for later use as a reference.

    Writes mean and covariance of their features, and with --keep-features the features themselves.
    """,
}


def _load(name: str) -> click.Command:
    from training.image_figures_options import OPTIONS

    def run(options: Any) -> None:
        with process.late_imports():
            from training import image_figures
        getattr(image_figures, name)(options)

    return click.command(name, cls=Command, help=COMMANDS[name], epilog=EXAMPLES)(options_of(OPTIONS[name])(run))


@click.group(cls=LazyGroup, lines=COMMANDS, load=_load, epilog=EXAMPLES, context_settings={"show_default": True})
def main() -> None:
    """Figures of image quality against a reference: Fréchet distance (FID), KID, precision, recall, Inception score."""


if __name__ == "__main__":
    main()
