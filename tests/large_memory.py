"""Tests that fill most of a machine's memory take turns, over all processes of pytest-xdist."""

import fcntl
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

MEMINFO = Path("/proc/meminfo")


@pytest.fixture
def reserve_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], None]]:
    """`reserve_memory(gibibytes)` waits for the other large tests and skips the test where there is less."""
    with open(tmp_path_factory.getbasetemp().parent / "large-memory.lock", "w") as lock:

        def reserve(gibibytes: int) -> None:
            fcntl.flock(lock, fcntl.LOCK_EX)
            rows = dict(line.split(":") for line in MEMINFO.read_text().splitlines()) if MEMINFO.exists() else {}
            if "MemAvailable" in rows and int(rows["MemAvailable"].split()[0]) < gibibytes * 2**20:
                pytest.skip(f"needs {gibibytes} GiB of memory")

        yield reserve
        gc.collect()  # a training loop is a cycle of references: the next test shall not find its weights
