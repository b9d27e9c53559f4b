"""Curvature and Fréchet distance by the weight of the prior: trains a model for every beta, measures all, draws both.

    python dataset_tool.py --source=digits --dest=datasets/digits.zip
    python -m bench.curvature_sweep --data=datasets/digits.zip --outdir=runs/sweep --beta=independent,20,10,5

The claim to see (Lee, Kim, Ye 2023, arXiv 2301.12003): the smaller beta, the lower the curvature of the sampling
trajectories, and the closer few Euler steps come to the data; the price is noise that is further from the prior.

A model is trained in OUTDIR/beta20 and so on, a few minutes each for the digits on a CPU core. The same command again
continues a run that was interrupted and skips those that are finished. OUTDIR/sweep.json has all numbers, sweep.png the
picture. Distances are those of `fid.py calc --N=STEPS --prior=... --features=pixels`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

import networks
from bench.curvature_2d import label, parse_betas
from networks.features.table import FEATURES, load_features
from networks.published.flow_configs import PRESETS
from samplers.analysis.compare import HELD_OUT
from samplers.analysis.straightness import measure_curvature
from samplers.planning.plan import SamplerOptions, build_plan
from samplers.run import generate, prepare
from torch_utils import distributed as dist
from torch_utils.cli import Command, IntList
from torch_utils.files import numbered, write_json
from torch_utils.frechet import Extractor, Moments, feature_stats
from torch_utils.images import to_uint8
from torch_utils.options import may_change
from torch_utils.report.page import Table
from torch_utils.report.plot import colour, figure, marker
from training.data.image_dataset import ImageDataset, decoded
from training.launch import launch
from training.methods.curvature_options import CurvatureOptions
from training.runs import run_dir as runs

BATCH = 256
CURVATURE = {"evaluations": 100, "num": 256, "seed": HELD_OUT}


def run_options(beta: float | None, outdir: Path, **more: Any) -> CurvatureOptions:
    """Options of `train.py curvature` for this beta, in a run directory of its own."""
    coupling = {"independent": True} if beta is None else {"weight_prior": beta}
    name = label(beta).replace(" ", "")
    return CurvatureOptions(outdir=str(outdir / name), nosubdir=True, tick=10, checkpoint_mins=1, **coupling, **more)


def finished(options: CurvatureOptions) -> bool:
    """Whether this very run is complete.

    Raises:
        ValueError: a run with other options is complete in its place.
    """
    stored = runs.read_options(Path(options.outdir)) or {}
    if not stored.get(runs.FINISHED):
        return False
    wanted = json.loads(json.dumps(dataclasses.asdict(options)))
    known = {k: v for k, v in wanted.items() if k in stored}  # it may be older than an option
    if not runs.same_run(stored, known, may_change(CurvatureOptions)):
        raise ValueError(f"{options.outdir} holds a finished run with other options: give another --outdir")
    return True


def frechet(
    net: Any, steps: int, prior: str, reference: Moments, extractor: Extractor, num: int, device: torch.device
) -> float:
    """Fréchet distance of the images of seeds 0 to num - 1, made by Euler steps in native time."""
    plan = build_plan(net, SamplerOptions(N=steps, prior=prior))
    samples = generate(net, range(num), plan, batch=BATCH, device=device, prior=plan.prior)
    stats = feature_stats((to_uint8(s.images) for s in samples), extractor)
    return stats.moments().distance(reference)


def measure(
    net: Any, steps: Sequence[int], reference: Moments, extractor: Extractor, num: int, device: torch.device, name: str
) -> list[dict[str, Any]]:
    """Measure curvature, and distances by number of steps, for each start distribution of the network."""
    found = []
    with tqdm(total=len(net.priors) * (len(steps) + 1), desc=name, disable=dist.get_rank() > 0 or None) as bar:
        for prior in net.priors:
            curvature = measure_curvature(net, **CURVATURE, prior=prior, batch=BATCH, device=device)
            bar.update()
            distances = {}
            for n in steps:
                distances[n] = frechet(net, n, prior, reference, extractor, num, device)
                bar.update()
            found.append({"label": name, "prior": prior, "curvature": curvature, "frechet": distances})
    return found


def table(results: Sequence[Mapping[str, Any]], steps: Sequence[int], num: int) -> Table:
    """A row for each model and start distribution."""
    rows = [
        (
            r["label"], r["prior"], f"{r['curvature']['curvature']:.4g} ± {r['curvature']['stderr']:.2g}",
            *(f"{r['frechet'][n]:.3g}" for n in steps),
        )
        for r in results
    ]  # fmt: skip
    lowest = [min(range(len(rows)), key=lambda i, n=n: results[i]["frechet"][n]) for n in steps]
    heads = [f"FD, {n} step{'' if n == 1 else 's'}" for n in steps]
    return Table(
        "Curvature and Fréchet distance by the weight of the prior",
        ("model", "start", "curvature", *heads),
        rows,
        frozenset((row, column) for column, row in enumerate(lowest, start=3)),
        f"Curvature: mean over dimensions, {CURVATURE['evaluations']} Euler steps. FD: {num} images by Euler steps.",
    )


def draw(results: Sequence[Mapping[str, Any]], steps: Sequence[int], path: Path) -> None:
    """Draw curvature, and distances relative to the first model's; filled: measured start, open: prior."""
    names = list(dict.fromkeys(r["label"] for r in results))
    with figure(path, "Straighter by a learned coupling", (11, 4.4)) as fig:
        left, right = fig.subplots(1, 2)
        for prior, face, line in (("matched", None, "-"), ("standard", "white", "--")):
            own = [r for r in results if r["prior"] == prior]
            where = [names.index(r["label"]) for r in own]
            style = {"markerfacecolor": face, "linestyle": line}
            left.errorbar(
                where, [r["curvature"]["curvature"] for r in own], yerr=[2 * r["curvature"]["stderr"] for r in own],
                label=f"{prior} start", color=colour(0), marker=marker(0), capsize=3, **style,
            )  # fmt: skip
            for i, n in enumerate(steps):
                ratios = [r["frechet"][n] / results[0]["frechet"][n] for r in own]
                text = f"{n} Euler step{'' if n == 1 else 's'} ({results[0]['frechet'][n]:.3g})"
                named = text if prior == "standard" else None  # every model has this start
                right.plot(where, ratios, color=colour(i), marker=marker(i), label=named, **style)
        left.set(title="Curvature per dimension", ylim=(0, None))
        right.set(title=f"Fréchet distance / that of {names[0]} (in brackets)", ylim=(0, None))
        for ax in (left, right):
            ax.set_xticks(range(len(names)), names)
            ax.legend(loc="lower left")


