"""Time and memory of the GITS cost matrix: warm-up samples of random numbers, without a network.

    python -m bench.gits --num-warmup=256 --shape=3,32,32

Prints one JSON line per metric and grid: the seconds that all warm-up samples take, the CPU time in them (which a busy
machine changes less), and the most memory a chunk of `--batch` samples needs besides its trajectory (on a CPU, the
growth of the process's peak). Neither that memory nor the trajectory depends on `--num-warmup`.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from pathlib import Path

import click
import torch

from samplers import get_schedule
from samplers.gits.costs import METRICS, cost_sums
from torch_utils import distributed as dist
from torch_utils.cli import Command, IntList
from torch_utils.profile import time_it


@click.command(cls=Command)
@click.option("--num-warmup", type=click.IntRange(min=1), default=256, show_default=True, help="Warm-up samples")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Samples at once")
@click.option("--shape", type=IntList(), default="3,32,32", show_default=True, help="Shape of a sample")
@click.option("--grids", type=IntList(), default="61,121", show_default=True, help="Noise levels of the teacher")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Timed runs")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto")
def main(num_warmup: int, batch: int, shape: list[int], grids: list[int], repeats: int, device: str) -> None:
    """Time and memory of the GITS cost matrix."""
    with dist.process_group(device) as dev:
        for T in grids:
            sigmas = get_schedule(T)
            states = torch.randn(T, batch, *shape, device=dev)
            directions = torch.randn(T - 1, batch, *shape, device=dev)
            for metric in METRICS:

                def chunk(metric: str = metric) -> None:
                    cost_sums(states, directions, sigmas, metric)  # noqa: B023

                _reset_peak(dev)
                before = _memory(dev)
                used = time.process_time()
                seconds = statistics.median(time_it(chunk, dev, repeats=repeats, warmup=1))
                used = (time.process_time() - used) / (repeats + 1)
                result = {
                    "metric": metric, "levels": T, "num_warmup": num_warmup, "shape": list(shape),
                    "device": str(dev), "threads": torch.get_num_threads(),
                    "seconds": round(seconds * num_warmup / batch, 3),
                    "cpu_seconds": round(used * num_warmup / batch, 3),
                    "peak_mib": round((_memory(dev) - before) / 2**20, 1),
                    "trajectory_mib": round((states.nbytes + directions.nbytes) / 2**20, 1),
                }  # fmt: skip
                dist.print0(json.dumps(result))


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def _memory(device: torch.device) -> int:
    """Peak since the last reset, in bytes; where the system cannot reset it, of the whole process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
