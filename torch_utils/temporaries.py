"""Temporary files and folders beside a target, which vanish even when the process that wrote them was killed.

A temporary is named `.TARGET.HOST.TOKEN.tmp` and locked (flock) while its process lives; the kernel releases the lock
of a process that dies, however it dies. So what can be locked is abandoned, and the next process that writes into the
same folder removes it. Locks of a shared file system may be local to a machine: temporaries of other machines are left
alone, by the two halves of HOST (its name, and its current boot, which containers on it share).
"""

from __future__ import annotations

import functools
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows: nothing is locked there, and nothing removed
    fcntl = None

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")
_OF_HOST = re.compile(r"\..+\.([0-9a-f]{6})([0-9a-f]{6})\.[0-9a-f]{12}\.tmp")
_SHARE = 20  # looking into a folder takes at most 1 / _SHARE of the time spent writing there

_enough: dict[str, float] = {}  # folder -> until when the last look into it suffices


@functools.cache
def _host() -> tuple[str, ...]:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        boot = platform.node()
    return tuple(sha256(text.encode()).hexdigest()[:6] for text in (platform.node(), boot))


@contextmanager
def temporary_beside(target: Path, *, folder: bool = False) -> Iterator[Path]:
    """A new empty file (or folder) in the folder of `target`, to be renamed to it inside the block.

    It vanishes when the block raises, and with the next write into its folder when this process is killed.

    Raises:
        OSError: it cannot be made.
    """
    remove_abandoned(target.parent)
    temporary, descriptor = _create(target, folder)
    try:
        yield temporary
    except BaseException:
        if folder:
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(OSError):
                temporary.unlink()
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _create(target: Path, folder: bool) -> tuple[Path, int | None]:
    """A new temporary, and the descriptor that holds its lock; None where nothing can be locked.

    Between its making and its locking another process or thread may take it for abandoned: it then has the lock, or has
    had it and the name is gone, and another temporary is made.
    """
    while True:
        temporary = target.with_name(f".{target.name[:128]}.{''.join(_host())}.{secrets.token_hex(6)}.tmp")
        if folder:
            temporary.mkdir()
            if fcntl is None:  # where a folder has no descriptor either
                return temporary, None
            try:
                descriptor = os.open(temporary, os.O_RDONLY)
            except FileNotFoundError:
                continue
        else:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if _lock(descriptor) is not False and _is_still(temporary, descriptor):
            return temporary, descriptor
        os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether `path` names what the descriptor is open on."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> bool | None:
    """Lock what a descriptor is open on until it is closed: False where others hold the lock, None where none exist."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def remove_abandoned(folder: Path) -> None:
    """Remove the temporaries in `folder` whose processes on this machine are dead; never an error."""
    key, began = os.path.abspath(folder), time.monotonic()
    if began < _enough.get(key, 0.0):
        return
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _OF_HOST.fullmatch(entry.name) if entry.name.startswith(".") else None
            if match and (match[1] == _host()[0] or match[2] == _host()[1]):
                _remove_if_abandoned(entry.path)
    ended = time.monotonic()
    _enough[key] = ended + _SHARE * (ended - began)


def _remove_if_abandoned(path: str) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)
    except OSError:
        return
    try:
        if not _lock(descriptor):
            return
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                os.unlink(path)
    finally:
        os.close(descriptor)
