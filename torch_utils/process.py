"""Settings of the process that PyTorch itself leaves as the system has them, and that cost a CPU run 10 to 90 %.

The command lines call `begin` before they import torch; importing a library of this project never does. Each setting
gives way to one made by the user, and FEWSTEP_TUNE=0 leaves all of them out (docs/performance.md has the figures).

- Memory: glibc hands every freed tensor back to the system and faults its pages in again at the next step. Kept
  instead, they are there already.
- Threads: OpenMP threads spin while they wait. When another process needs the core, the thread waited for does not run:
  ten times slower and more. A thousand turns bridge the gaps between two operations, and then the core is free.
- How many: as many threads as there are real cores in reach (not hyper-threads, not more than the container's quota),
  shared by the processes that torchrun started on this machine.
- Start: imports make objects that stay, and the garbage collector walks over all of them again and again, and once more
  at the end. It waits for the command itself, and then leaves them alone.
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from torch_utils.signals import ending_at_once

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h
_SPINS = "1000"
_begun = False


def tune() -> None:
    """Make the settings for this process and its children; torch must not have been imported yet."""
    if os.environ.get("FEWSTEP_TUNE") == "0":
        return
    _keep_freed_memory()
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores() // local, 1)))


def begin() -> None:
    """`tune`, and no collection of garbage until `imported`: for a process that begins with a command line."""
    global _begun
    _begun = True
    _open_standard_streams()
    tune()
    if os.environ.get("FEWSTEP_TUNE") != "0":
        gc.disable()


def _open_standard_streams() -> None:
    """Put /dev/null in the place of closed ones (`2>&-`), or the next file opened gets it, and what is said."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
        if getattr(sys, name) is None:
            stream = open(number, "w" if number else "r", closefd=False, encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, stream)


def imported() -> None:
    """End what `begin` began: what was imported is never looked at again."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


@contextmanager
def late_imports() -> Iterator[None]:
    """What a command itself imports is never looked at either, and a signal ends it there, where `begin` was called."""
    if gc.get_freeze_count():
        gc.disable()
    try:
        with ending_at_once() if _begun else nullcontext():  # not the process of who calls a command from Python
            yield
    finally:
        imported()


def _keep_freed_memory() -> None:
    if not sys.platform.startswith("linux"):
        return
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  (other C libraries have no such function, and no such mallopt)
    except (OSError, AttributeError):
        return
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)


def cores() -> int:
    """Real cores that this process may use: those of its affinity mask, and no more than its control group's quota."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    real = {_siblings(cpu) for cpu in allowed}
    return max(min(len(real), _quota()), 1)


def _siblings(cpu: int) -> str:
    """The logical CPUs of one core, as the kernel spells them; the CPU itself where it says nothing."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota(root: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs that the control group grants, rounded up; a large number where there is no limit."""
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return math.ceil(int(quota) / int(period)) if quota.strip() != "max" and int(quota) > 0 else sys.maxsize
    except (OSError, ValueError):
        return sys.maxsize
