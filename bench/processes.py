"""Several training processes on one machine against one: images per second, and what the same batch costs in CPU time.

    OMP_NUM_THREADS=1 python -m bench.processes --preset=digits --processes=2

Runs of `bench.train` in turn, every ratio from runs that follow each other: one process with the whole batch, one with
its share of it alone, and all processes with a share each. `speed` above 1: the processes together train faster than
one; it holds on an idle machine only, and no more than the cores gain (two hyper-threads of one core: about 1.2). CPU
times hold on a busy one, too: `repeated` is the part of them that every process has to do again (weights, Python),
`exchange` what averaging gradients costs on top of it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from typing import Any

import click

from bench.commands import ROOT
from bench.presets import PRESETS
from torch_utils.cli import Command

__all__ = ["compare", "main"]


def _train(preset: str, batch: int, steps: int, processes: int) -> dict[str, Any]:
    """The figures of one run of bench.train with `batch` images per process."""
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [
        sys.executable,
        *start,
        "-m",
        "bench.train",
        f"--preset={preset}",
        f"--batch={batch}",
        f"--steps={steps}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise click.ClickException(f"bench.train failed: {(done.stderr or done.stdout).strip()[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(whole: dict[str, Any], share: dict[str, Any], together: dict[str, Any]) -> dict[str, float]:
    """Ratios of three runs: one process with the whole batch, one with a share, all with a share each."""
    processes = together["processes"]
    return {
        "speed": processes * together["img_per_sec"] / whole["img_per_sec"],
        "cpu_time": together["cpu_ms_per_step"] / whole["cpu_ms_per_step"],
        "repeated": processes * share["cpu_ms_per_step"] / whole["cpu_ms_per_step"] - 1,
        "exchange": together["cpu_ms_per_step"] / (processes * share["cpu_ms_per_step"]) - 1,
    }


@click.command(cls=Command)
@click.option("--preset", type=click.Choice(list(PRESETS)), default="digits", show_default=True, help="What to train")
@click.option("--processes", type=click.IntRange(min=2), default=2, show_default=True, help="How many against one")
@click.option("--batch", type=click.IntRange(min=2), help="Batch over all processes; default: the preset's")
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True, help="Timed steps of a run")
@click.option("--turns", type=click.IntRange(min=1), default=3, show_default=True, help="Times that all runs are made")
def main(preset: str, processes: int, batch: int | None, steps: int, turns: int) -> None:
    """Several training processes on one machine against one."""
    batch = batch or PRESETS[preset].options.batch
    if batch % processes:
        raise click.UsageError(f"--batch={batch} cannot be shared equally by {processes} processes: give a multiple")
    share = batch // processes
    rounds = [
        compare(*(_train(preset, size, steps, n) for size, n in ((batch, 1), (share, 1), (share, processes))))
        for _ in range(turns)
    ]
    found = {name: round(statistics.median(r[name] for r in rounds), 3) for name in rounds[0]}
    click.echo(json.dumps({"preset": preset, "processes": processes, "batch": batch, **found}))


if __name__ == "__main__":
    main()
