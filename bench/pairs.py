"""Our code against plain implementations of the same formulas (`bench/reference/`), as ratios of CPU time.

    python -m bench.pairs                        # every row
    python -m bench.pairs --only=solver --json   # those whose name holds a word, one JSON line each

Both functions of a row run in turn on one thread, again and again; a ratio is theirs / ours of one turn, above 1 where
ours is faster, and the median counts. Ratios of CPU time hold on a busy machine, where seconds do not. Results are
compared first, so that nobody measures a shortcut. Exit status 1 with `--check` where a row misses its goal.

Ours runs as the command lines do, with freed memory kept (`torch_utils/process.py`). The plain side runs twice in each
turn: in a process of its own that leaves the C library as it is, which is what a user of such code has and what `ratio`
and goals are about, and beside ours with the same setting (`alike`), which is what the arithmetic alone is worth.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import click
import torch

from bench.rows.row import Row
from torch_utils import process
from torch_utils.cli import Command

AREAS = ("solvers", "gits", "metrics", "dataset", "denoiser", "curvature", "transformer")
SHORTEST = 0.02  # seconds of CPU time that one timing takes at the least


def rows() -> dict[str, Row]:
    """Every row by name."""
    found = [row for area in AREAS for row in importlib.import_module(f"bench.rows.{area}").ROWS]
    return {row.name: row for row in found}


def measure(row: Row, repeats: int | None = None, as_users: Callable[[], float] | None = None) -> dict[str, Any]:
    """Ratios with their quartiles, milliseconds of all sides, and the largest relative difference of both results.

    Args:
        as_users: seconds of the plain side in a process of its own (`apart`); None: only in this one.

    Raises:
        ValueError: results that differ by more than the row allows.
    """
    work = row.prepare()
    difference = _difference(work.reference(), work.ours())
    if row.agree is not None and not difference <= row.agree:
        raise ValueError(f"{row.name}: the results differ by {difference:.3g}, at most {row.agree:g} is explained")
    timers = [as_users or _timer(work.reference), _timer(work.reference), _timer(work.ours)]
    turns = [[timer() for timer in timers] for _ in range(repeats or row.repeats)]
    ratio, alike = ([turn[side] / turn[2] for turn in turns] for side in (0, 1))
    users_ms, alike_ms, ours_ms = (round(1e3 * statistics.median(side), 3) for side in zip(*turns, strict=True))
    return {
        "row": row.name, "ratio": round(statistics.median(ratio), 2), "spread": _quartiles(ratio), "goal": row.goal,
        "alike": round(statistics.median(alike), 2), "alike_spread": _quartiles(alike),
        "reference_ms": users_ms, "alike_ms": alike_ms, "ours_ms": ours_ms, "difference": float(f"{difference:.2g}"),
    }  # fmt: skip


@contextmanager
def apart(name: str) -> Iterator[Callable[[], float]]:
    """Seconds of CPU time that the plain side of a row takes in a process without our settings, whenever asked."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=_answer, args=(there, name), daemon=True)
    child.start()
    there.close()

    def ask() -> float:
        here.send(None)
        return here.recv()

    try:
        yield ask
    finally:
        here.close()
        child.join()


def _answer(pipe: Connection, name: str) -> None:
    torch.set_num_threads(1)
    timer = _timer(rows()[name].prepare().reference)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        pipe.send(timer())


def _quartiles(ratios: list[float]) -> list[float]:
    ratios = sorted(ratios)
    return [round(ratios[len(ratios) // 4], 2), round(ratios[-1 - len(ratios) // 4], 2)]


def _difference(reference: Any, ours: Any) -> float:
    if reference is None or ours is None:
        return 0.0
    reference, ours = (torch.as_tensor(v).detach().double() for v in (reference, ours))
    return float((reference - ours).abs().max() / reference.abs().max())


def _timer(function: Callable[[], Any]) -> Callable[[], float]:
    """CPU seconds of one call, as a mean over as many as make a timing long enough; called here to find out, warm."""

    def timed(calls: int) -> float:
        start = time.process_time()
        for _ in range(calls):
            function()
        return (time.process_time() - start) / calls

    timed(1)
    calls = max(1, round(SHORTEST / max(timed(1), 1e-6)))
    return lambda: timed(calls)


@click.command(cls=Command)
@click.option("--only", metavar="WORD", default="", help="Rows whose name holds this")
@click.option("--repeats", type=click.IntRange(min=1), help="Timed pairs; default: the row's own")
@click.option("--json", "as_json", is_flag=True, help="One JSON line per row instead of a table")
@click.option("--check", is_flag=True, help="Fail where a row misses its goal")
def main(only: str, repeats: int | None, as_json: bool, check: bool) -> None:
    """Our code against plain implementations of the same formulas."""
    process.tune()
    torch.set_num_threads(1)
    chosen = [row for name, row in rows().items() if only in name]
    if not chosen:
        raise click.UsageError(f"no row's name holds '{only}': the rows are {', '.join(rows())}")
    missed = []
    for row in chosen:
        with apart(row.name) as as_users:
            result = measure(row, repeats, as_users)
        if result["ratio"] < row.goal:
            missed.append(row.name)
        click.echo(json.dumps(result, ensure_ascii=False) if as_json else _line(result))
    if check and missed:
        raise click.ClickException(f"below the goal: {', '.join(missed)}")


def _line(result: dict[str, Any]) -> str:
    (low, high), (alike_low, alike_high) = result["spread"], result["alike_spread"]
    return (
        f"{result['row']:<44}{result['ratio']:>7.2f} ({low:.2f} to {high:.2f}) goal {result['goal']:<4g}"
        f" alike {result['alike']:.2f} ({alike_low:.2f} to {alike_high:.2f})"
        f"   {result['reference_ms']:.2f}, {result['alike_ms']:.2f} / {result['ours_ms']:.2f} ms"
    )


if __name__ == "__main__":
    main()
