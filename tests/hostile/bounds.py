"""What reading a hostile file may cost, and what it must never do."""

import os
import resource
import signal
import sys
from contextlib import contextmanager


class TooMuchError(Exception):
    """The time or memory bound was exceeded."""


@contextmanager
def bounded(seconds=2.0, megabytes=300):
    """Raise TooMuchError after `seconds` of processor time, and let allocations beyond `megabytes` more than now fail.

    By the clock, 20 times as long is allowed: the machine may be busy.
    """

    def late(*_):
        raise TooMuchError(f"more than {seconds} s")

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    old = {number: signal.signal(number, late) for number in (signal.SIGALRM, signal.SIGPROF)}
    resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20), before[1]))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 20 * seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in old.items():
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


_AUDIT: dict[str, list | bool] = {"on": False, "seen": [], "installed": False}
_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "pickle.find_class",
)


def _hook(event, arguments):
    if _AUDIT["on"] and (event in _FORBIDDEN or (event == "open" and _writes(arguments))):
        _AUDIT["seen"].append((event, arguments))


def _writes(arguments):
    mode, flags = arguments[1], arguments[2]
    return any(c in (mode or "") for c in "wax+") or bool(isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR))


@contextmanager
def watched():
    """Fail if anything inside starts a process, connects, writes a file or uses the standard unpickler on a name."""
    if not _AUDIT["installed"]:
        sys.addaudithook(_hook)
        _AUDIT["installed"] = True
    _AUDIT.update(on=True, seen=[])
    try:
        yield
    finally:
        _AUDIT["on"] = False
    assert not _AUDIT["seen"]
