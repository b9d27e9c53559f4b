"""Pictures and numbers about samplers and runs: every sub-command writes PNG files and the numbers as JSON.

The maths is in `samplers/analysis/compare.py`, `samplers/analysis/trajectory_file.py`, `samplers/gits/costs.py` and
`training/runs/curve.py`, the drawing in `samplers/analysis/figures.py`, the page in `torch_utils/report/page.py`. See
docs/analysis.md.
"""

from __future__ import annotations

from torch_utils import process

if __name__ == "__main__":
    process.tune()  # before torch starts its threads

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import click
from tqdm import tqdm

import networks
from networks.features.table import FeatureExtractor, load_features
from networks.load import unfinished_note
from samplers import SCHEDULES, SOLVERS, get_schedule
from samplers.analysis import figures
from samplers.analysis.compare import HELD_OUT, Measure, compare, tables
from samplers.analysis.contestants import parse_contestant, plan_cells
from samplers.analysis.straightness import curvature_table, measure_curvature
from samplers.analysis.trajectory_file import load_trajectory, summarise
from samplers.gits.costs import METRICS, cost_matrix, path_cost, shortest_path
from samplers.recipe import ScheduleFile
from samplers.run import decoded_shape, prepare
from torch_utils import distributed as dist
from torch_utils.cli import Group, IntList
from torch_utils.files import write_json
from torch_utils.frechet import Moments, check_fits, load_moments, local_file
from torch_utils.options import OptionGroup, opt, options_of
from torch_utils.report.page import Table, write_page
from training.likelihood import image_likelihood
from training.runs.curve import read_curve

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
  # Schedules, the training curve, and one page of everything
  python analyze.py schedules polynomial logsnr time_uniform --num-steps=10 --outdir=out
  python analyze.py curve runs/00000-digits --outdir=out
  python analyze.py likelihood --network=NET.pkl --data=datasets/digits.zip --num=256 --outdir=out
  python analyze.py page out --title="Digits" """

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 120, "show_default": True}

CAPTIONS = {
    "compare.png": "Error of solvers against a fine teacher from the same held-out noise, by network evaluations.",
    "trajectory.png": "Geometry of sampling trajectories, from noise (left) to data (right); thin lines are samples.",
    "projection.png": "Sampling trajectories along their chord and the two leading directions orthogonal to it.",
    "strip.png": "States and denoised estimates along sampling trajectories, one pair of rows per seed.",
    "schedules.png": "Noise levels of schedules.",
    "cost.png": "Cost of every Euler jump between levels, and the cheapest path of jumps.",
    "curve.png": "Training loss and speed.",
    "curvature.png": "Curvature along sampling trajectories (band: two standard errors), and by weight of the prior.",
}

# Adaptive solvers have no NFE that could be asked for, the calibrated one needs a schedule file.
FIXED = [name for name, solver in SOLVERS.items() if not solver.adaptive and name != "calibrated"]

OUTDIR = click.option("--outdir", required=True, metavar="DIR", help="Folder of the pictures and numbers")


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
class ContestDevice:
    group: ClassVar = OptionGroup("Device", "Where and how fast.", rank=3)

    batch: int = opt(256, "Most images at once on one process", metavar="INT", at_least=1)
    device: str = opt("auto", "cpu, cuda or auto (a GPU when there is one)", metavar="DEVICE")


@dataclass(frozen=True, kw_only=True)
class CompareOptions(ContestDevice, Distance, Errors, Contest):
    """All options of `compare`."""


@click.group(cls=Group, context_settings=SETTINGS, epilog=EXAMPLES)
def main() -> None:
    """Pictures (PNG) and numbers (JSON) about samplers and training runs."""


@main.command("compare", context_settings=SETTINGS, epilog=EXAMPLES)
@options_of(CompareOptions)
def compare_command(options: CompareOptions) -> None:
    """Error of solvers against a fine teacher, NFE by NFE; with --ref also the Fréchet distance."""
    with dist.process_group(options.device) as device:
        texts = [t for t in options.solvers.split(",") if t.strip()]
        for path in (options.schedule or "").split(",") if options.schedule else ():
            texts.append(f"{ScheduleFile.load(path).solver}@{path}")
        contestants = [parse_contestant(t) for t in texts]
        net = _load(options.network, device)
        reference, extractor = _reference(options, math.prod(decoded_shape(net)), device)
        measure = Measure(
            num=options.num, seed=options.seed, teacher_solver=options.teacher_solver,
            teacher_steps=options.teacher_steps, reference=reference, extractor=extractor,
            num_fid=options.num_fid if options.ref else None, batch=options.batch,
        )  # fmt: skip
        cells = plan_cells(contestants, options.nfe, net)
        outdir = _folder(options.outdir)
        with tqdm(total=measure.work(cells), unit="eval", unit_scale=True, disable=dist.get_rank() > 0 or None) as bar:
            report = compare(net, cells, measure, device=device, progress=bar.update)
        if dist.get_rank() == 0:
            report = {"network": options.network, "ref": options.ref, **report}
            click.echo("\n\n".join(t.text() for t in tables(report)))
            _write(outdir, "compare", report, figures.draw_compare)
        dist.barrier()


def _load(source: str, device: Any) -> Any:
    net = dist.rank0_first(lambda: networks.load_network(source))
    if note := unfinished_note(net):
        dist.print0(f"{note} ({source})", file=sys.stderr)
    return prepare(net, device)


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
    check_fits(options.ref, reference.features, len(reference.mu), extractor.name, extractor.dim or pixels)
    return reference, extractor


@main.command(context_settings=SETTINGS, epilog=EXAMPLES)
@click.argument("file", metavar="FILE.npz")
@OUTDIR
@click.option("--num", type=click.IntRange(1), default=64, metavar="INT", help="Most samples that are looked at")
@click.option("--rows", type=click.IntRange(1), default=6, metavar="INT", help="Samples in strip.png")
@click.option("--columns", type=click.IntRange(2), default=12, metavar="INT", help="Most steps in strip.png")
def trajectory(file: str, outdir: str, num: int, rows: int, columns: int) -> None:
    """Geometry of trajectories that `generate.py --save-traj` saved: trajectory, projection and strip."""
    loaded = load_trajectory(file, num)
    summary = summarise(loaded)
    folder = _folder(outdir)
    _write(folder, "trajectory", {"file": file, **summary}, figures.draw_trajectory)
    if "projection" in summary:
        figures.draw_projection(summary, folder / "projection.png")
    if loaded.x.ndim == 5 and loaded.x.shape[2] in (1, 3):
        figures.draw_strip(loaded, folder / "strip.png", rows=rows, columns=columns)
    else:
        click.echo(f"no strip.png: states of shape {list(loaded.x.shape[2:])} are not images of 1 or 3 channels")


@main.command(context_settings=SETTINGS, epilog=EXAMPLES)
@click.argument("names", nargs=-1, required=True, metavar="NAME|FILE.json...")
@OUTDIR
@click.option("--num-steps", type=IntList(), metavar="LIST", help="Levels [default: 7 of a name, all of a file]")
def schedules(names: tuple[str, ...], outdir: str, num_steps: list[int] | None) -> None:
    """Noise levels of schedules: by name, or of files that a search wrote."""
    found: dict[str, list[float]] = {}
    for name in names:
        if name.endswith(".json"):
            entries = [e for e in ScheduleFile.load(name).entries if num_steps is None or e.num_steps in num_steps]
            if not entries:
                raise ValueError(f"{name} holds no schedule with the number of levels asked for: leave out --num-steps")
            for e in entries:
                label = Path(name).stem + ("" if e.coeff is None else f"#{e.coeff:g}") + (" AFS" if e.afs else "")
                if (label := f"{label}, {e.num_steps} levels") in found:
                    raise ValueError(f"two schedules are called '{label}': rename a file, or keep one in it")
                found[label] = list(e.sigmas)
        elif name in SCHEDULES:
            for n in num_steps or (7,):
                found[f"{name}, {n} levels"] = get_schedule(n, schedule_type=name).tolist()
        else:
            raise ValueError(f"there is no schedule '{name}': give a file (.json) or one of {', '.join(SCHEDULES)}")
    _write(_folder(outdir), "schedules", found, figures.draw_schedules)


@main.command(context_settings=SETTINGS, epilog=EXAMPLES)
@click.argument("file", metavar="FILE.npz")
@OUTDIR
@click.option("--num-steps", type=click.IntRange(2), default=7, metavar="INT", help="Levels of the chosen path")
@click.option("--metric", type=click.Choice(list(METRICS)), default="dev", help="Cost of a jump")
@click.option("--coeff", type=float, default=1.15, metavar="FLOAT", help="Factor on every later jump")
def cost(file: str, outdir: str, num_steps: int, metric: str, coeff: float) -> None:
    """Cost of every jump along saved trajectories of a fine teacher, and the cheapest schedule."""
    loaded = load_trajectory(file)
    matrix = cost_matrix(loaded.x, loaded.drift, loaded.sigmas, metric)
    indices = shortest_path(matrix, num_steps, coeff)
    grid = loaded.sigmas.tolist()
    chosen = [grid[i] for i in indices]
    click.echo(f"{num_steps} levels: {', '.join(f'{v:.4g}' for v in chosen)}")
    numbers = {
        "file": file, "num_samples": len(loaded.seeds), "metric": metric, "coeff": coeff, "indices": indices,
        "chosen": chosen, "total": path_cost(matrix, indices, coeff), "sigmas": grid, "cost": matrix.tolist(),
    }  # fmt: skip
    _write(_folder(outdir), "cost", numbers, lambda _, p: figures.draw_cost(matrix, grid, indices, p, metric))


@main.command(context_settings=SETTINGS, epilog=EXAMPLES)
@click.argument("run_dir", metavar="RUN_DIR")
@OUTDIR
def curve(run_dir: str, outdir: str) -> None:
    """Loss and speed of a training run."""
    _write(_folder(outdir), "curve", {"run_dir": run_dir, **read_curve(run_dir)}, figures.draw_curve)


@main.command(context_settings=SETTINGS, epilog=EXAMPLES)
@click.argument("networks_", nargs=-1, required=True, metavar="NETWORK...")
@OUTDIR
@click.option("--label", multiple=True, metavar="TEXT", help="Name of a network, in their order [default: file name]")
@click.option("--num", type=click.IntRange(2), default=256, metavar="INT", help="Trajectories of each network")
@click.option("--N", "evaluations", type=click.IntRange(1), default=100, metavar="INT", help="Network evaluations each")
@click.option("--solver", type=click.Choice(["euler", "heun"]), default="euler", help="Solver; heun takes an odd --N")
@click.option("--prior", metavar="NAME", help="Start distribution, of models that have several [default: the model's]")
@click.option("--seed", type=int, default=HELD_OUT, metavar="INT", help="First seed")
@click.option("--batch", type=click.IntRange(1), default=64, metavar="INT", help="Most samples at once")
@click.option("--device", default="auto", metavar="DEVICE", help="cpu, cuda or auto (a GPU when there is one)")
def curvature(
    networks_: tuple[str, ...], outdir: str, label: tuple[str, ...], batch: int, device: str, **measured: Any
) -> None:
    """How straight the trajectories of networks are; of several trained with different beta, a sweep."""
    with dist.process_group(device) as dev:
        if label and len(label) != len(networks_):
            given = f"--label is given {len(label)} times for {len(networks_)} networks"
            raise ValueError(f"{given}: once each, or not at all")
        folder, results = _folder(outdir), []
        for name, text in zip(networks_, label or networks_, strict=True):
            net = _load(name, dev)
            with tqdm(total=measured["num"], unit="img", desc=text, disable=dist.get_rank() > 0 or None) as bar:
                report = measure_curvature(net, **measured, batch=batch, device=dev, progress=bar.update)
            results.append({"network": name, "label": text, "beta": _beta(net), **report})
        if dist.get_rank() == 0:
            click.echo(curvature_table(results).text())
            _write(folder, "curvature", {"results": results}, figures.draw_curvature)
        dist.barrier()


def _beta(net: Any) -> float | None:
    """The weight of the prior that a network was trained with, as its file says."""
    options = getattr(net, "info", {}).get("options") or {}
    return None if options.get("independent") else options.get("weight_prior")


@main.command("likelihood", context_settings=SETTINGS, epilog=EXAMPLES)
@click.option("--network", required=True, metavar="FILE|URL|NAME", help="Network: a file, an address, or a name")
@click.option("--data", required=True, metavar="PATH", help="Images: a folder or zip; labels are read with them")
@click.option("--outdir", metavar="DIR", help="Folder of likelihood.json [default: none is written]")
@click.option("--num", type=click.IntRange(1), metavar="INT", help="Images, chosen at random [default: all]")
@click.option("--solver", default="dopri5", metavar="NAME", help="Adaptive, or euler and others with --steps")
@click.option("--steps", type=click.IntRange(1), metavar="INT", help="Equal steps, of solvers that choose none")
@click.option(
    "--rtol", type=click.FloatRange(0, min_open=True), metavar="FLOAT", help="Adaptive solvers [default: 1e-5]"
)
@click.option(
    "--atol", type=click.FloatRange(0, min_open=True), metavar="FLOAT", help="Adaptive solvers [default: 1e-5]"
)
@click.option(
    "--seed", type=int, default=0, metavar="INT", help="Seed of the choice, of the spread of grey values and of signs"
)
@click.option("--batch", type=click.IntRange(1), default=64, metavar="INT", help="Most images at once")
@click.option("--device", default="auto", metavar="DEVICE", help="cpu, cuda or auto (a GPU when there is one)")
def likelihood_command(network: str, data: str, outdir: str | None, device: str, **how: Any) -> None:
    """Bits per dimension of images of 8 bits under a model, by its flow."""
    with dist.process_group(device) as dev:
        result = {"network": network, "data": data, **image_likelihood(_load(network, dev), data, device=dev, **how)}
        if dist.get_rank() == 0:
            error = "" if result["bpd_se"] is None else f" +- {result['bpd_se']:.4f}"
            click.echo(f"{result['bpd']:.4f}{error} bits per dimension, {result['num']} images")
            if outdir is not None:
                write_json(_folder(outdir) / "likelihood.json", result)
        dist.barrier()


@main.command(context_settings=SETTINGS, epilog=EXAMPLES)
@click.argument("folder", metavar="DIR")
@click.option("--title", default="Results", metavar="TEXT", help="Head of the page")
@click.option("--caption", multiple=True, metavar="FILE=TEXT", help="Caption of a picture; may be repeated")
def page(folder: str, title: str, caption: tuple[str, ...]) -> None:
    """Write DIR/index.html, which shows every PNG of DIR, and compare.json as tables."""
    if wrong := next((c for c in caption if "=" not in c), None):
        raise ValueError(f"--caption='{wrong}' names no picture: write for example --caption=classes.png=Samples")
    given = dict(c.split("=", 1) for c in caption)
    found = _tables(Path(folder) / "compare.json")
    path = write_page(folder, title, tables=found, captions={**CAPTIONS, **given}, first=list(given) + list(CAPTIONS))
    click.echo(path)


def _tables(path: Path) -> list[Table]:
    if not path.is_file():
        return []
    try:
        return tables(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _folder(outdir: str) -> Path:
    """Make the folder before the work, so that a wrong path fails early."""
    folder = Path(outdir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(folder: Path, name: str, numbers: dict[str, Any], draw: Callable[[dict[str, Any], Path], None]) -> None:
    write_json(folder / f"{name}.json", numbers)
    draw(numbers, folder / f"{name}.png")
    click.echo(f"Wrote {folder / name}.json and {name}.png")


if __name__ == "__main__":
    main()
