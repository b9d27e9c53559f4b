"""How a run tells where it stands: a tqdm bar on a terminal, lines at growing intervals elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque

import torch
from tqdm import tqdm

from torch_utils.misc import format_time
from torch_utils.profile import cpu_memory_gib


class Progress:
    """Speed over a sliding window, ETA, utilisation and memory; speaks on rank 0 only.

    The first line comes after the first few seconds, later ones at intervals doubling up to a minute, so that a log
    file stays short and a newcomer is not left waiting.
    """

    FIRST_SECONDS = 3.0
    LONGEST_SECONDS = 60.0

    def __init__(
        self,
        nimg: int,
        total_nimg: int,
        *,
        device: torch.device,
        flops_per_image: float | None,
        peak_flops: float | None,
        world_size: int,
        enabled: bool,
    ) -> None:
        self.nimg, self.total = nimg, total_nimg
        self.device = device
        self.flops, self.peak, self.world = flops_per_image, peak_flops, world_size
        self.enabled = enabled
        self._marks: deque[tuple[float, int]] = deque([(time.perf_counter(), nimg)], maxlen=64)
        self._interval = self.FIRST_SECONDS
        self._next = time.perf_counter() + self._interval
        self._bar = None
        if enabled and sys.stderr.isatty():
            self._bar = tqdm(total=total_nimg, initial=nimg, unit="img", unit_scale=True, dynamic_ncols=True)

    @property
    def images_per_second(self) -> float:
        (t0, n0), (t1, n1) = self._marks[0], self._marks[-1]
        return (n1 - n0) / max(t1 - t0, 1e-9) if n1 > n0 else 0.0

    def due(self, nimg: int) -> bool:
        """Record `nimg`; true when it is time to show figures (reading the loss back waits for the device)."""
        now = time.perf_counter()
        self._marks.append((now, nimg))
        if self._bar is not None:
            self._bar.update(nimg - self._bar.n)
        self.nimg = nimg
        return self.enabled and now >= self._next

    def line(self, loss: float) -> str:
        """`kimg 51.2  loss 0.182  img/s 1893  mfu 41%  sec/kimg 0.53  gpu 23.1G  eta 1d 04h`."""
        speed = self.images_per_second
        parts = [f"kimg {self.nimg / 1000:.1f}", f"loss {loss:.4f}"]
        if speed > 0:
            parts += [f"img/s {speed:.{0 if speed >= 100 else 1}f}"]
            if self.flops and self.peak:
                parts += [f"mfu {100 * self.flops * speed / (self.peak * self.world):.1f}%"]
            parts += [f"sec/kimg {1000 / speed:.2f}"]
        if self.device.type == "cuda":
            parts += [f"gpu {torch.cuda.max_memory_allocated(self.device) / 2**30:.1f}G"]
        parts += [f"cpu {cpu_memory_gib():.1f}G"]
        if speed > 0:
            parts += [f"eta {format_time(max(self.total - self.nimg, 0) / speed)}"]
        return "  ".join(parts)

    def show(self, loss: float) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}")
            self._interval = 1.0
        else:
            print(self.line(loss), flush=True)
            self._interval = min(2 * self._interval, self.LONGEST_SECONDS)
        self._next = time.perf_counter() + self._interval

    def say(self, text: str) -> None:
        """A line that does not tear the bar."""
        if self.enabled:
            if self._bar is not None:
                self._bar.clear()
            print(text, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
