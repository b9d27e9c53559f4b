"""Our code against plain implementations of the same formulas (`bench/reference/`), as ratios of CPU time.

    python -m bench.pairs                        # every row
    python -m bench.pairs --only=solver --json   # those whose name holds a word, one JSON line each

Both functions of a row run in turn on one thread, again and again; a ratio is theirs / ours of one turn, above 1 where
ours is faster, and the median counts. Ratios of CPU time hold on a busy machine, where seconds do not. Results are
compared first, so that nobody measures a shortcut. Exit status 1 with `--check` where a row misses its goal.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import click
import torch

from bench.rows.row import Row
from torch_utils.cli import Command

AREAS = ("solvers", "gits", "metrics", "dataset", "denoiser", "curvature", "transformer")
SHORTEST = 0.02  # seconds of CPU time that one timing takes at the least


def rows() -> dict[str, Row]:
    """Every row by name."""
    found = [row for area in AREAS for row in importlib.import_module(f"bench.rows.{area}").ROWS]
    return {row.name: row for row in found}


def measure(row: Row, repeats: int | None = None) -> dict[str, Any]:
    """`ratio`, its quartiles, milliseconds of both, and the largest relative difference of their results.

    Raises:
        ValueError: results that differ by more than the row allows.
    """
    work = row.prepare()
    difference = _difference(work.reference(), work.ours())
    if row.agree is not None and not difference <= row.agree:
        raise ValueError(f"{row.name}: the results differ by {difference:.3g}, at most {row.agree:g} is explained")
    times = [_calls(f) for f in work]
    turns = []
    for _ in range(repeats or row.repeats):
        turns.append([_timed(f, calls) for f, calls in zip(work, times, strict=True)])
    ratios = sorted(theirs / ours for theirs, ours in turns)
    return {
        "row": row.name, "ratio": round(statistics.median(ratios), 2), "goal": row.goal,
        "spread": [round(ratios[len(ratios) // 4], 2), round(ratios[-1 - len(ratios) // 4], 2)],
        "reference_ms": round(1e3 * statistics.median(t for t, _ in turns), 3),
        "ours_ms": round(1e3 * statistics.median(t for _, t in turns), 3),
        "difference": float(f"{difference:.2g}"),
    }  # fmt: skip


def _difference(reference: Any, ours: Any) -> float:
    if reference is None or ours is None:
        return 0.0
    reference, ours = (torch.as_tensor(v).detach().double() for v in (reference, ours))
    return float((reference - ours).abs().max() / reference.abs().max())


def _timed(function: Callable[[], Any], calls: int) -> float:
    start = time.process_time()
    for _ in range(calls):
        function()
    return (time.process_time() - start) / calls


def _calls(function: Callable[[], Any]) -> int:
    """How often to call, that a timing is long enough to be read; the call made here also warms up."""
    return max(1, round(SHORTEST / max(_timed(function, 1), 1e-6)))


@click.command(cls=Command)
@click.option("--only", metavar="WORD", default="", help="Rows whose name holds this")
@click.option("--repeats", type=click.IntRange(min=1), help="Timed pairs; default: the row's own")
@click.option("--json", "as_json", is_flag=True, help="One JSON line per row instead of a table")
@click.option("--check", is_flag=True, help="Fail where a row misses its goal")
def main(only: str, repeats: int | None, as_json: bool, check: bool) -> None:
    """Our code against plain implementations of the same formulas."""
    torch.set_num_threads(1)
    chosen = [row for name, row in rows().items() if only in name]
    if not chosen:
        raise click.UsageError(f"no row's name holds '{only}': the rows are {', '.join(rows())}")
    missed = []
    for row in chosen:
        result = measure(row, repeats)
        if result["ratio"] < row.goal:
            missed.append(row.name)
        click.echo(json.dumps(result, ensure_ascii=False) if as_json else _line(result))
    if check and missed:
        raise click.ClickException(f"below the goal: {', '.join(missed)}")


def _line(result: dict[str, Any]) -> str:
    low, high = result["spread"]
    return (
        f"{result['row']:<44}{result['ratio']:>8.2f}  ({low:.2f} to {high:.2f})  goal {result['goal']:g}   "
        f"{result['reference_ms']:.2f} / {result['ours_ms']:.2f} ms"
    )


if __name__ == "__main__":
    main()
