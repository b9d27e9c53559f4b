"""Forecasts of series against known and simple ones: trained over seeds, scored on years that nobody tuned on.

    python -m bench.series --outdir=runs/series
    python -m bench.series --outdir=runs/series --cases=elnino-step,elnino-direct --part=val

Two forms: `step` reaches the next frame from the last one along a bridge with noise, again and again; `direct` makes
all frames to come from noise. Series: sea-surface temperature by month (elnino), a field on a torus whose best
forecast is known (advected), and two chaotic systems, which have no gates. Settings were chosen on the validation part,
those of `blurred` by leaving out blocks of the training years; the other cases that see twelve months show what was not
chosen. The command exits with 1 where the test part misses a gate. Runs that are in --outdir already are not trained
again.
"""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

import networks
from bench.commands import finished
from samplers.planning.plan import SamplerOptions
from samplers.run import prepare
from torch_utils.cli import Command, IntList
from torch_utils.files import write_json
from torch_utils.provenance import write_record
from torch_utils.report.page import Table
from training.data.series import PARTS, SeriesDataset
from training.data.series_sources import AdvectedField
from training.forecast import BASELINES, baseline, dataset_of, plan_of, roll_out, score
from training.launch import launch
from training.methods.table import METHODS

MILESTONES = (1, 2, 5, 10, 20, 50)  # leads that are printed of many
BEST = 0.4891  # CRPS of the best forecast of `advected`, mean of leads 1 to 7


@dataclass(frozen=True)
class Case:
    """One row: what is trained, how it is sampled, on how many windows.

    Attributes:
        data, method, options: as on the command line of train.py.
        sampler: options of the forecast.
        leads, windows: frames ahead, most windows.
        gated: held to the gates of its series.
    """

    data: str
    options: dict[str, Any]
    method: str = "idff"
    sampler: dict[str, Any] = field(default_factory=dict)
    leads: int = 6
    windows: int = 10_000
    gated: bool = True

    @property
    def series(self) -> str:
        return self.data.split(":")[1]


_VECTORS = {
    "preset": "sst", "heads": 1, "cbase": 64, "batch": 64, "duration": 0.256, "lr": 2e-3, "lr_rampup": 0.005,
    "ema": 0.02,
}  # fmt: skip
_MAPS = {
    "preset": "sst", "heads": 1, "cbase": 32, "cres": (1, 2), "num_blocks": 1, "dropout": 0.0, "batch": 32,
    "duration": 0.0128, "lr": 1.5e-3, "lr_rampup": 0.0016, "ema": 0.00128,
}  # fmt: skip
_FEW = {"solver": "ipndm", "num_steps": 7}
_DIRECT = {"coupling": "independent"}
_CHAOS = {"leads": 50, "windows": 20, "gated": False}
_LONG = {"preset": "lorenz", "batch": 128, "duration": 1.024, "ema": 0.05}

CASES = {
    "elnino-step": Case("series:elnino:window=1:horizon=1:label=none", {**_VECTORS, "sigma": 0.3}),
    "elnino-direct": Case("series:elnino:window=1:label=none", {**_VECTORS, **_DIRECT}, sampler=_FEW),
    "elnino-edm": Case(
        "series:elnino:window=1:label=none", method="edm", sampler=_FEW,
        options={k: v for k, v in _VECTORS.items() if k not in ("preset", "heads")} | {"ema_rampup": 0.0},
    ),
    "elnino-direct-blurred": Case(
        "series:elnino:label=none", sampler=_FEW,
        options={
            **_VECTORS, **_DIRECT, "context_noise": 2.0, "batch": 256, "duration": 1.024, "lr": 1e-3, "lr_rampup": 0.02,
            "ema": 0.2,
        },
    ),
    "elnino-step-12": Case("series:elnino:horizon=1", {**_VECTORS, "sigma": 0.3}, gated=False),
    "elnino-direct-12": Case("series:elnino", {**_VECTORS, **_DIRECT}, sampler=_FEW, gated=False),
    "advected-step": Case(
        "series:advected", {**_MAPS, "duration": 0.0256, "sigma": 0.4, "residual": True}, leads=7, windows=20,
        sampler={"N": 10, "time_power": 3.0},
    ),
    "advected-direct": Case("series:advected:horizon=7", {**_MAPS, **_DIRECT}, sampler=_FEW, leads=7, windows=20),
    "lorenz": Case("series:lorenz", {"preset": "lorenz", "duration": 0.04}, **_CHAOS),
    "lorenz-long": Case("series:lorenz", _LONG, **_CHAOS),
    "rossler": Case("series:rossler", _LONG, **_CHAOS),
}  # fmt: skip


def trained(case: Case, folder: Path, seed: int) -> torch.nn.Module:
    """The network of a case, from its run in `folder`, which is made where it is missing."""
    record = {"method": case.method, "data": case.data, "seed": seed, **case.options}
    if not finished(folder, record):
        options = METHODS[case.method].options(
            outdir=str(folder), nosubdir=True, data=case.data, seed=seed, device="cpu", tick=1e6, **case.options
        )
        with contextlib.redirect_stdout(io.StringIO()):
            launch(case.method, options)
        write_record(folder, record)
    return prepare(networks.load_network(max(folder.glob("network-snapshot-*.pkl"))), "cpu")


def windows(dataset: SeriesDataset, leads: int, most: int, known: int = 0) -> np.ndarray:
    """Where forecasts begin, at most `most`, at equal distances; `known` frames of the part before each."""
    starts = dataset.starts_before(leads, known)
    return starts[np.linspace(0, len(starts) - 1, min(most, len(starts))).astype(int)]


