"""Pictures and numbers about samplers and runs: every sub-command writes PNG files and the numbers as JSON.

Each is one file of `analyses/`, imported when it is called. See docs/analysis.md.
"""

from __future__ import annotations

from torch_utils import process

if __name__ == "__main__":
    process.begin()  # before torch starts its threads

import importlib

import click

from torch_utils.cli import LazyGroup

EXAMPLES = """\b
Examples:
  # Error of solvers at 3 to 10 network evaluations, and the distance of their images to the data
  python fid.py ref --data=datasets/digits.zip --features=pixels --dest=digits-pixels.npz
  python analyze.py compare --network=NET.pkl --outdir=out --ref=digits-pixels.npz --num-fid=1797
\b
  # How trajectories look
  python generate.py --network=NET.pkl --seeds=0-15 --solver=heun --num-steps=61 --save-traj=traj.npz
  python analyze.py trajectory traj.npz --outdir=out
  python analyze.py cost traj.npz --num-steps=7 --outdir=out
\b
  # How straight trajectories are, for one model or a sweep over beta
  python analyze.py curvature beta1.pkl beta10.pkl beta50.pkl --outdir=out
\b
  # How a series goes on
  python analyze.py forecast --network=NET.pkl --data=series:elnino --outdir=out
\b
  # Noise levels of schedules
  python analyze.py schedules polynomial logsnr time_uniform --num-steps=10 --outdir=out
\b
  # A training run, and where two of them part
  python analyze.py curve runs/00000-digits --outdir=out
  python analyze.py diff runs/00000-digits runs/00001-digits
\b
  # Bits per dimension; generated shapes
  python analyze.py likelihood --network=NET.pkl --data=datasets/digits.zip --num=256 --outdir=out
  python analyze.py losses --network=NET.pkl --data=datasets/digits.zip --outdir=out
  python analyze.py shapes out/shapes.npz --data=shapes:boxes:seed=1 --outdir=out
\b
  # One page of everything in a folder
  python analyze.py page out --title="Digits"
"""

# Name, which is that of the file in analyses/ -> what `--help` says of it.
ANALYSES = {
    "compare": "Error of solvers against a fine teacher, NFE by NFE",
    "trajectory": "Geometry of trajectories that `generate.py --save-traj` saved",
    "schedules": "Noise levels of schedules",
    "cost": "Cost of every jump along saved trajectories, and the cheapest schedule",
    "curve": "Loss and speed of a training run",
    "diff": "Where two training runs part, and which options differ",
    "curvature": "How straight the trajectories of networks are",
    "likelihood": "Bits per dimension of images of 8 bits under a model",
    "losses": "How well a model has learnt each time, for generate.py --diffusion-losses",
    "forecast": "Ensembles that continue a series, and their scores",
    "shapes": "Generated shapes against those of a data set",
    "page": "One page of every picture in a folder",
}


def _load(name: str) -> click.Command:
    return importlib.import_module(f"analyses.{name}").command


@click.group(cls=LazyGroup, lines=ANALYSES, load=_load, epilog=EXAMPLES, context_settings={"show_default": True})
def main() -> None:
    """Pictures (PNG) and numbers (JSON) about samplers and training runs."""


if __name__ == "__main__":
    main()
