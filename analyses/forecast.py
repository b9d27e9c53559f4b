"""`analyze.py forecast`: ensembles of a network that continues a series, and their scores (`training/forecast.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import click
import numpy as np
from tqdm import tqdm

from analyses.shared import AnalysisDevice, make_folder
from samplers.field import Facts
from samplers.planning.base import count_of
from samplers.planning.plan import SamplerOptions
from samplers.run import prepare
from torch_utils import distributed as dist
from torch_utils.cli import Command
from torch_utils.files import write_json
from torch_utils.options import OptionGroup, opt, options_of
from torch_utils.report.page import Table
from torch_utils.scores import trajectory_scores
from training.data.series import PARTS, SeriesDataset
from training.forecast import BASELINES, Ensemble, baseline, dataset_of, plan_of, roll_out, score
from training.molecules import autocorrelation, compare, lifted, occupancy, one_step, transition_rate
from training.pictures.series import draw_forecast, draw_leads, draw_ramachandran, draw_trajectories
from training.trained import open_network

UNITS = ("series", "scaled")
LONG = 30  # leads that are drawn as a trajectory


@dataclass(frozen=True, kw_only=True)
class Forecasts:
    group: ClassVar = OptionGroup("Forecasts", "What is continued, how far and how often.", rank=0)

    network: str = opt(
        None, "Network that was trained on a series (train.py idff or edm)", metavar="FILE|URL", required=True
    )
    data: str = opt(None, "Series: series:NAME or series:FILE, see docs/series.md", metavar="SERIES", required=True)
    outdir: str = opt(None, "Folder of forecast.json and the pictures", metavar="DIR", required=True)
    leads: int | None = opt(None, "Frames ahead [default: those of a sample in training]", metavar="INT", at_least=1)
    members: int = opt(50, "Members of each ensemble", metavar="INT", at_least=1)
    seed: int = opt(0, "Seed of all members", metavar="INT", at_least=0)


@dataclass(frozen=True, kw_only=True)
class Scores:
    group: ClassVar = OptionGroup("Scores", "On which frames of the series, and in which units.", rank=1)

    part: str = opt("test", "Part of the series", choices=[*PARTS, "all"])
    windows: int | None = opt(None, "Most windows, at equal distances [default: all]", metavar="INT", at_least=1)
    history: int | None = opt(
        None, "Frames of the part that lie before its first forecast, to compare networks that see fewer on the same "
        "frames [default: those that the network sees]", metavar="INT", at_least=1,
    )  # fmt: skip
    units: str | None = opt(
        None, "Scores in the units of the series, or scaled as the network sees them [default: scaled where that is "
        "by a climatology, so that anomalies are scored]", choices=list(UNITS),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ForecastOptions(AnalysisDevice, SamplerOptions, Scores, Forecasts):
    """All options of `forecast`."""

    batch: int = opt(1024, "Most members at once", metavar="INT", at_least=1)


@click.command("forecast", cls=Command)
@options_of(ForecastOptions)
def command(options: ForecastOptions) -> None:
    """Ensemble forecasts of a series and their CRPS, MSE and SSR by lead, beside simple forecasts."""
    with dist.process_group(options.device) as device:
        if dist.get_world_size() > 1:
            raise ValueError("forecasts are made by one process: start it without torchrun")
        net = open_network(options.network, partial(prepare, device=device))
        dataset = dataset_of(net, options.data, options.part)
        leads = options.leads or dataset.horizon
        starts = dataset.starts_before(leads, options.history or 0)
        if options.windows is not None and options.windows < len(starts):
            starts = starts[np.linspace(0, len(starts) - 1, options.windows).astype(int)]
        if Facts.of(net).begins == "noise" and Facts.of(net).label_dim == dataset.label_dim:
            net.conditions = dataset.conditions()  # for a search
        plan = plan_of(net, options)
        folder = make_folder(options.outdir)
        click.echo(plan)
        with tqdm(total=len(starts) * options.members, unit="member", unit_scale=True, disable=None) as bar:
            made = roll_out(
                net, plan, dataset, starts, leads=leads, members=options.members, seed=options.seed,
                batch=options.batch, device=device, progress=bar.update,
            )  # fmt: skip
        units = options.units or ("scaled" if dataset.scaling.kind == "climatology" else "series")
        report = {
            "network": options.network, "data": options.data, "part": options.part, "windows": len(starts),
            "members": options.members, "leads": leads, "units": units, "calls_per_sample": made.calls,
            "frames_per_sample": dataset.horizon,
            "plan": plan.record(), **_scores(dataset, starts, made, options, units),
        }  # fmt: skip
        write_json(folder / "forecast.json", report)
        _say_and_draw(report, dataset, starts, made, folder)


def _scores(
    dataset: SeriesDataset, starts: np.ndarray, made: Ensemble, options: ForecastOptions, units: str
) -> dict[str, Any]:
    leads = made.members.shape[2]
    observed = dataset.windows(starts, leads)[1].numpy()
    forecasts = {"model": made.members}
    for name in BASELINES:
        if not (name == "AR(1)" and dataset.scaling.is_angle):
            forecasts[name] = baseline(name, dataset, starts, leads, options.members, options.seed)
    if units == "series":
        observed = dataset.to_frames(observed, starts[:, 1])
        forecasts = {name: dataset.to_frames(m, starts[:, 1][:, None]) for name, m in forecasts.items()}
    extra: dict[str, Any] = {}
    if len(starts) == 1 and dataset.resolution == 1 and leads > 2:  # one trajectory, as what is learnt by heart
        period = 360.0 if dataset.scaling.is_angle else None
        whole = forecasts["model"][0].swapaxes(0, 1)[..., 0, 0]
        extra["trajectory"] = trajectory_scores(whole, observed[0, ..., 0, 0], period)
    if dataset.scaling.is_angle:
        extra |= {"angles": _of_angles(dataset, forecasts, observed)}
        forecasts = {name: lifted(m, observed) for name, m in forecasts.items()}
    return {"scores": {name: score(members, observed) for name, members in forecasts.items()}, **extra}


def _of_angles(dataset: SeriesDataset, forecasts: dict[str, np.ndarray], observed: np.ndarray) -> dict[str, Any]:
    """Errors of the first step; of pairs of angles also where trajectories dwell and how they move.

    `floor` compares the training part with the part itself: what the size of the record alone explains.
    """
    members = forecasts["model"][..., 0, 0]
    found: dict[str, Any] = {
        name: one_step(m[:, :, 0, :, 0, 0], observed[:, 0, :, 0, 0]) for name, m in forecasts.items()
    }
    found = {"one_step": found} if len(observed) > 2 else {}
    if members.shape[3] % 2 == 0 and members.shape[2] > 1:
        record, train = dataset.part_frames()[..., 0, 0], dataset.training_frames()[..., 0, 0]
        found["record"] = {
            "occupancy": occupancy(record), "transition_rate": transition_rate(record),
            "autocorrelation": autocorrelation(record),
        }  # fmt: skip
        found["roll_out"] = compare(record, members.reshape(-1, *members.shape[2:]))
        found["floor"] = compare(record, train)
    return found


def _say_and_draw(
    report: dict[str, Any], dataset: SeriesDataset, starts: np.ndarray, made: Ensemble, folder: Path
) -> None:
    scores = report["scores"]
    frames = count_of(report["frames_per_sample"], "frame")
    title = (
        f"{report['windows']} windows, {report['members']} members, {report['calls_per_sample']:g} network calls for "
        f"{frames} of each"
    )
    shown = min(report["leads"], 7)
    heads = ("forecast", "CRPS", "CRPS fair", "MSE", "SSR", *(f"CRPS +{k + 1}" for k in range(shown)))
    rows = [
        (name, *(_shown(s[k]) for k in ("crps", "crps_fair", "mse", "ssr")), *map(_shown, s["by_lead"]["crps"][:shown]))
        for name, s in scores.items()
    ]
    click.echo(Table(title, heads, rows).text())
    pictures = ["forecast.png", "leads.png"]
    draw_forecast(
        folder / "forecast.png", dataset, starts, made.members, f"{dataset.name}: what came, and the ensemble"
    )
    unit = dataset.unit if report["units"] == "series" else "standardised"
    draw_leads(folder / "leads.png", scores, f"{dataset.name}, {report['part']}", unit)
    if dataset.resolution == 1 and report["leads"] >= LONG:
        pictures.append("trajectories.png")
        came = dataset.to_frames(dataset.windows(starts[:1], report["leads"])[1].numpy(), starts[:1, 1])[0, ..., 0, 0]
        made_ = dataset.to_frames(made.members[:1], starts[:1, 1][:, None])[0, ..., 0, 0]
        title = f"{dataset.name}: what came (black) and members"
        draw_trajectories(folder / "trajectories.png", came, made_, title, dataset.scaling.is_angle)
    if "trajectory" in report:
        said = (f"{k} {report['trajectory'][f'{k}_mean']:.3f} ± {report['trajectory'][f'{k}_std']:.3f}"
                for k in ("CC", "RMSE", "MAE"))  # fmt: skip
        click.echo(f"Against the one trajectory: {', '.join(said)}")
    if "angles" in report:
        click.echo("\n".join(_about_angles(report["angles"])))
    if "roll_out" in report.get("angles", {}):
        pictures.append("ramachandran.png")
        members = dataset.to_frames(made.members, starts[:, 1][:, None])[..., 0, 0]
        members = members.reshape(-1, *members.shape[2:])
        draw_ramachandran(folder / "ramachandran.png", dataset.part_frames()[..., 0, 0], members, dataset.name)
    click.echo(f"Wrote forecast.json, {', '.join(pictures)} to {folder}")


def _about_angles(found: dict[str, Any]) -> Iterator[str]:
    rows = [
        (
            name,
            f"{s['mean_RMSE']:.2f}",
            *(f"{s[f'{k}_mean']:.2f} ± {s[f'{k}_std']:.2f}" for k in ("RMSE", "MAE", "CC", "raw_RMSE")),
        )
        for name, s in found.get("one_step", {}).items()
    ]
    if rows:
        heads = ("forecast", "RMSE of mean", "RMSE", "MAE", "CC", "RMSE not wrapped")
        yield Table("First step, degrees", heads, rows).text()
    if "roll_out" in found:
        rows = [
            (name, *(_shown(v) for v in s["occupancy"].values()), _shown(s.get("occupancy_distance")),
             _shown(s.get("ramachandran_kl")), _shown(s["transition_rate"]), _shown(s["autocorrelation"][0]))
            for name, s in (("record", found["record"]), ("model", found["roll_out"]), ("training", found["floor"]))
        ]  # fmt: skip
        wells = found["record"]["occupancy"]
        yield Table("Roll-out", ("", *wells, "distance", "KL", "rate", "cos phi +1"), rows).text()


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
