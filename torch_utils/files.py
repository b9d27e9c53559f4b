"""Files that appear whole or not at all, retention of numbered files, and a download cache.

`atomic_write` writes under a temporary name in the same folder, flushes, calls fsync and renames: a reader sees the old
file or the new one, never a part. What a killed process leaves is removed by the next write into that folder
(`torch_utils/temporaries.py`). Numbered files (`network-snapshot-001000.pkl`) are ordered by the numbers in their
names, not by time stamps, which copying changes.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import stat
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from torch_utils.temporaries import temporary_beside

__all__ = ["atomic_write", "cache_directory", "download", "map_file", "numbered", "retain", "write_json"]


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that replaces `path` when the block ends, and vanishes when the block raises.

    Args:
        path: target; its directory must exist.
        mode: "wb" or "w" (UTF-8 text).

    Raises:
        OSError: full disk, read-only directory, missing directory; names `path`, whose earlier content is untouched.
    """
    path = Path(path)
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


def download(url: str, *, sha256: str | None = None, verbose: bool = True) -> Path:
    """Path of the cached copy of `url`, fetched on first use; `verbose` shows a progress bar.

    Raises:
        ValueError: not http(s), no connection, an incomplete transfer, or content that has another SHA-256.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"'{url}' is not a web address: it must begin with https:// or http://")
    name = re.sub(r"[^A-Za-z0-9._-]", "_", Path(parts.path).name) or "file"
    target = cache_directory() / "downloads" / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    if target.is_file():
        if sha256:
            with open(target, "rb") as file:
                _check_hash(url, hashlib.file_digest(file, "sha256").hexdigest(), sha256)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as file:
        _fetch(url, file, sha256, verbose)
    return target


def _fetch(url: str, file: IO[bytes], sha256: str | None, verbose: bool) -> None:
    from tqdm import tqdm

    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=30) as reply:
            length = reply.headers.get("Content-Length") or ""
            total = int(length) if length.isdigit() else 0
            bar = tqdm(total=total or None, unit="B", unit_scale=True, desc=f"Downloading {url}", disable=not verbose)
            with bar:
                while block := _next_block(reply):
                    file.write(block)
                    digest.update(block)
                    bar.update(len(block))
    except _TransferError as error:
        raise _no_connection(url, error.__cause__ or error) from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise _no_connection(url, getattr(error, "reason", error)) from error
    if total and file.tell() != total:
        raise ValueError(f"the download of {url} ended after {file.tell()} of {total} bytes: try again")
    if sha256:
        _check_hash(url, digest.hexdigest(), sha256)


class _TransferError(Exception):
    """Reading from the network failed, as opposed to writing to the disk."""


def _next_block(reply: IO[bytes]) -> bytes:
    try:
        return reply.read(1 << 20)
    except Exception as error:  # http.client raises several unrelated types
        raise _TransferError from error


def _no_connection(url: str, reason: object) -> ValueError:
    return ValueError(
        f"{url} cannot be downloaded ({' '.join(str(reason).split())}): check the connection, or fetch the file "
        "on another machine and give its path"
    )


def _check_hash(url: str, found: str, expected: str) -> None:
    if found != expected.lower():
        raise ValueError(f"{url} has SHA-256 {found}, expected {expected}: the file is damaged or was replaced")
