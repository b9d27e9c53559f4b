"""What calibrating for features instead of pixels buys, on a small model of photographs, by evaluations.

    OMP_NUM_THREADS=1 python -m bench.calibration --outdir=runs/calibration
    OMP_NUM_THREADS=1 python -m bench.calibration --outdir=runs/calibration --objectives=pixels,self --seeds=0

Data: 16 x 16 crops of the photographs that installed packages ship; a network of 1.3 M parameters trained on them for
80,000 images. Every student is calibrated on `--num-warmup` samples, per objective and calibration seed, and judged on
`--num` images from noise that is the same for all: Fréchet distance to the crops in EfficientNet-Lite0 and Lite2
features (of images enlarged to 64 pixels), and distance to the teacher's images, root-mean-square in pixels and in
spreads of both features. `between`: made from the file's 4, 6 and 10 evaluations. What is measured already is kept in
`results.json`; the same command goes on.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

import networks
from bench.commands import call, trained
from networks.features.efficientnet_lite import FEATURES, preprocess
from networks.features.maps import load_map
from networks.features.table import load_efficientnet
from samplers.calibration.between import between
from samplers.calibration.calibrate import calibrate
from samplers.field import Field, as_field
from samplers.recipe import Entry, ScheduleFile
from samplers.schedules.formulas import get_schedule
from samplers.solvers.table import sample
from torch_utils.cli import Command, IntList
from torch_utils.files import write_json
from torch_utils.frechet import FeatureStats, Moments
from torch_utils.images import from_uint8
from torch_utils.rng import PerSampleRNG
from training.data.image_dataset import ImageDataset, decoded

TRAIN = (
    "--cond=0 --seed=0 --cbase=32 --cres=1,2,2 --num-blocks=1 --attn-resolutions=8 --batch=64 --duration=0.08 "
    "--lr=1e-3 --lr-rampup=0.01 --ema=0.01 --ema-rampup=0.1 --dropout=0 --augment=0 --tick=4 --snap=10"
)
JUDGES = ("efficientnet-lite0", "efficientnet-lite2")
NODES = (4, 6, 10)  # evaluations of the file that `between` makes the others from
BATCH = 128
SIDE = 64  # pixels that images are enlarged to for the judges: 224 and 260 would take 15 times as long


class Judge:
    """Images of all contestants from one set of noise, against the data and against the teacher's."""

    def __init__(self, field: Field, data: Path, num: int) -> None:
        self.field = field
        self.noise = PerSampleRNG(range(num)).randn([num, *field.facts.shape])
        self.nets = {name: load_efficientnet(name.rpartition("-")[2]) for name in JUDGES}
        dataset = ImageDataset(data)
        self.data = [self._moments(self._features(name, map(from_uint8, decoded(dataset, range(len(dataset)), BATCH))))
                     for name in JUDGES]  # fmt: skip
        self.teacher = self._made(get_schedule(61, None, None, net=field), solver="ipndm")
        self.wanted = [self._features(name, self.teacher.split(BATCH)) for name in JUDGES]

    def _made(self, sigmas: Any, **how: Any) -> Tensor:
        return torch.cat([sample(self.field, x.double(), sigmas, **how).float() for x in self.noise.split(BATCH)])

    def _features(self, name: str, batches: Iterable[Tensor]) -> Tensor:
        return torch.cat([self.nets[name](preprocess(x * 127.5 + 127.5, SIDE)) for x in batches])

    def _moments(self, features: Tensor) -> Moments:
        stats = FeatureStats(FEATURES)
        stats.append(features)
        return stats.moments()

    def of(self, images: Tensor) -> dict[str, float]:
        """Root-mean-square distance to the teacher in pixels; per judge the distance in spreads, and Fréchet's."""
        found = {"pixels": float((images - self.teacher).square().mean().sqrt())}
        for name, data, wanted in zip(JUDGES, self.data, self.wanted, strict=True):
            own = self._features(name, images.split(BATCH))
            spread = (wanted - wanted.mean(0)).square().mean()
            found[name] = float(((own - wanted).square().mean() / spread).sqrt())
            found[f"fd {name}"] = self._moments(own).distance(data)
        return found

    def student(self, entry: Entry) -> dict[str, float]:
        how = {"solver": "calibrated", "coefficients": entry.coefficients, "afs": entry.afs}
        return self.of(self._made(entry.sigmas, **how))

    def solver(self, name: str, nfe: int) -> dict[str, float]:
        return self.of(self._made(get_schedule(nfe + 1, None, None, net=self.field), solver=name))


