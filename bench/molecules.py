"""Angles of the Langevin peptide: errors of a step, and where trajectories dwell and how they move, over seeds.

    python -m bench.molecules --outdir=runs/molecules

A step model (the next frame from the last along a bridge with noise) on cosines and sines and on turns with the wrapped
loss, and EDM, trained on eight trajectories; errors of the first step at all frames of the two others, then 64 members
from 8 places of these, 200 frames far. Settings were chosen on a peptide of another seed. Runs that are in --outdir
already are not trained again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from bench.series import Case, trained, windows
from samplers.planning.plan import SamplerOptions
from torch_utils.cli import Command, IntList
from torch_utils.files import write_json
from torch_utils.report.page import Table
from training.data.series import SeriesDataset
from training.forecast import baseline, dataset_of, plan_of, roll_out
from training.molecules import compare, occupancy, one_step, transition_rate

_OPTIONS = {
    "preset": "md", "heads": 1, "cbase": 256, "batch": 128, "duration": 1.536, "lr": 1e-3, "lr_rampup": 0.01,
    "ema": 0.1, "sigma": 0.3,
}  # fmt: skip
CASES = {
    "circle": Case("series:peptide", _OPTIONS),
    "turns": Case("series:peptide:scale=turns", {**_OPTIONS, "sigma": 0.12}),
    "edm": Case(
        "series:peptide", method="edm", sampler={"solver": "ipndm", "num_steps": 7},
        options={k: v for k, v in _OPTIONS.items() if k not in ("preset", "heads", "sigma")} | {"ema_rampup": 0.0},
    ),
}  # fmt: skip
FAR, PLACES, MEMBERS = 200, 8, 8
KEYS = ("mean_RMSE", "RMSE_mean", "MAE_mean", "CC_mean")
MOVES = ("occupancy_distance", "ramachandran_kl", "transition_rate")


def measure(case: Case, net: torch.nn.Module, text: str, seed: int) -> dict[str, Any]:
    """Figures of one network on the test part of a peptide."""
    dataset = dataset_of(net, text, "test")
    plan = plan_of(net, SamplerOptions(**case.sampler))

    def made(starts: np.ndarray, leads: int, members: int) -> tuple[np.ndarray, float]:
        found = roll_out(net, plan, dataset, starts, leads=leads, members=members, seed=seed)
        return dataset.to_frames(found.members, starts[:, 1][:, None])[..., 0, 0], found.calls

    near, calls = made(dataset.starts, 1, 8)
    far, _ = made(windows(dataset, FAR, PLACES), FAR, MEMBERS)
    step = one_step(near[:, :, 0], came(dataset))
    return step | compare(dataset.part_frames()[..., 0, 0], far.reshape(-1, *far.shape[2:])) | {"calls": calls}


def came(dataset: SeriesDataset) -> np.ndarray:
    """Frames that followed each window, `[n, D]`."""
    return dataset.to_frames(dataset.windows(dataset.starts, 1)[1].numpy(), dataset.starts[:, 1])[:, 0, :, 0, 0]


def simple(text: str) -> dict[str, dict[str, Any]]:
    """The last frame, and the training part, in the place of a model."""
    dataset = SeriesDataset(text, "test")
    kept = dataset.to_frames(baseline("persistence", dataset, dataset.starts, 1, 1), dataset.starts[:, 1][:, None])
    record, train = dataset.part_frames()[..., 0, 0], dataset.training_frames()[..., 0, 0]
    return {
        "last frame": one_step(kept[:, :, 0, :, 0, 0], came(dataset)),
        "training part": compare(record, train),
        "test part": {"occupancy": occupancy(record), "transition_rate": transition_rate(record)},
    }


def cells(name: str, runs: list[dict[str, Any]]) -> list[str]:
    """Means and deviations over runs, and the mean occupancies."""

    def said(key: str) -> str:
        values = [r[key] for r in runs if key in r]
        if not values:
            return "-"
        return f"{np.mean(values):.3f}" + (f" ± {np.std(values):.3f}" if len(values) > 1 else "")

    wells = [list(r["occupancy"].values()) for r in runs if "occupancy" in r]
    shares = " ".join(f"{v:.3f}" for v in np.mean(wells, 0)) if wells else "-"
    return [name, *map(said, KEYS), shares, *map(said, MOVES), f"{runs[0]['calls']:g}" if "calls" in runs[0] else "-"]


@click.command(cls=Command)
@click.option("--outdir", required=True, metavar="DIR", help="Folder of the runs and of molecules.json")
@click.option("--cases", default=",".join(CASES), show_default=True, metavar="LIST", help="Which are trained")
@click.option("--seeds", type=IntList(), default="0-2", show_default=True, metavar="LIST", help="One run each")
@click.option("--data", default="series:peptide", show_default=True, metavar="SERIES", help="Whose test part is used")
def main(outdir: str, cases: str, seeds: list[int], data: str) -> None:
    """Train, roll out, and print errors of a step and figures of the roll-out."""
    torch.set_num_threads(1)
    report: dict[str, Any] = {"data": data, "seeds": seeds, "simple": simple(data)}
    rows = [cells(name, [found]) for name, found in report["simple"].items()]
    for name in (n.strip() for n in cases.split(",")):
        if name not in CASES:
            raise ValueError(f"--cases={name} is unknown: choose from {', '.join(CASES)}")
        case = CASES[name]
        report[name] = [
            measure(case, trained(case, Path(outdir) / f"{name}-{seed}", seed), data, seed) for seed in seeds
        ]
        rows.append(cells(name, report[name]))
        click.echo("  ".join(rows[-1]))
        write_json(Path(outdir) / "molecules.json", report)
    heads = (
        "",
        "RMSE of mean",
        "RMSE",
        "MAE",
        "CC",
        "alpha R, beta, alpha L, elsewhere",
        "distance",
        "KL",
        "rate",
        "calls",
    )
    click.echo(Table(f"{data}, seeds {seeds}", heads, rows).text())


if __name__ == "__main__":
    main()
