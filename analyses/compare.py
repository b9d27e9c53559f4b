"""`analyze.py compare`: solvers of one network at equal evaluations. The maths is in samplers/analysis/compare.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import click
from tqdm import tqdm

from analyses.shared import AnalysisDevice, make_folder, write
from networks.features.table import FeatureExtractor, load_features
from samplers.analysis import figures
from samplers.analysis.compare import HELD_OUT, Measure, compare, tables
from samplers.analysis.contestants import parse_contestant, plan_cells
from samplers.recipe import ScheduleFile
from samplers.run import decoded_shape, prepare
from samplers.solvers.table import SOLVERS
from torch_utils import distributed as dist
from torch_utils.cli import Command
from torch_utils.frechet import Moments
from torch_utils.options import OptionGroup, opt, options_of
from torch_utils.reference_file import check_fits, load_moments, local_file
from training.trained import open_network

# Adaptive solvers have no NFE that could be asked for, the calibrated one needs a schedule file.
FIXED = [name for name, solver in SOLVERS.items() if not solver.adaptive and name != "calibrated"]


@dataclass(frozen=True, kw_only=True)
class Contest:
    group: ClassVar = OptionGroup("What is compared", "Solvers of one network, at equal evaluations.", rank=0)

    network: str = opt(
        None, "Network: a file, an address, or the name of a published checkpoint", metavar="FILE|URL|NAME",
        required=True,
    )  # fmt: skip
    outdir: str = opt(None, "Folder of compare.json and compare.png", metavar="DIR", required=True)
    solvers: str = opt(
        "euler,heun,edm,ipndm,dpmpp,unipc,deis", f"Comma-separated, from edm, {', '.join(FIXED)}; each may be "
        "NAME:ORDER, NAME:OPTION=VALUE, NAME@SCHEDULE and NAME@FILE.json#COEFF", metavar="LIST",
    )  # fmt: skip
    nfe: tuple[int, ...] = opt("3-10", "Network evaluations per image", metavar="LIST")
    schedule: str | None = opt(
        None, "Schedule files: each also takes part with its own solver; comma-separated", metavar="FILES"
    )


@dataclass(frozen=True, kw_only=True)
class Errors:
    group: ClassVar = OptionGroup("Error", "Distance to a fine teacher from the same noise.", rank=1)

    num: int = opt(256, "Samples that are compared with the teacher's", metavar="INT", at_least=1)
    seed: int = opt(
        HELD_OUT, "First seed; the default is far from those of training and schedule search", metavar="INT"
    )
    teacher_solver: str = opt("heun", "Solver of the teacher", choices=list(FIXED))
    teacher_steps: int = opt(60, "Steps of the teacher, polynomial schedule", metavar="INT", at_least=1)


@dataclass(frozen=True, kw_only=True)
class Distance:
    group: ClassVar = OptionGroup("Fréchet distance", "Measured as well where there is a reference.", rank=2)

    ref: str | None = opt(None, "Statistics of `fid.py ref`: also measure the Fréchet distance to them", metavar="NPZ")
    num_fid: int | None = opt(None, "Images for the Fréchet distance [default: --num]", metavar="INT", at_least=2)


@dataclass(frozen=True, kw_only=True)
class CompareOptions(AnalysisDevice, Distance, Errors, Contest):
    """All options of `compare`."""

    batch: int = opt(256, "Most images at once on one process", metavar="INT", at_least=1)


@click.command("compare", cls=Command)
@options_of(CompareOptions)
def command(options: CompareOptions) -> None:
    """Error of solvers against a fine teacher, NFE by NFE; with --ref also the Fréchet distance."""
    with dist.process_group(options.device) as device:
        texts = [t for t in options.solvers.split(",") if t.strip()]
        for path in (options.schedule or "").split(",") if options.schedule else ():
            texts.append(f"{ScheduleFile.load(path).solver}@{path}")
        contestants = [parse_contestant(t) for t in texts]
        net = open_network(options.network, partial(prepare, device=device))
        reference, extractor = _reference(options, math.prod(decoded_shape(net)), device)
        measure = Measure(
            num=options.num, seed=options.seed, teacher_solver=options.teacher_solver,
            teacher_steps=options.teacher_steps, reference=reference, extractor=extractor,
            num_fid=options.num_fid if options.ref else None, batch=options.batch,
        )  # fmt: skip
        cells = plan_cells(contestants, options.nfe, net)
        outdir = make_folder(options.outdir)
        with tqdm(total=measure.work(cells), unit="eval", unit_scale=True, disable=dist.get_rank() > 0 or None) as bar:
            report = compare(net, cells, measure, device=device, progress=bar.update)
        if dist.get_rank() == 0:
            report = {"network": options.network, "ref": options.ref, **report}
            click.echo("\n\n".join(t.text() for t in tables(report)))
            write(outdir, "compare", report, figures.draw_compare)
        dist.barrier()


def _reference(options: CompareOptions, pixels: int, device: Any) -> tuple[Moments | None, FeatureExtractor | None]:
    """Reference statistics and the features they were made with."""
    if options.ref is None:
        if options.num_fid is not None:
            raise ValueError("--num-fid is for the Fréchet distance, which needs reference statistics: give --ref")
        return None, None
    path = local_file(options.ref)
    if not Path(path).is_file():
        raise ValueError(f"there is no file {options.ref}: make reference statistics with `fid.py ref`")
    reference = load_moments(path)
    extractor = load_features(reference.features or "pixels", None, device)
    check_fits(options.ref, reference, extractor.name, extractor.dim or pixels, extractor.weights)
    return reference, extractor
