"""Six ways to split times on furniture made of boxes: how valid shapes are, and how near those of the data.

    python -m bench.shapes                                  # everything; docs/shapes.md has the outcome
    python -m bench.shapes --splits=none,all --seeds=0      # a part of it
    python -m bench.shapes --duration=0.6 --solver=renoise --steps=100     # longer, with fresh noise at each step

Every run makes the same steps of `train.py combostoc --data=shapes:boxes` (Xie et al. 2024, arXiv 2405.13729, whose
order of the settings on PartNet chairs this looks for). Shapes are sampled by equal steps with classes in turn, as the
paper does, and compared with shapes that no training saw. Finished runs of --outdir are used again.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import click
import torch

import networks
from bench import commands
from networks.features.pointnet import load_point_features
from torch_utils.cli import Choice, Command, IntList
from torch_utils.files import write_json
from torch_utils.images import save_image
from torch_utils.report.boxes import draw_shapes
from torch_utils.report.page import Table
from training.data.shapes import Shapes, read_shapes
from training.pictures.preview import sample_shapes
from training.shape_metrics import compare_shapes

SPLITS = ("none", "part", "att", "att_part", "vec", "all")
TRAIN = (
    "combostoc --data=shapes:boxes --cond=1 --split={split} --seed={seed} --width=64 --depth=3 --num-heads=4 "
    "--batch=32 --lr=2e-3 --ema={ema:g} --duration={duration} --tick=10 --snap=100 --dump=0 --device=cpu"
)
UNSEEN = "shapes:boxes:size={num}:seed=1000"
COLUMNS = ("valid", "valid_wide", "count", "contact", "place", "fidelity", "fpd", "mmd", "coverage")


def measure(snapshot: Path, num: int, steps: int, solver: str) -> tuple[dict[str, float], torch.Tensor]:
    """Figures of the shapes that a network makes, and the shapes."""
    net = networks.load_network(snapshot)
    parts = sample_shapes(net, num, steps, solver=solver)
    labels = torch.arange(num) % net.label_dim
    reference = read_shapes(UNSEEN.format(num=num))
    made = Shapes(parts, reference.groups, labels)
    found = compare_shapes(made, reference, ruled=True, points=128, features=load_point_features("random"))
    return {**found, **found.pop("rules")}, parts


@click.command(cls=Command)
@click.option("--splits", default=",".join(SPLITS), help="Settings", metavar="LIST", show_default=True)
@click.option("--seeds", type=IntList(), default="0-2", help="Seeds of training", metavar="LIST", show_default=True)
@click.option("--duration", default=0.03, help="Length of a run", metavar="MIMG", show_default=True)
@click.option("--num", default=250, help="Shapes that are compared", metavar="INT", show_default=True)
@click.option("--steps", default=20, help="Equal steps", metavar="INT", show_default=True)
@click.option(
    "--solver", default="euler", type=Choice(["euler", "renoise"]), help="Solver of the steps", show_default=True
)
@click.option("--outdir", default="runs/shapes", help="Where the runs go", metavar="DIR", show_default=True)
def main(splits: str, seeds: Sequence[int], duration: float, num: int, steps: int, solver: str, outdir: str) -> None:
    """Figures of every setting, mean and deviation over seeds, and a picture of the first seed."""
    names, rows, runs = splits.split(","), [], []
    for seed in seeds:
        for split in names:
            options = TRAIN.format(split=split, seed=seed, duration=duration, ema=duration / 15)
            snapshot = commands.trained(Path(outdir, f"{split}-{seed}"), "train.py", options)
            figures, parts = measure(snapshot, num, steps, solver)
            runs.append({"split": split, "seed": seed, **figures})
            click.echo(json.dumps(runs[-1]))
            if seed == seeds[0]:
                rows.append(parts[:10])
        write_json(Path(outdir, "shapes.json"), {"runs": runs})
        save_image(draw_shapes(torch.cat(rows), columns=10, titles=names), Path(outdir, "shapes.png"))
    found = {split: [run for run in runs if run["split"] == split] for split in names}
    lines = [[split, *(_mean([run[name] for run in found[split]]) for name in COLUMNS)] for split in names]
    click.echo(Table("Splits of time", ("split", *COLUMNS), lines).text())


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3g}{spread}"


if __name__ == "__main__":
    main()
