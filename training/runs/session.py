"""One training run on disk: ticks, statistics, snapshots, states, pictures, signals.

The loop trains; this file decides when to write what. Files appear whole or not at all, and a state always follows the
statistics it belongs to, so that a run killed anywhere continues as if nothing had happened.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from torch_utils import checkpoint
from torch_utils import distributed as dist
from torch_utils.checkpoint import tensor_hash
from torch_utils.files import atomic_write, retain
from torch_utils.misc import format_time
from torch_utils.options import Alias, OptionGroup, opt
from torch_utils.pickles.foreign import naming
from torch_utils.profile import cpu_memory_gib, peak_flops
from torch_utils.signals import SignalExit
from torch_utils.stats import StatsFile
from torch_utils.trackers import TRACKERS, Tracker, TrackerList
from training.loop.loop import Loop
from training.runs import run_dir as runs
from training.runs.meters import Best, Meter
from training.runs.progress import Progress
from training.runs.published_state import is_published, read_published
from training.runs.stop import StopRequest


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of what a run writes, and when. Ticks are counted in images, as in the published EDM code."""

    group: ClassVar = OptionGroup("Files and reporting", "What a run writes, and when.", rank=6)

    tick: float = opt(50.0, "Status line and statistics every KIMG", metavar="KIMG", above=0)
    snap: int | None = opt(50, "Network snapshot and sample grid every TICKS; 0 = none", metavar="TICKS", at_least=0)
    dump: int | None = opt(500, "Training state every TICKS; 0 = only by time", metavar="TICKS", at_least=0)
    checkpoint_mins: float = opt(
        10.0, "Training state also after this many minutes; 0 = never", metavar="MIN", at_least=0, may_change=True
    )
    keep: int = opt(2, "Training states to keep", metavar="INT", at_least=1, may_change=True)
    keep_snapshots: int | None = opt(
        None, "Snapshots to keep; default: all", metavar="INT", at_least=1, may_change=True
    )
    track: tuple[str, ...] | None = opt(
        None, f"Also log to these trackers, which need no network: {', '.join(TRACKERS)}", metavar="LIST",
        type=TrackerList(), may_change=True,
        aliases=(Alias("--wandb", "Same as --track=wandb", lambda on: ("wandb",) if on else None, bool),),
    )  # fmt: skip


