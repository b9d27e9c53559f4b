"""What MAC's second stage gains on the 8x8 digits, over several seeds: Fréchet distance in 5 Euler steps.

    python -m bench.mac --outdir=runs/bench-mac

Every seed gets its own denoiser (0.98 M parameters) and, from it, one run of `train_trajectory.py` for each
variant: only the coefficients C trained, a lean C, only the denoiser V, both. Everything is done by the command lines
that a user would type, which are shown; what is finished already is skipped, so that an interrupted benchmark goes on.

The distance is that of pixels between the data set and samples from seeds 0 to num-1. Gains are differences to the same
denoiser along the ordinary levels, seed by seed, with Student's 95 % interval over the seeds: it is as wide as few
seeds make it. Results: OUTDIR/results.json and a table.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import click
from scipy.stats import t as student

from bench import commands
from torch_utils.cli import Command, IntList
from torch_utils.files import write_json
from torch_utils.provenance import digest
from torch_utils.report.page import Table

DENOISER = (
    "--cbase=32 --cres=1,2 --num-blocks=2 --batch=128 --lr=2e-3 --lr-rampup=0.01 --ema=0.01 --ema-rampup=0.1 "
    "--dropout=0 --augment=0 --tick=30 --snap=1000"
)
TRAJECTORY = "--backbones=light --batch=32 --batch-edm=32 --batch-disc=32 --tick=1 --snap=1000"
SMALL = "--coef-channels=32 --coef-mult=1,2 --coef-blocks=1"
LEAN = "--coef-channels=8 --coef-mult=1 --coef-blocks=1 --coef-downsample=2"

PLAIN, FINE = "plain", "heun-18"
SAMPLED = {PLAIN: "--steps=5 --solver=euler", FINE: "--steps=18"}  # the denoiser as it is
VARIANTS = {
    "C-lean": f"--train-v=0 {LEAN}",
    "V+C-lean": LEAN,
    "V": f"--train-c=0 {LEAN}",
    "C": f"--train-v=0 {SMALL}",
}


def distance(folder: Path, name: str, network: Path, options: str, ref: Path, num: int) -> float:
    """Fréchet distance of `num` samples, measured once and kept in a file whose name changes with what is measured."""
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (network, ref)]
    file = folder / f"{name}-{digest({'files': hashes, 'options': options, 'num': num})}.json"
    if not file.exists():
        what = f"--network={network} {options} --num={num}"
        commands.call("fid.py", f"calc {what} --ref={ref} --features=pixels --batch=500 --json={file}")
    return json.loads(file.read_text())["distance"]


def measure(folder: Path, seed: int, variant: str, *, mimg: float, kimg: float, num: int) -> float:
    """Distance of one variant from one seed, after all training that it still needs."""
    own = folder / f"seed{seed}"
    data, ref = folder / "digits.zip", folder / "digits.npz"
    if not data.exists():
        commands.call("dataset_tool.py", f"--source=digits --dest={data}")
    if not ref.exists():
        commands.call("fid.py", f"ref --data={data} --features=pixels --dest={ref}")
    common = f"--data={data} --cond=1 --seed={seed}"
    network = commands.trained(own / "denoiser", "train.py", f"edm {common} --duration={mimg} {DENOISER}")
    if variant in VARIANTS:
        options = f"--network={network} {TRAJECTORY} --kimg={kimg} {VARIANTS[variant]}"
        network = commands.trained(own / variant, "train_trajectory.py", f"{common} {options}")
    return distance(own, variant, network, SAMPLED.get(variant, ""), ref, num)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of Student's 95 % confidence interval; infinite for one value."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return mean, math.inf
    return mean, float(student.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n)


def table(results: dict[str, dict[int, float]], num: int) -> Table:
    """Every seed, mean, deviation, and difference to the same denoiser without training; one row per variant."""
    seeds = sorted(results[PLAIN])
    rows = []
    for variant, by_seed in results.items():
        values = [by_seed[s] for s in seeds if s in by_seed]
        spread = f"{statistics.stdev(values):.3f}" if len(values) > 1 else "-"
        mean, half = interval([by_seed[s] - results[PLAIN][s] for s in by_seed])
        gain = "-" if variant == PLAIN else f"{mean:+.3f} ± {half:.3f}"
        each = [f"{by_seed[s]:.3f}" if s in by_seed else "-" for s in seeds]
        rows.append((variant, *each, f"{statistics.fmean(values):.3f}", spread, gain))
    heads = ("variant", *(f"seed {s}" for s in seeds), "mean", "std", "difference (95 %)")
    return Table("Fréchet distance of pixels, 5 Euler steps", heads, tuple(rows), note=f"{num} samples each")


@click.command(cls=Command)
@click.option("--outdir", type=Path, default="runs/bench-mac", show_default=True, help="Runs and results")
@click.option("--seeds", type=IntList(), default="0-2", show_default=True, help="One denoiser each")
@click.option("--variants", default=",".join(VARIANTS), show_default=True, help="What is trained")
@click.option("--mimg", type=float, default=0.0896, show_default=True, help="Million images of the denoiser")
@click.option("--kimg", type=float, default=4, show_default=True, help="Thousand images of a second stage")
@click.option("--num", type=click.IntRange(min=2), default=2000, show_default=True, help="Samples of a distance")
def main(outdir: Path, seeds: list[int], variants: str, mimg: float, kimg: float, num: int) -> None:
    """What MAC's second stage gains on the 8x8 digits, over several seeds."""
    names = [PLAIN, *filter(None, variants.split(",")), FINE]
    if unknown := [name for name in names if name not in (*SAMPLED, *VARIANTS)]:
        raise click.ClickException(f"there is no variant '{unknown[0]}': choose from {', '.join(VARIANTS)}")
    outdir.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[int, float]] = {}
    for name in names:
        for seed in seeds:
            found = measure(outdir, seed, name, mimg=mimg, kimg=kimg, num=num)
            results.setdefault(name, {})[seed] = found
        settings = {"mimg": mimg, "kimg": kimg, "num": num, "options": SAMPLED | VARIANTS}
        write_json(outdir / "results.json", settings | {"distances": results})
    click.echo(table(results, num).text())


if __name__ == "__main__":
    main()
