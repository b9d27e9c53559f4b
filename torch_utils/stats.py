"""Training statistics: moments gathered on the device, reduced once per tick, written as console lines and stats.jsonl.

`Collector.report` adds (count, sum, sum of squares) of a tensor to a device-side accumulator and never waits for the
device. `Collector.collect` sums over processes and reads back once. Moments are taken in float32 per tensor and
accumulated in float64.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import torch

from torch_utils import distributed as dist


class Collector:
    """Running moments of named quantities since the last `collect`."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        # float64 is missing on some accelerators (mps); count and sums of one tick fit float32 there
        self.dtype = torch.float32 if self.device.type == "mps" else torch.float64
        self._moments: dict[str, torch.Tensor] = {}

    def report(self, name: str, value: torch.Tensor | float) -> None:
        """Add every element of `value`; the names must be the same on every process."""
        if not isinstance(value, torch.Tensor):
            value = torch.tensor(value, dtype=self.dtype)
        elif value.dtype != self.dtype:
            value = value.detach().float()
        count = torch.full((), value.numel(), dtype=value.dtype, device=value.device)
        moments = torch.stack([count, value.sum(), value.square().sum()]).to(self.device, self.dtype)
        if name in self._moments:
            self._moments[name] += moments
        else:
            self._moments[name] = moments

    def peek(self, name: str) -> float:
        """Mean so far on this process; waits for the device."""
        if name not in self._moments:
            return float("nan")
        num, total, _ = self._moments[name].tolist()
        return total / max(num, 1)

    def names(self, prefix: str) -> list[str]:
        """Names reported since the last `collect` that begin with `prefix`."""
        return [name for name in self._moments if name.startswith(prefix)]

    def collect(self) -> dict[str, dict[str, float]]:
        """`{name: {num, mean, std}}` over all processes, then start anew."""
        if not self._moments:
            return {}
        names = sorted(self._moments)
        table = dist.all_reduce_sum(torch.stack([self._moments[name] for name in names])).tolist()
        self._moments = {}
        result = {}
        for name, (num, total, squares) in zip(names, table, strict=True):
            mean = total / max(num, 1)
            std = max(squares / max(num, 1) - mean**2, 0.0) ** 0.5 if num > 1 else 0.0
            result[name] = {"num": int(num), "mean": mean, "std": std}
        return result

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {name: moments.cpu() for name, moments in self._moments.items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        self._moments = {name: m.to(self.device, self.dtype) for name, m in state.items()}


class StatsFile:
    """stats.jsonl: one JSON object per tick, appended and flushed; rewound to a known length on resume."""

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path = path
        mode = "r+b" if path.exists() else "w+b"
        self._file = open(path, mode)  # noqa: SIM115  # lives as long as the run
        self._file.truncate(min(size, path.stat().st_size))
        self._file.seek(0, os.SEEK_END)

    def write(self, stats: Mapping[str, Any]) -> None:
        self._file.write((json.dumps({**stats, "timestamp": time.time()}) + "\n").encode())
        self._file.flush()

    def sync(self) -> None:
        """Make what was written durable."""
        os.fsync(self._file.fileno())

    @property
    def size(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


class Tee:
    """While entered, everything printed also goes to a log file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._streams: tuple[TextIO, TextIO] | None = None

    def __enter__(self) -> Tee:
        self._file = open(self._path, "a", encoding="utf-8", errors="replace")
        self._streams = (sys.stdout, sys.stderr)
        sys.stdout, sys.stderr = _Both(sys.stdout, self._file), sys.stderr
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout, sys.stderr = self._streams
        self._file.close()


class _Both:
    def __init__(self, stream: TextIO, file: TextIO) -> None:
        self._stream, self._file = stream, file

    def write(self, text: str) -> int:
        self._file.write(text)
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()
        self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
