"""A cache of downloaded files: fetched once, resumed where a transfer broke off, checked, and whole or not at all.

A transfer goes into `.NAME.part`, which other processes wait for. It is kept for the next try where the server says by
a validator (ETag or date) that it still has the same file; `If-Range` makes it start over otherwise. What was checked
against a SHA-256 once is not read again as long as its size and date stay.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from torch_utils.files import cache_directory, write_json

try:
    import fcntl
except ImportError:  # not on Windows: two processes may fetch the same file there, each whole
    fcntl = None

_BLOCK = 1 << 20
_TRIES = 4  # in one call, as long as each brings the transfer further


def offline() -> bool:
    """Whether the user forbids network access, by the variable that Hugging Face's tools obey."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _target(url: str) -> Path:
    """Where the copy of `url` is kept."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", Path(urllib.parse.urlsplit(url).path).name) or "file"
    return cache_directory() / "downloads" / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"


def cached(url: str) -> Path | None:
    """The copy of `url` that an earlier `download` left; None without one."""
    return target if (target := _target(url)).is_file() else None


def download(url: str, *, sha256: str | None = None, verbose: bool = True) -> Path:
    """Path of the cached copy of `url`, fetched on first use; `verbose` shows a progress bar.

    Raises:
        ValueError: not http(s), no connection, an incomplete transfer, or content that has another SHA-256.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"'{url}' is not a web address: it must begin with https:// or http://")
    target = _target(url)
    if not target.is_file():
        if offline():
            raise _no_connection(url, "HF_HUB_OFFLINE forbids it")
        target.parent.mkdir(parents=True, exist_ok=True)
        with _part_of(target) as part:
            if not target.is_file():  # else another process fetched it meanwhile
                _fetch_all(url, part, verbose)
                if sha256:
                    _check(url, part, sha256)
                os.replace(part, target)
    if sha256:
        _check(url, target, sha256)
    return target


def download_first(urls: Sequence[str], *, sha256: Mapping[str, str] | None = None, verbose: bool = True) -> Path:
    """Path of a copy of the first of several addresses that gives one; one that is here already is not fetched again.

    Args:
        urls: mirrors in order.
        sha256: by address, where it is known.

    Raises:
        ValueError: none does; says of each why.
    """
    found = [url for url in urls if cached(url) is not None]
    failed: list[str] = []
    for i, url in enumerate(found or urls):
        try:
            return download(url, sha256=(sha256 or {}).get(url), verbose=verbose)
        except ValueError as error:
            failed.append(str(error))
            if i < len(found or urls) - 1:
                warnings.warn(f"{error}; trying the next address", stacklevel=4)
    if len(failed) == 1:
        raise ValueError(failed[0])
    raise ValueError(f"none of {len(failed)} addresses gave the file: " + "; ".join(failed))


@contextmanager
def _part_of(target: Path) -> Iterator[Path]:
    """The file that a transfer goes into, for one process at a time; gone afterwards unless it can be resumed."""
    part = target.with_name(f".{target.name}.part")
    with _locked(part.with_suffix(".lock")):
        try:
            yield part
        finally:
            if not _validator(part):
                part.unlink(missing_ok=True)
            if not part.exists():
                _validator_file(part).unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the file of the lock is gone afterwards."""
    while True:
        with open(path, "w") as lock:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
                try:
                    same = os.path.samestat(os.fstat(lock.fileno()), os.stat(path))
                except FileNotFoundError:
                    same = False
                if not same:  # who had it has removed it: the lock of a file that is gone holds nobody up
                    continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _validator_file(part: Path) -> Path:
    return part.with_suffix(".json")


def _validator(part: Path) -> str | None:
    """What the server called the version of the file that `part` is the beginning of."""
    with suppress(OSError, ValueError):
        found = json.loads(_validator_file(part).read_text())
        return found if isinstance(found, str) and part.exists() else None
    return None


def _fetch_all(url: str, part: Path, verbose: bool) -> None:
    """Fetch the file, going on where a connection broke as long as that gets further."""
    for attempt in range(_TRIES):
        before = part.stat().st_size if _validator(part) else 0
        try:
            return _fetch(url, part, verbose)
        except _BrokenError as error:
            resumable = _validator(part) is not None and part.stat().st_size > before
            if attempt == _TRIES - 1 or not resumable:
                raise ValueError(str(error)) from error
    raise AssertionError("the last attempt returns or raises")


class _BrokenError(Exception):
    """A transfer ended early."""


def _fetch(url: str, part: Path, verbose: bool) -> None:
    """One transfer into `part`, behind what is there already if the server still has the same file."""
    from tqdm import tqdm

    validator = _validator(part)
    begin = part.stat().st_size if validator else 0
    headers = {"Range": f"bytes={begin}-", "If-Range": validator} if validator and begin else {}
    try:
        reply = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30)
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise _no_connection(url, getattr(error, "reason", error)) from error
    with reply:
        length = reply.headers.get("Content-Length") or ""
        begin = begin if reply.status == 206 else 0
        total = begin + int(length) if length.isdigit() else 0
        _remember(part, reply.headers)
        shown = {"unit": "B", "unit_scale": True, "desc": f"Downloading {url}", "disable": not verbose}
        bar = tqdm(total=total or None, initial=begin, **shown)
        with bar, open(part, "ab" if begin else "wb") as file:
            while block := _next_block(url, reply):
                file.write(block)
                bar.update(len(block))
            file.flush()
            os.fsync(file.fileno())
            done = file.tell()
    if total and done != total:
        raise _BrokenError(f"the download of {url} ended after {done} of {total} bytes: try again")


def _remember(part: Path, headers: Any) -> None:
    """Keep the validator of the version that is being fetched; without one, nothing can be resumed."""
    tag = headers.get("ETag") or ""
    validator = tag if tag.startswith('"') else headers.get("Last-Modified")
    if validator and headers.get("Accept-Ranges", "bytes") == "bytes":
        write_json(_validator_file(part), validator)
    else:
        _validator_file(part).unlink(missing_ok=True)


def _next_block(url: str, reply: IO[bytes]) -> bytes:
    try:
        return reply.read(_BLOCK)
    except Exception as error:  # http.client raises several unrelated types
        raise _BrokenError(str(_no_connection(url, error))) from error


def _no_connection(url: str, reason: object) -> ValueError:
    return ValueError(
        f"{url} cannot be downloaded ({' '.join(str(reason).split())}): check the connection, or fetch the file "
        "on another machine and give its path"
    )


def _check(url: str, path: Path, expected: str) -> None:
    """A ValueError where the file has another SHA-256; what was checked before is not read again."""
    expected = expected.lower()
    status = path.stat()
    note, now = path.with_name(f".{path.name}.sha256"), f"{expected} {status.st_size} {status.st_mtime_ns}"
    with suppress(OSError):
        if note.read_text() == now:
            return
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        if path.suffix == ".part":
            path.unlink()
        raise ValueError(f"{url} has SHA-256 {found}, expected {expected}: the file is damaged or was replaced")
    if path.suffix != ".part":
        with suppress(OSError):
            note.write_text(now)