@click.command(cls=Command)
@click.option("--outdir", required=True, help="Where data, network, schedule files and results are kept")
@click.option("--network", help="Instead of training one: a snapshot of this data")
@click.option("--nfe", type=IntList(), default="3,4,5,6,8,10", show_default=True, help="Network evaluations")
@click.option(
    "--objectives", default="pixels,self,efficientnet-lite0,efficientnet-lite0+pixels", show_default=True,
    help="Objectives, as of generate.py",
)  # fmt: skip
@click.option("--seeds", type=IntList(), default="0-2", show_default=True, help="Seeds of calibrations")
@click.option("--num", type=click.IntRange(min=2), default=1024, show_default=True, help="Images that are judged")
@click.option("--num-warmup", type=click.IntRange(min=1), default=64, show_default=True, help="Samples to fit on")
@torch.no_grad()
def main(
    outdir: str, network: str | None, nfe: list[int], objectives: str, seeds: list[int], num: int, num_warmup: int
) -> None:
    """Fréchet distance and distance to the teacher of calibrated solvers, by evaluations and objective."""
    home = Path(outdir)
    data = home / "photos-16x16.zip"
    if not data.exists():
        call("dataset_tool.py", f"--source=photos --resolution=16x16 --dest={data}")
    snapshot = network or trained(home / "train", "train.py", f"--data={data} {TRAIN}")
    field = as_field(networks.load_network(str(snapshot)).eval().requires_grad_(False))
    results, judge = Results(home / f"results-{num}-{num_warmup}.json"), Judge(field, data, num)
    results.get("teacher", lambda: judge.of(judge.teacher))
    for n in nfe:
        results.get(f"ipndm {n}", lambda n=n: judge.solver("ipndm", n))
    for seed in seeds:
        for objective in objectives.split(","):
            path = home / f"{objective}-{num_warmup}-{seed}.json"
            if not path.exists():
                how = {"num_warmup": num_warmup, "seed": seed, "sigma_min": None, "sigma_max": None, "maps": load_map}
                calibrate(field, nfe, objective=objective, progress=click.echo, **how).schedule_file().save(path)
            file = ScheduleFile.load(path)
            for n in nfe:
                results.get(f"{objective} {n} {seed}", lambda n=n, file=file: judge.student(file.choose(nfe=n)))
            few = [e for e in file.entries if e.num_steps - 1 - e.afs in NODES]
            others = [n for n in (*nfe, 12, 20) if n not in NODES] if len(few) == len(NODES) else []
            for n in others:
                made = partial(between, replace(file, entries=tuple(few)), n)
                results.get(f"{objective} between {n} {seed}", lambda made=made: judge.student(made()))
    click.echo(table(results.found))


class Results:
    """Figures by name, kept in a file as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, name: str, measure: Callable[[], dict[str, float]]) -> None:
        if name not in self.found:
            self.found[name] = measure()
            click.echo(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in self.found[name].items()))
            write_json(self.path, self.found)


def table(found: dict[str, dict[str, float]]) -> str:
    """One row per solver and number of evaluations: mean over calibration seeds, with the standard deviation."""
    groups: dict[str, list[dict[str, float]]] = {}
    for name, figures in found.items():
        group = name.rpartition(" ")[0] if name.split(" ")[0] not in ("teacher", "ipndm") else name
        groups.setdefault(group, []).append(figures)
    columns = list(next(iter(found.values())))
    lines = ["| solver | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for group, rows in groups.items():
        cells = []
        for column in columns:
            values = [row[column] for row in rows]
            spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.4g}{spread}")
        lines.append(f"| {group} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
