"""What calibrating for features instead of pixels buys, on a small model of photographs, by evaluations.

    OMP_NUM_THREADS=1 python -m bench.calibration --outdir=runs/calibration
    OMP_NUM_THREADS=1 python -m bench.calibration --outdir=runs/calibration --objectives=pixels/free,self --seeds=0

Data: 16 x 16 crops of the photographs that installed packages ship; a network of 1.3 M parameters trained on them for
80,000 images. Every student is calibrated on `--num-warmup` samples, per objective and calibration seed, and judged on
`--num` images from noise that is the same for all: Fréchet distance to the crops in EfficientNet-Lite0 and Lite2
features (of images enlarged to 64 pixels), and distance to the teacher's images, root-mean-square in pixels and in
spreads of both features. `OBJECTIVE/free` and `OBJECTIVE/corrections` refine coefficients in one parametrisation
throughout, others change it in turn (`samplers.calibration.refine`). `between`, for the first objective: made from the
file's 4, 6 and 10 evaluations. Schedule files and figures are kept as they come; the same command goes on, and one with
other objectives, seeds or evaluations adds to them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
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
from samplers.calibration.refine import CORRECTIONS, FREE, IN_TURN
from samplers.field import Field, as_field
from samplers.recipe import Entry, ScheduleFile
from samplers.schedules.formulas import get_schedule
from samplers.solvers.table import sample
from torch_utils.cli import Command, IntList
from torch_utils.files import read_json, write_json
from torch_utils.frechet import FeatureStats, Moments
from torch_utils.images import from_uint8
from torch_utils.rng import PerSampleRNG
from training.data.image_dataset import ImageDataset, decoded

TRAIN = (
    "--cond=0 --seed=0 --cbase=32 --cres=1,2,2 --num-blocks=1 --attn-resolutions=8 --batch=64 --duration=0.08 "
    "--lr=1e-3 --lr-rampup=0.01 --ema=0.01 --ema-rampup=0.1 --dropout=0 --augment=0 --tick=4 --snap=10"
)
JUDGES = ("efficientnet-lite0", "efficientnet-lite2")
BASES = {"": IN_TURN, "free": FREE, "corrections": CORRECTIONS}
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
    help="Objectives, as of generate.py; each with /free or /corrections if wanted",
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
    made_by = {"network": field.weights_hash(), "num": num, "num_warmup": num_warmup}
    results, judge = Results(home / f"results-{num}-{num_warmup}.json", made_by), Judge(field, data, num)
    results.get("teacher", lambda: judge.of(judge.teacher))
    for n in nfe:
        results.get(f"ipndm {n}", lambda n=n: judge.solver("ipndm", n))
    wanted = objectives.split(",")
    for seed, objective in product(seeds, wanted):
        path = home / f"{objective.replace('/', '-')}-{num_warmup}-{seed}.json"
        file = calibrated(path, field, nfe, objective, num_warmup=num_warmup, seed=seed)
        for n in nfe:
            results.get(f"{objective} {n} {seed}", lambda n=n, file=file: judge.student(file.choose(nfe=n)))
        few = tuple(e for e in file.entries if nfe_of(e) in NODES)
        if objective == wanted[0] and len(few) == len(NODES):
            for n in [n for n in (*nfe, 12, 20) if n not in NODES]:
                made = partial(between, replace(file, entries=few), n)
                results.get(f"{objective} between {n} {seed}", lambda made=made: judge.student(made()))
    click.echo(table(results.found))


def nfe_of(entry: Entry) -> int:
    return entry.num_steps - 1 - entry.afs


def calibrated(path: Path, field: Field, nfe: Sequence[int], objective: str, **how: Any) -> ScheduleFile:
    """The schedule file at `path`, after the numbers of evaluations that it lacks were calibrated and added."""
    file = ScheduleFile.load(path) if path.exists() else None
    if file is not None and file.model_hash != field.weights_hash():
        raise ValueError(f"{path} was calibrated on another network: choose another --outdir")
    missing = [n for n in nfe if file is None or n not in map(nfe_of, file.entries)]
    if missing:
        name, _, bases = objective.partition("/")
        if bases not in BASES:
            raise ValueError(f"--objectives={objective}: after the slash goes free or corrections")
        how |= {"sigma_min": None, "sigma_max": None, "maps": load_map, "bases": BASES[bases]}
        new = calibrate(field, missing, objective=name, progress=click.echo, **how).schedule_file(field.weights_hash())
        if file is not None:
            found = {"students": [*file.provenance["students"], *new.provenance["students"]]}
            new = replace(new, entries=(*file.entries, *new.entries), provenance={**new.provenance, **found})
        file = new
        file.save(path)
    return file


class Results:
    """Figures by name, kept in a file as they come, beside what they were measured on."""

    def __init__(self, path: Path, made_by: dict[str, Any]) -> None:
        self.path, self.made_by = path, made_by
        kept = read_json(path, "a file of figures") if path.exists() else {"made_by": made_by, "found": {}}
        if kept.get("made_by") != made_by:
            raise ValueError(
                f"{path} was measured on {kept.get('made_by')}, this is {made_by}: choose another --outdir"
            )
        self.found: dict[str, dict[str, float]] = kept["found"]

    def get(self, name: str, measure: Callable[[], dict[str, float]]) -> None:
        if name not in self.found:
            self.found[name] = measure()
            click.echo(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in self.found[name].items()))
            write_json(self.path, {"made_by": self.made_by, "found": self.found})


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
