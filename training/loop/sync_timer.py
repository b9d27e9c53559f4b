"""How long a process computes and how long it waits for the gradients of the others.

A process has made its last gradient when DDP hands the last bucket to the all-reduce; from there to the end of the
backward pass it waits, for the network or for a slower process. Earlier buckets travel while gradients are still being
computed and cost nothing. On a GPU both moments are events on the stream, read back once per tick. `end` is called
before anything else that waits for other processes.
"""

# No `from __future__ import annotations`: DDP compares the annotations of a communication hook with its own types.
import time
from typing import NamedTuple

import torch
from torch import distributed
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

_MAX_STEPS = 256  # timed per tick; the rest of a long tick is taken to be alike

Mark = float | torch.cuda.Event


class StepTimes(NamedTuple):
    """Sums over the timed steps: seconds in all, seconds of these waiting, images of this process."""

    seconds: float
    waiting: float
    images: int

    @property
    def share(self) -> float:
        return self.waiting / max(self.seconds, 1e-9)

    @property
    def images_per_second(self) -> float:
        """Speed while computing: what this process would reach if it never had to wait."""
        return self.images / max(self.seconds - self.waiting, 1e-9)


class SyncTimer:
    """Marks around steps and at the last bucket of each backward pass."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._images = 0
        self._steps: list[tuple[Mark, Mark]] = []
        self._waits: list[tuple[Mark, Mark]] = []
        self._began: Mark | None = None
        self._ready: Mark | None = None

    def hook(self, _: object, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """Communication hook for DDP: the usual averaging, and a mark when nothing is left to compute."""
        if bucket.is_last() and self._began is not None:
            self._ready = self._mark()
        return allreduce_hook(None, bucket)

    def begin(self) -> None:
        """Mark the start of a step."""
        self._began = self._mark() if len(self._steps) < _MAX_STEPS else None

    def synchronised(self) -> None:
        """Mark the end of the backward pass that exchanged gradients."""
        if self._ready is not None:
            self._waits.append((self._ready, self._mark()))
            self._ready = None

    def end(self, images: int) -> None:
        """Mark the end of a step, of whose batch this process had `images`."""
        if self._began is not None:
            self._steps.append((self._began, self._mark()))
            self._images += images

    def collect(self) -> StepTimes:
        """Figures since the last call; on a GPU the caller has waited for the device."""
        times = StepTimes(sum(map(self._seconds, self._steps)), sum(map(self._seconds, self._waits)), self._images)
        self._steps, self._waits, self._images = [], [], 0
        return times

    def _mark(self) -> Mark:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, span: tuple[Mark, Mark]) -> float:
        begin, end = span
        return begin.elapsed_time(end) / 1000 if self._cuda else end - begin
