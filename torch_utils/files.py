"""Files that appear whole or not at all, and retention of numbered files.

`atomic_write` writes under a temporary name in the same folder, flushes, calls fsync and renames: a reader sees the old
file or the new one, never a part. What a killed process leaves is removed by the next write into that folder
(`torch_utils/temporaries.py`). Numbered files (`network-snapshot-001000.pkl`) are ordered by the numbers in their
names, not by time stamps, which copying changes.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from torch_utils.temporaries import temporary_beside


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that replaces `path` when the block ends, and vanishes when the block raises.

    Args:
        path: target; its directory must exist.
        mode: "wb" or "w" (UTF-8 text).

    Raises:
        OSError: full disk, read-only directory, missing directory; names `path`, whose earlier content is untouched.
        ValueError: `path` is a device or a pipe, which would be a file afterwards.
    """
    path = Path(path)
    _refuse_special(path)
    written = None
    try:
        with temporary_beside(path) as written:
            with open(written, mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(written, path)
        _sync_directory(path.parent)
    except OSError as error:
        # Errors of our own file carry no name or the temporary one; others (a read inside the block) stay as they are.
        ours = written is None or error.filename in (None, os.fspath(written))
        if not (ours and error.errno):
            raise
        reason = f"cannot write ({error.strerror}); an earlier file of this name is untouched"
        raise OSError(error.errno, reason, os.fspath(path)) from error


def check_target(path: str | Path, *sources: object) -> None:
    """Refuse, before the work, a path that `atomic_write` would refuse after it or where it would replace an input.

    Args:
        path: of the file that is to be written; its directory may be missing.
        sources: what the work reads; of these, paths of files count.

    Raises:
        ValueError: `path` is a folder, a device, a pipe, or one of `sources`.
        OSError: its directory may not be written to.
    """
    path = Path(path)
    _refuse_special(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the path of a file in it")
    if path.parent.is_dir() and not os.access(path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, "cannot write into its folder", os.fspath(path))
    for source in sources:
        with suppress(OSError, ValueError):  # a name, an address, a text
            if isinstance(source, str | Path) and path.samefile(source):
                break
    else:
        return
    raise ValueError(f"{path} is read, and would be replaced by what is made of it: write to another file")


def _refuse_special(path: Path) -> None:
    """A rename would put a file in the place of /dev/null for every program; /dev/stdout is a link to /proc."""
    try:
        mode = os.stat(path).st_mode
        linked = os.readlink(path).startswith("/proc/") if os.path.islink(path) else False
    except OSError:  # nothing there
        return
    if linked or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError(f"{path} is a device or a pipe, and a file is to be written: give the path of one")


def _sync_directory(directory: Path) -> None:
    """Make the rename itself durable; not possible on every platform, and never a reason to fail."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` as indented JSON, atomically."""
    text = json.dumps(obj, indent=2)
    with atomic_write(path, "w") as file:
        file.write(text + "\n")


def read_json(path: str | Path, what: str) -> Any:
    """The content of a JSON file, with or without a byte order mark.

    Args:
        what: the kind of file that is expected, for the message: "a schedule file".

    Raises:
        ValueError: not JSON, not text, or nested deeper than any such file.
        OSError: it cannot be read.
    """
    raw = Path(path).read_bytes()
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError(f"{path} is not {what}: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} is not {what}: it is not JSON ({error})") from error


def map_file(path: str | Path) -> memoryview:
    """The bytes of a regular file as read-only memory, without reading them.

    Raises:
        ValueError: the path is missing, empty, a directory, a pipe or a device.
    """
    try:
        status = os.stat(path)  # before opening: opening a pipe would wait for a writer
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a file: give the path of one")
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ValueError(f"{path} is empty")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def numbered(directory: str | Path, pattern: str) -> list[Path]:
    """Files in `directory` that match the glob `pattern`, oldest first by the numbers in their names."""
    found = [p for p in Path(directory).glob(pattern) if p.is_file()]
    return sorted(found, key=lambda p: ([int(n) for n in re.findall(r"\d+", p.name)], p.name))


def retain(directory: str | Path, pattern: str, keep: int) -> list[Path]:
    """Delete all but the newest `keep` files that match `pattern`; returns the deleted ones.

    Raises:
        ValueError: `keep` below 1.
    """
    if keep < 1:
        raise ValueError(f"at least one file must be kept, got keep={keep}")
    old = numbered(directory, pattern)[:-keep]
    for path in old:
        path.unlink(missing_ok=True)
    return old


def cache_directory() -> Path:
    """`$FEWSTEP_CACHE_DIR`, else `~/.cache/fewstep`."""
    return Path(os.environ.get("FEWSTEP_CACHE_DIR") or Path.home() / ".cache" / "fewstep")