class Session:
    """A loop, a run directory, and when what is written there.

    Args:
        info: JSON-able facts that go into every file.
        autocast_dtype: of the trunk, for the utilisation figure.
        meter: measures a network; all processes call it together.
    """

    def __init__(
        self,
        loop: Loop,
        options: ReportOptions,
        run_dir: Path,
        info: Mapping[str, Any],
        *,
        autocast_dtype: torch.dtype = torch.float32,
        meter: Meter | None = None,
    ) -> None:
        self.loop, self.options, self.run_dir, self.info = loop, options, run_dir, dict(info)
        self.main = dist.get_rank() == 0
        self._total = loop.options.total_kimg * 1000
        self.tick = 0
        self.tick_start_nimg = 0
        self.elapsed = 0.0  # seconds of training before this process started
        self._trackers: dict[str, Tracker] = {}
        self._tracked: dict[str, str] = {}  # tracker -> the run it knows this one by
        self._stats_size = 0
        self._branch_of: Path | None = None
        self._peak = peak_flops(loop.device, autocast_dtype)
        self._meter = meter
        self._best: Best | None = None
        self._enough: str | None = None  # why the run ends before its time

    # --- state files -----------------------------------------------------------------------------------------------

    def restore(self, path: Path) -> None:
        """Take over a training state, ours or one of published EDM code; nothing on disk changes.

        Raises:
            ValueError: not a state, or one that does not fit the options or the data.
        """
        if is_published(path):
            state = read_published(path, self.loop)
            with naming(path):
                self.loop.load_state_dict(state)
            self.tick_start_nimg = self.loop.nimg
            return
        contents = checkpoint.load(path, kind="state")
        with naming(path):
            self._check_origin(contents.info)
            self.loop.load_state_dict(contents.payload["loop"])
        session = contents.info["session"]
        self.tick, self.tick_start_nimg = session["tick"], session["tick_start_nimg"]
        self.elapsed, self._stats_size = session["elapsed"], session["stats_size"]
        self._tracked = session.get("trackers", {})
        self._best = Best(*session["best"]) if session["best"] else None
        if path.parent.resolve() != self.run_dir.resolve():
            self._branch_of = path.parent

    def _check_origin(self, info: Mapping[str, Any]) -> None:
        """Refuse the state of another method, and one that saw other data; ValueError."""
        if info.get("method") != self.info.get("method"):
            raise ValueError(f"it is a state of the method {info.get('method')}, not of {self.info.get('method')}")
        seen, given = (facts.get("dataset", {}).get("fingerprint") for facts in (info, self.info))
        if seen is not None and given is not None and seen != given:
            raise ValueError(
                "it was trained on other data than --data holds now: give the data it was trained on, or begin a new "
                "run from its weights with --new-run and --transfer=SNAPSHOT"
            )

    def _inherit_statistics(self, source: Path) -> None:
        """A run that branches off another one begins with a copy of its statistics, and is a new run to trackers."""
        self._tracked = {}
        stats = source / "stats.jsonl"
        head = stats.read_bytes()[: self._stats_size] if stats.is_file() else b""
        self._stats_size = len(head)
        with atomic_write(self.run_dir / "stats.jsonl") as file:
            file.write(head)

    def _write_state(self) -> None:
        payload = {"loop": self.loop.state_dict()}  # every process takes part
        if self.main:
            self._stats.sync()
            session = {
                "tick": self.tick, "tick_start_nimg": self.tick_start_nimg, "elapsed": self._total_seconds(),
                "stats_size": self._stats.size, "trackers": self._tracked, "best": self._best,
            }  # fmt: skip
            path = self.run_dir / f"training-state-{self.loop.nimg // 1000:06d}.pt"
            checkpoint.save(path, "state", {**self.info, "session": session}, payload)
            retain(self.run_dir, runs.STATES, self.options.keep)

    def _lacks_snapshot(self) -> bool:
        return dist.broadcast_object(not (self.run_dir / f"network-snapshot-{self.loop.nimg // 1000:06d}.pkl").exists())

    def _write_snapshot(self) -> Path | None:
        self.loop.check_replicas()
        grid = None
        if self.main:
            name = f"{self.loop.nimg // 1000:06d}"
            info = {**self.info, "nimg": self.loop.nimg, "total_nimg": self._total}
            for key, average in self.loop.method.averages.items():
                if average.sigma_rel is not None:
                    facts = {**info, "sigma_rel": average.sigma_rel}
                    one = {**self.loop.averaged, "ema": self.loop.averaged[key]}
                    self.loop.method.save(self.run_dir / f"{key}-{name}.pkl", one, facts)
            self.loop.method.save(self.run_dir / f"network-snapshot-{name}.pkl", self.loop.averaged, info)
            if self.loop.method.preview is not None:
                grid = self.run_dir / f"samples-{name}.png"
                self.loop.method.preview(grid, self.loop.averaged)
            if self.options.keep_snapshots is not None:
                retain(self.run_dir, "network-snapshot-*.pkl", self.options.keep_snapshots)
                retain(self.run_dir, "samples-*.png", self.options.keep_snapshots)
        return grid

    # --- the run ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to the end.

        Raises:
            SignalExit: some process was asked to stop before that; the state is written.
        """
        self._start = time.monotonic()
        if self.main and self._branch_of is not None:
            self._inherit_statistics(self._branch_of)
        self._stats = StatsFile(self.run_dir / "stats.jsonl", self._stats_size) if self.main else None
        if self.main:
            options = self.info.get("options", {})
            for name in self.options.track or ():
                self._trackers[name] = TRACKERS[name](self.run_dir, options, self._tracked.get(name))
                self._tracked[name] = self._trackers[name].run_id
        progress = Progress(
            self.loop.nimg,
            self._total,
            device=self.loop.device,
            flops_per_image=self.loop.method.flops_per_image,
            peak_flops=self._peak,
            world_size=self.loop.world,
            enabled=self.main,
        )
        stop = StopRequest()
        try:
            with stop.listening():
                self._train(progress, stop)
        finally:
            progress.close()
            if self._stats is not None:
                self._stats.close()
            for tracker in self._trackers.values():
                tracker.close()

    def _train(self, progress: Progress, stop: StopRequest) -> None:
        loop, total = self.loop, self._total
        self._tick_began = self._state_began = time.monotonic()
        self._idle = 0.0  # seconds spent on files and metrics since the last tick
        if loop.nimg >= total and self.options.snap and self._lacks_snapshot():
            self._write_snapshot()  # continued with a shorter --duration
        while loop.nimg < total and self._enough is None:
            stopped = loop.step(bool(stop))
            if progress.due(loop.nimg):
                progress.show(loop.stats.peek("Loss/loss"))
            done = loop.nimg >= total
            if done or self.tick == 0 or loop.nimg >= self.tick_start_nimg + self.options.tick * 1000:
                self._end_tick(progress, done)
            if stopped and not done and self._enough is None:
                loop.finish_step()
                self._write_state()
                end = SignalExit(max(dist.all_gather_object(stop.number)), said=True)
                progress.say(f"{end.name}: state written at {loop.nimg / 1000:.3f} kimg, stopping")
                raise end
        if self.main:
            runs.mark_finished(self.run_dir)

    def _end_tick(self, progress: Progress, done: bool) -> None:
        """Figures first, then files, so that a state holds the length of the statistics it goes with."""
        loop, options, tick = self.loop, self.options, self.tick

        def due(every: int | None) -> bool:
            return bool(every) and (done or tick % every == 0)

        loop.finish_step()
        ended = time.monotonic()
        loss, seconds, idle = loop.stats.peek("Loss/loss"), ended - self._tick_began, self._idle
        parts = [f"tick {tick}", progress.line(loss)]
        if self._meter is not None and due(self._meter.every) and tick > 0:
            parts += [*self._measure()]
            done = done or self._enough is not None
        parts += [*self._own_figures()]
        parts += [*self._compare_processes()]
        stats = self._collect(seconds, idle)
        grid = self._write_snapshot() if due(options.snap) else None
        if self.main:
            self._stats.write({**stats, "weights": self._weights()})
            means = {name: s["mean"] for name, s in stats.items()}
            for tracker in self._trackers.values():
                tracker.log(means, loop.nimg, {} if grid is None else {"Samples/grid": grid})
            parts += [
                f"sec/tick {seconds:.1f}",
                f"maintenance {idle:.1f}",
                f"time {format_time(self._total_seconds())}",
            ]
            progress.say("  ".join(parts))
        self.tick += 1
        self.tick_start_nimg = loop.nimg
        limit = options.checkpoint_mins * 60
        late = bool(limit) and dist.broadcast_object(time.monotonic() - self._state_began > limit)
        if done or late or (due(options.dump) and tick > 0):
            self._write_state()
            self._state_began = time.monotonic()
        self._tick_began = time.monotonic()
        self._idle = self._tick_began - ended

    def _measure(self) -> Iterator[str]:
        """Figures of what a snapshot would hold, into the statistics; yields what the status line says."""
        loop = self.loop
        figures = self._meter(loop.method.export(loop.averaged))
        for name, value in figures.items():
            loop.stats.report(f"Metrics/{name}", value)
        (name, value), *others = figures.items()
        kimg = loop.nimg / 1000
        best = self._best = self._best.after(name, value, kimg) if self._best else Best(value, kimg)
        loop.stats.report(f"Metrics/{name}_best", best.value)
        yield f"{name} {value:.4g} (best {best.value:.4g} at {best.kimg:.1f} kimg)"
        yield from (f"{name} {value:.4g}" for name, value in others)
        self._enough = self._meter.verdict(figures, best)
        if self._enough is not None:
            yield f"ends here: {self._enough}"

    def _weights(self) -> str:
        """16 digits that are the same for the same averaged weights: two runs are compared by them, bit by bit."""
        named = {f"{k}.{name}": t for k, net in self.loop.averaged.items() for name, t in net.state_dict().items()}
        return tensor_hash(named)[:16]

    def _own_figures(self) -> Iterator[str]:
        """What the method itself measures, into the statistics and the status line."""
        if self.loop.method.figures is None:
            return
        for name, value in self.loop.method.figures(self.loop.averaged).items():
            self.loop.stats.report(name, value)
            yield f"{name.lower()} {value:.4g}"

    def _compare_processes(self) -> Iterator[str]:
        """Speed of every process and the share of time spent waiting for others, where there are others."""
        if self.loop.timer is None:
            return
        own = self.loop.timer.collect()
        everyone = dist.all_gather_object(own)
        speeds = [times.images_per_second for times in everyone]
        for name, value in {
            "Timing/allreduce_share": own.share,
            "Timing/rank_img_per_sec_min": min(speeds),
            "Timing/rank_img_per_sec_max": max(speeds),
        }.items():
            self.loop.stats.report(name, value)
        share = sum(times.share for times in everyone) / len(everyone)
        yield f"allreduce {100 * share:.0f}%"
        yield f"img/s per process {min(speeds):.4g}-{max(speeds):.4g}"

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
