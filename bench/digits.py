"""Fréchet distances on the 8x8 digits over seeds of training: what `transformers_digits` and `idff_digits` share.

Networks are trained by the project's own command line, which is shown. Distances are those of `fid.py calc
--features=pixels`, of samples from seeds 0 to num - 1, kept beside the networks. What is finished is skipped, so that a
measurement that was interrupted goes on by the same command.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch

import networks
from bench import commands
from networks.features.table import load_features
from samplers.field import as_field
from samplers.planning.plan import SamplerOptions, build_plan
from samplers.run import generate, prepare
from torch_utils import process
from torch_utils.cli import Command, IntList
from torch_utils.files import write_json
from torch_utils.frechet import feature_stats
from torch_utils.images import to_uint8
from torch_utils.provenance import digest
from torch_utils.report.page import Table
from training.data.image_dataset import ImageDataset, decoded

__all__ = ["Sampler", "command"]

BATCH = 500


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A row of the table: a network of the benchmark, and its sampler by number of network evaluations."""

    network: str
    samplers: Mapping[int, SamplerOptions]


def distances(data: Path, snapshot: Path, wanted: Iterable[SamplerOptions], num: int) -> list[float]:
    """Fréchet distance of pixels between the data and samples by each sampler, measured once."""
    file = snapshot.with_suffix(".json")
    known = json.loads(file.read_text()) if file.exists() else {}
    device = torch.device("cpu")
    net = prepare(networks.load_network(snapshot), device)
    extractor, made = load_features("pixels", device=device), as_field(net).weights_hash()
    found = []
    for options in wanted:
        key = digest({"options": dataclasses.asdict(options), "num": num, "network": made})
        if key not in known:
            samples = generate(net, range(num), build_plan(net, options), batch=BATCH, device=device)
            stats = feature_stats((to_uint8(s.images) for s in samples), extractor)
            known[key] = stats.moments().distance(_reference(data))
            write_json(file, known)
        found.append(known[key])
    return found


@functools.cache
def _reference(data: Path) -> Any:
    dataset = ImageDataset(str(data))
    extractor = load_features("pixels", device=torch.device("cpu"))
    return feature_stats(decoded(dataset, range(len(dataset)), BATCH), extractor).moments()


def command(
    trained: Mapping[str, str], rows: Mapping[str, Sampler], title: str, folder: str, mimg: float
) -> click.Command:
    """The command of a benchmark: trains every network with every seed and measures every row.

    Args:
        trained: name -> method of train.py and its options.
        rows: name -> what is measured.
        title: of the table, also the help text.
        folder, mimg: defaults of the command: where results go, and million images of a training.
    """

    @click.command(cls=Command, help=title)
    @click.option("--outdir", type=Path, default=folder, show_default=True, help="Runs and results")
    @click.option("--seeds", type=IntList(), default="0-2", show_default=True, help="A training of each network each")
    @click.option("--mimg", type=float, default=mimg, show_default=True, help="Million images of a training")
    @click.option("--num", type=click.IntRange(min=2), default=1000, show_default=True, help="Samples of a distance")
    def main(outdir: Path, seeds: list[int], mimg: float, num: int) -> None:
        process.tune()
        outdir.mkdir(parents=True, exist_ok=True)
        data = outdir / "digits.zip"
        if not data.exists():
            commands.call("dataset_tool.py", f"--source=digits --dest={data}")
        results: dict[str, dict[int, list[float]]] = {name: {n: [] for n in row.samplers} for name, row in rows.items()}
        for seed in seeds:
            common = f"--data={data} --cond=1 --seed={seed} --duration={mimg} --tick=50 --snap=1000"
            for name, options in trained.items():
                snapshot = commands.trained(outdir / f"seed{seed}" / name, "train.py", f"{options} {common}")
                for row, own in rows.items():
                    if own.network == name:
                        found = distances(data, snapshot, own.samplers.values(), num)
                        for n, value in zip(own.samplers, found, strict=True):
                            results[row][n].append(value)
        write_json(outdir / "results.json", {"seeds": seeds, "mimg": mimg, "num": num, "distances": results})
        click.echo(table(title, results, num).text())

    return main


def table(title: str, results: Mapping[str, Mapping[int, Sequence[float]]], num: int) -> Table:
    """Mean and deviation over the seeds: a row for each sampler, a column for each number of evaluations."""
    counts = sorted({n for row in results.values() for n in row})

    def cell(values: Sequence[float] | None) -> str:
        if values is None:
            return "-"
        return f"{statistics.fmean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")

    rows = [(name, *(cell(row.get(n)) for n in counts)) for name, row in results.items()]
    note = f"Fréchet distance of pixels to all digits, {num} samples each; ±: deviation over seeds of training."
    return Table(title, ("network evaluations", *map(str, counts)), rows, note=note)