def in_units(dataset: SeriesDataset, starts: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Anomalies of elnino stay as they are, maps are scored in their own units."""
    if dataset.scaling.kind == "climatology":
        return members
    first = starts[:, 1]
    return dataset.to_frames(members, first[:, None] if members.ndim == 6 else first)


def forecast(case: Case, net: torch.nn.Module, part: str, members: int, seed: int) -> dict[str, Any]:
    """Scores of a network's ensembles."""
    dataset = dataset_of(net, f"series:{case.series}", part)
    starts = windows(dataset, case.leads, case.windows, dataset.recording.window)
    plan = plan_of(net, SamplerOptions(**case.sampler))
    made = roll_out(net, plan, dataset, starts, leads=case.leads, members=members, seed=seed)
    observed = in_units(dataset, starts, dataset.windows(starts, case.leads)[1].numpy())
    return {**score(in_units(dataset, starts, made.members), observed), "calls": made.calls}


def simple(case: Case, part: str, members: int, seed: int) -> dict[str, dict[str, Any]]:
    """Scores of the simple forecasts, and of the best one where it is known."""
    dataset = SeriesDataset(f"series:{case.series}", part)
    starts = windows(dataset, case.leads, case.windows)
    observed = in_units(dataset, starts, dataset.windows(starts, case.leads)[1].numpy())
    made = {
        name: in_units(dataset, starts, baseline(name, dataset, starts, case.leads, members, seed))
        for name in BASELINES
    }
    if case.series == "advected":
        last = dataset.recording.values[starts[:, 0], starts[:, 1] - 1, 0]
        mean, variance = AdvectedField().best(last, case.leads)
        noise = np.random.default_rng(seed).standard_normal((len(starts), members, *mean.shape[1:]))
        made["best"] = (mean[:, None] + np.sqrt(variance)[:, None, None] * noise)[..., None, :, :]
    return {name: score(ensemble, observed) for name, ensemble in made.items()}


def missed(series: str, found: dict[str, float]) -> list[str]:
    """Gates that a mean over seeds misses."""
    if series == "elnino":
        gates = {
            "CRPS": (found["crps"], 0, 0.55),
            "CRPS +1": (found["first"], 0, 0.33),
            "SSR": (found["ssr"], 0.7, 1.3),
        }
    else:
        gates = {"CRPS": (found["crps"], 0, 1.15 * BEST), "SSR": (found["ssr"], 0.8, 1.2)}
    return [
        f"{name} {value:.3f}, not {low:g} to {high:.3f}" for name, (value, low, high) in gates.items()
        if not low <= value <= high
    ]  # fmt: skip


def row(name: str, runs: list[dict[str, Any]]) -> tuple[list[str], dict[str, float]]:
    """Cells and means over runs."""
    found = {
        key: [r[key] for r in runs] for key in ("crps", "crps_fair", "mse", "ssr")
    } | {"first": [r["by_lead"]["crps"][0] for r in runs]}  # fmt: skip
    mean = {k: float(np.mean(v)) for k, v in found.items() if None not in v}
    cells = [
        "-" if k not in mean else f"{mean[k]:.3f}" + (f" ± {np.std(v):.3f}" if len(v) > 1 else "")
        for k, v in found.items()
    ]
    by_lead = np.mean([r["by_lead"]["crps"] for r in runs], 0)
    shown = range(len(by_lead)) if len(by_lead) <= 7 else [n - 1 for n in MILESTONES if n <= len(by_lead)]
    leads = " ".join(f"{by_lead[k]:.3f}" for k in shown)
    return [name, *cells[:4], leads, f"{runs[0]['calls']:g}" if "calls" in runs[0] else "-"], mean


@click.command(cls=Command)
@click.option("--outdir", required=True, metavar="DIR", help="Folder of the runs and of series.json")
@click.option("--cases", default=",".join(CASES), show_default=True, metavar="LIST", help="Which are trained")
@click.option("--seeds", type=IntList(), default="0-2", show_default=True, metavar="LIST", help="One run each")
@click.option("--part", type=click.Choice(PARTS), default="test", show_default=True, help="Part that is forecast")
@click.option("--members", type=click.IntRange(2), default=50, show_default=True, help="Members of an ensemble")
def main(outdir: str, cases: str, seeds: list[int], part: str, members: int) -> None:
    """Train, forecast, and compare with the gates."""
    torch.set_num_threads(1)
    names = [name.strip() for name in cases.split(",")]
    if unknown := [name for name in names if name not in CASES]:
        raise ValueError(f"--cases={unknown[0]} is unknown: choose from {', '.join(CASES)}")
    report: dict[str, Any] = {"part": part, "members": members, "seeds": seeds}
    wrong: list[str] = []
    for series in dict.fromkeys(CASES[name].series for name in names):
        own = [name for name in names if CASES[name].series == series]
        rows = []
        for name, scores in simple(CASES[own[0]], part, members, 0).items():
            rows.append(row(name, [scores])[0])
            report[f"{series} {name}"] = [scores]
        for name in own:
            nets = [trained(CASES[name], Path(outdir) / f"{name}-{seed}", seed) for seed in seeds]
            runs = [forecast(CASES[name], net, part, members, seed) for net, seed in zip(nets, seeds, strict=True)]
            cells, mean = row(name, runs)
            rows.append(cells)
            report[name] = runs
            wrong += (
                [f"{name}: {text}" for text in missed(series, mean)] if part == "test" and CASES[name].gated else []
            )
            click.echo("  ".join(cells))
        head = ("", "CRPS", "fair", "MSE", "SSR", "CRPS by lead", "calls")
        click.echo(Table(f"{series}, {part}, {members} members, seeds {seeds}", head, rows).text())
        write_json(Path(outdir) / f"series-{part}.json", report)
    if part == "test":
        click.echo("All gates reached." if not wrong else "Missed:\n  " + "\n  ".join(wrong))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