@click.command(cls=Command, context_settings={"show_default": True, "max_content_width": 120})
@click.option("--data", required=True, metavar="ZIP|DIR", help="Data set made by dataset_tool.py")
@click.option("--outdir", required=True, metavar="DIR", help="Where the runs, the numbers and the picture go")
@click.option("--beta", default="independent,20,10,5", metavar="LIST", help="Weights of the prior, and independent")
@click.option("--preset", default="digits", type=click.Choice(list(PRESETS)), help="Networks and hyper-parameters")
@click.option("--iterations", type=click.IntRange(1), help="Training steps of each  [default: the preset's]")
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of weights, data order and noise")
@click.option("--steps", type=IntList(), default="1,2,4,8", metavar="LIST", help="Euler steps to measure")
@click.option("--num", type=click.IntRange(2), help="Images for each distance  [default: as many as in the data]")
@click.option("--features", type=click.Choice(list(FEATURES)), default="pixels", help="Features of the distance")
@click.option("--device", default="auto", metavar="DEVICE", help="cpu, cuda or auto (a GPU when there is one)")
def main(
    data: str, outdir: str, beta: str, steps: list[int], num: int | None, features: str, device: str, **training: Any
) -> None:
    """Train a model for each beta, skipping finished ones, and show curvature and Fréchet distance side by side."""
    betas = list(dict.fromkeys(parse_betas(beta)))
    todo = {b: run_options(b, Path(outdir), data=data, device=device, **training) for b in betas}
    for options in todo.values():
        if not finished(options):
            launch("curvature", options)
            if not finished(options):
                return  # asked to stop: the run has said so
    with dist.process_group(device) as dev:
        dataset = ImageDataset(data)
        extractor = load_features(features, device=dev)
        reference = feature_stats(decoded(dataset, range(len(dataset)), BATCH), extractor).moments()
        num = num or len(dataset)
        results = []
        for b, options in todo.items():
            snapshot = numbered(Path(options.outdir), "network-snapshot-*.pkl")[-1]
            net = prepare(networks.load_network(snapshot), dev)
            measured = measure(net, steps, reference, extractor, num, dev, label(b))
            results += [{"beta": b, "network": str(snapshot), **m} for m in measured]
        click.echo(table(results, steps, num).text())
        write_json(Path(outdir) / "sweep.json", {"num": num, "features": features, "results": results})
        draw(results, steps, Path(outdir) / "sweep.png")
        click.echo(f"Wrote {Path(outdir, 'sweep.json')} and sweep.png")


if __name__ == "__main__":
    main()
