"""One training run on disk: ticks, statistics, snapshots, states, pictures, signals.

The loop trains; this file decides when to write what. Files appear whole or not at all, and a state always follows the
statistics it belongs to, so that a run killed anywhere continues as if nothing had happened.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torch_utils import checkpoint
from torch_utils import distributed as dist
from torch_utils.files import retain
from torch_utils.misc import format_time
from torch_utils.profile import cpu_memory_gib, peak_flops
from torch_utils.stats import StatsFile, Wandb
from training import run_dir as runs
from training.loop import Loop
from training.progress import Progress

__all__ = ["Cadence", "Session"]


@dataclass(frozen=True, kw_only=True)
class Cadence:
    """When to do what. Counts are images (kimg = 1000 images) and ticks, as in the published EDM code."""

    total_kimg: int
    kimg_per_tick: float = 50
    snapshot_ticks: int | None = 50
    state_ticks: int | None = 500
    state_seconds: float | None = 600
    keep_states: int = 2
    keep_snapshots: int | None = None


class _StopRequest:
    """True once SIGTERM or SIGINT arrived; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.name: str | None = None

    def __bool__(self) -> bool:
        return self.name is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        def handle(number: int, _: Any) -> None:
            if self.name is not None and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.name = signal.Signals(number).name

        previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class Session:
    """A loop, a run directory and a cadence."""

    def __init__(
        self,
        loop: Loop,
        cadence: Cadence,
        run_dir: Path,
        info: Mapping[str, Any],
        *,
        wandb: bool = False,
        autocast_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.loop, self.cadence, self.run_dir, self.info = loop, cadence, run_dir, dict(info)
        self.main = dist.get_rank() == 0
        self.tick = 0
        self.tick_start_nimg = 0
        self.elapsed = 0.0  # seconds of training before this process started
        self._want_wandb = wandb
        self._wandb_id: str | None = None
        self._stats_size = 0
        self._peak = peak_flops(loop.device, autocast_dtype)
        self._collective_seconds = 0.0

    # --- state files -----------------------------------------------------------------------------------------------

    def restore(self, path: Path) -> None:
        """Continue from a training state."""
        contents = checkpoint.load(path, kind="state")
        self.loop.load_state_dict(contents.payload["loop"])
        session = contents.info["session"]
        self.tick, self.tick_start_nimg = session["tick"], session["tick_start_nimg"]
        self.elapsed, self._stats_size = session["elapsed"], session["stats_size"]
        self._wandb_id = session["wandb_id"]
        dist.print0(f"Continuing from {path} at {self.loop.nimg / 1000:.3f} kimg")

    def _write_state(self) -> None:
        payload = {"loop": self.loop.state_dict()}  # every process takes part
        if self.main:
            session = {
                "tick": self.tick, "tick_start_nimg": self.tick_start_nimg, "elapsed": self._total_seconds(),
                "stats_size": self._stats.size, "wandb_id": self._wandb.run_id if self._wandb else self._wandb_id,
            }  # fmt: skip
            path = self.run_dir / f"training-state-{self.loop.nimg // 1000:06d}.pt"
            checkpoint.save(path, "state", {**self.info, "session": session}, payload)
            retain(self.run_dir, runs.STATES, self.cadence.keep_states)

    def _write_snapshot(self) -> Path | None:
        self.loop.check_replicas()
        grid = None
        if self.main:
            name = f"{self.loop.nimg // 1000:06d}"
            path = self.run_dir / f"network-snapshot-{name}.pkl"
            info = {**self.info, "nimg": self.loop.nimg}
            self.loop.method.save(path, self.loop.averaged, info)
            if self.loop.method.preview is not None:
                grid = self.run_dir / f"samples-{name}.png"
                self.loop.method.preview(grid, self.loop.averaged)
            if self.cadence.keep_snapshots is not None:
                retain(self.run_dir, "network-snapshot-*.pkl", self.cadence.keep_snapshots)
                retain(self.run_dir, "samples-*.png", self.cadence.keep_snapshots)
        return grid

    # --- the run ---------------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Train to the end or to a stop request; True when the run is finished."""
        self._start = time.monotonic()
        self._stats = StatsFile(self.run_dir / "stats.jsonl", self._stats_size) if self.main else None
        self._wandb = (
            Wandb(self.run_dir, self.run_dir.name, self.info.get("options", {}), self._wandb_id)
            if self._want_wandb and self.main
            else None
        )
        progress = Progress(
            self.loop.nimg,
            self.cadence.total_kimg * 1000,
            device=self.loop.device,
            flops_per_image=self.loop.method.flops_per_image,
            peak_flops=self._peak,
            world_size=self.loop.world,
            enabled=self.main,
        )
        stop = _StopRequest()
        try:
            with stop.listening():
                return self._train(progress, stop)
        finally:
            progress.close()
            if self._stats is not None:
                self._stats.close()
            if self._wandb is not None:
                self._wandb.close()

    def _train(self, progress: Progress, stop: _StopRequest) -> bool:
        loop, cadence = self.loop, self.cadence
        total = cadence.total_kimg * 1000
        tick_began, idle = time.monotonic(), 0.0
        state_began = time.monotonic()
        while loop.nimg < total:
            stopped = loop.step(bool(stop))
            if progress.due(loop.nimg):
                progress.show(loop.stats.peek("Loss/loss"))
            if stopped:
                loop.finish_step()
                self._write_state()
                progress.say(f"{stop.name or 'A stop request'}: state written at {loop.nimg / 1000:.3f} kimg, stopping")
                return False
            done = loop.nimg >= total
            first = self.tick == 0
            if not (done or first or loop.nimg >= self.tick_start_nimg + cadence.kimg_per_tick * 1000):
                continue

            # A tick: figures first, then files, so that a state holds the length of the statistics it goes with.
            loop.finish_step()
            ended = time.monotonic()
            loss = loop.stats.peek("Loss/loss")
            stats = self._collect(ended - tick_began, idle)
            snapshot = cadence.snapshot_ticks and (done or self.tick % cadence.snapshot_ticks == 0)
            grid = self._write_snapshot() if snapshot else None
            if self.main:
                self._stats.write(stats)
                if self._wandb is not None:
                    self._wandb.log(stats, loop.nimg / 1000, grid)
                progress.say(
                    f"tick {self.tick}  {progress.line(loss)}  sec/tick {ended - tick_began:.1f}  "
                    f"maintenance {idle:.1f}  time {format_time(self._total_seconds())}"
                )
            due = done or (cadence.state_ticks and self.tick % cadence.state_ticks == 0 and not first)
            late = cadence.state_seconds is not None and time.monotonic() - state_began > cadence.state_seconds
            late = dist.broadcast_object(late) if cadence.state_seconds is not None else False
            self.tick += 1
            self.tick_start_nimg = loop.nimg
            if due or late:
                self._write_state()
                state_began = time.monotonic()
            tick_began = time.monotonic()
            idle = tick_began - ended
        if self.main:
            runs.mark_finished(self.run_dir)
        return True

    def _total_seconds(self) -> float:
        return self.elapsed + time.monotonic() - self._start

    def _collect(self, seconds: float, idle: float) -> dict[str, Any]:
        """Statistics of the tick that ends here, over all processes."""
        loop = self.loop
        kimg = max(loop.nimg - self.tick_start_nimg, 1) / 1000
        figures = {
            "Progress/tick": self.tick,
            "Progress/kimg": loop.nimg / 1000,
            "Timing/total_sec": self._total_seconds(),
            "Timing/sec_per_tick": seconds,
            "Timing/sec_per_kimg": seconds / kimg,
            "Timing/maintenance_sec": idle,
            "Resources/cpu_mem_gb": cpu_memory_gib(),
        }
        if loop.device.type == "cuda":
            figures["Resources/peak_gpu_mem_gb"] = torch.cuda.max_memory_allocated(loop.device) / 2**30
            figures["Resources/peak_gpu_mem_reserved_gb"] = torch.cuda.max_memory_reserved(loop.device) / 2**30
            torch.cuda.reset_peak_memory_stats(loop.device)
        for name, value in figures.items():
            loop.stats.report(name, value)
        return loop.stats.collect()
