"""Fréchet distance over guidance, width of the weight average, and number of levels: one table, one picture.

    python -m bench.sweep --run=runs/00000-digits --widths=0.05,0.1,0.15 --guidance-rate=1,1.5,2 --num-steps=4,6,11 \\
        --ref=digits-pixels.npz --features=pixels --num=1000 --outdir=runs/sweep

The best guidance depends on the average and on the number of steps, so all three are varied together (Karras et al.
2024, arXiv 2312.02696, section 4). `--run` holds the averages of `train.py --phema`, of which any width is rebuilt;
`--network` measures files as they are. Every cell is one `fid.py calc`; the same command again measures only what is
missing, and a cell counts as there only if network, reference and command are the same. OUTDIR/sweep.json has all
numbers.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

import networks
from bench.commands import call
from samplers.solvers.table import SOLVERS
from torch_utils.checkpoint import tensor_hash
from torch_utils.cli import Choice, Command, IntList, NumberList
from torch_utils.files import write_json
from torch_utils.provenance import digest
from torch_utils.report.page import Table
from torch_utils.report.plot import colour, figure, marker
from training.data.archive import ImageArchive
from training.runs.phema import rebuild

SINGLE_PASS = [name for name, entry in SOLVERS.items() if not entry.adaptive and name != "calibrated"]


@click.command(cls=Command)
@click.option("--run", type=click.Path(path_type=Path), metavar="DIR", help="Run trained with --phema")
@click.option("--widths", type=NumberList(), metavar="LIST", help="With --run: relative widths, as 0.05,0.1")
@click.option("--network", "files", multiple=True, metavar="FILE", help="A network; may be repeated")
@click.option("--guidance-rate", "rates", type=NumberList(), default="1", metavar="LIST", help="Rates; 1: no guidance")
@click.option("--num-steps", type=IntList(), default="4,6,11", metavar="LIST", help="Levels")
@click.option("--solver", type=Choice(SINGLE_PASS), default="ipndm", help="Solver")
@click.option("--ref", required=True, metavar="NPZ|DIR|ZIP", help="Reference")
@click.option("--features", default="inception", metavar="NAME", help="Features of the distance")
@click.option("--num", type=click.IntRange(2), default=10_000, metavar="INT", help="Images of a cell")
@click.option("--outdir", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Where to save")
def main(
    run: Path | None,
    widths: Sequence[float] | None,
    files: Sequence[str],
    rates: Sequence[float],
    num_steps: Sequence[int],
    solver: str,
    ref: str,
    features: str,
    num: int,
    outdir: Path,
) -> None:
    """Fréchet distance over guidance, width of the weight average, and number of levels."""
    if (run is None) != (widths is None) or not (widths or files):
        raise ValueError("give --run with --widths, or --network, or both")
    (outdir / "cells").mkdir(parents=True, exist_ok=True)
    named = {Path(f).stem: Path(f) for f in files}
    if len(named) < len(files):
        raise ValueError("two networks have the same file name: rename one, or measure them apart")
    named |= {f"{w:g}": _of_width(run, w, outdir) for w in widths or ()}
    common = f"--solver={solver} --ref={ref} --features={features} --num={num}"
    results: list[dict[str, Any]] = []
    for (name, path), rate, levels in itertools.product(named.items(), rates, num_steps):
        guided = "" if rate == 1 else f" --guidance-type=cfg --guidance-rate={rate:g}"
        distance = _measured(path, f"{common} --num-steps={levels}{guided}", ref, outdir / "cells")
        results.append({"network": name, "guidance": rate, "num_steps": levels, "distance": distance})
        click.echo(f"{name}, rate {rate:g}, {levels} levels: {distance:.4g}")
    write_json(outdir / "sweep.json", {"ref": ref, "solver": solver, "features": features, "results": results})
    click.echo(_table(results, solver).text())
    _draw(results, outdir / "sweep.png")


def _of_width(run: Path, width: float, outdir: Path) -> Path:
    found = rebuild(run, width, None)
    path = outdir / f"ema-{width:g}.pkl"
    networks.save_network(path, found.net, found.info)
    return path


def _measured(network: Path, arguments: str, ref: str, cells: Path) -> float:
    """The distance of one cell, from its file where the same was measured before."""
    record = {
        "arguments": arguments,
        "network": tensor_hash(networks.load_network(network).state_dict()),
        "ref": _contents(ref),
    }
    cell = cells / f"{digest(record)}.json"
    if not cell.exists():
        call("fid.py", f"calc --network={network} {arguments} --json={cell}")
    return json.loads(cell.read_text())["distance"]


def _contents(ref: str) -> str:
    """What tells one reference from another: the bytes of a file, the files of a folder, of an address its name."""
    if Path(ref).is_dir():
        folder = ImageArchive(ref)
        return folder.fingerprint(folder.image_names)
    return hashlib.sha256(Path(ref).read_bytes()).hexdigest() if Path(ref).is_file() else ref


def _table(results: Sequence[dict[str, Any]], solver: str) -> Table:
    steps = list(dict.fromkeys(r["num_steps"] for r in results))
    cells = {(r["network"], r["guidance"], r["num_steps"]): r["distance"] for r in results}
    kinds = list(dict.fromkeys((r["network"], r["guidance"]) for r in results))
    rows = [(f"{name}, rate {rate:g}", *(f"{cells[name, rate, n]:.4g}" for n in steps)) for name, rate in kinds]
    best = {(min(range(len(kinds)), key=lambda i: cells[(*kinds[i], n)]), c + 1) for c, n in enumerate(steps)}
    heads = [f"{n} levels, {SOLVERS[solver].nfe(num_steps=n)} NFE" for n in steps]
    note = "Marked: the lowest of its column. Guidance calls the network twice an evaluation."
    return Table(f"Fréchet distance, {solver}", ("average", *heads), rows, frozenset(best), note)


def _draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    steps = list(dict.fromkeys(r["num_steps"] for r in results))
    rates = list(dict.fromkeys(r["guidance"] for r in results))
    names = list(dict.fromkeys(r["network"] for r in results))
    cells = {(r["network"], r["guidance"], r["num_steps"]): r["distance"] for r in results}
    with figure(path, "Fréchet distance by average, guidance and levels", (4.2 * len(steps) + 1.2, 4.2)) as fig:
        panels = fig.subplots(1, len(steps), squeeze=False, sharey=True)[0]
        for ax, n in zip(panels, steps, strict=True):
            for i, rate in enumerate(rates):
                values = [cells[name, rate, n] for name in names]
                ax.plot(names, values, color=colour(i), marker=marker(i), label=f"rate {rate:g}")
            ax.set(title=f"{n} levels", xlabel="average of the weights", yscale="log")
        panels[0].set_ylabel("Fréchet distance")
        fig.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")


if __name__ == "__main__":
    main()
