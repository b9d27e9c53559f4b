"""Run directories: `{outdir}/{id:05d}-{description}`, the options inside, and which one the same command continues.

A run that did not finish is continued by giving the same command again. Two equal commands at the same time do not
meet: a running one holds a lock on its directory, and the second starts a directory of its own.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
from collections.abc import Mapping, Set
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch_utils.checkpoint import newest
from torch_utils.files import numbered, write_json
from torch_utils.temporaries import TEMPORARY

OPTIONS = "training_options.json"
STATES = "training-state-*.pt"
FINISHED = "finished"  # key in the options file, set when the last snapshot is on disk
JOB = "job"  # the same, what torchrun calls the job that finished it


_locks: list[Any] = []  # open files whose lock lives as long as the process


def create(outdir: Path, description: str) -> Path:
    """Make and claim the next numbered directory."""
    while True:
        run_dir = next_name(outdir, description)
        with suppress(FileExistsError):
            run_dir.mkdir()
            if claim(run_dir):
                return run_dir


def next_name(outdir: Path, description: str) -> Path:
    """The numbered directory that a new run would make."""
    present = outdir.iterdir() if outdir.is_dir() else ()
    numbers = [int(m[1]) for p in present if p.is_dir() and (m := re.match(r"(\d+)", p.name))]
    return outdir / f"{max(numbers, default=-1) + 1:05d}-{description}"


def try_to_make(folder: Path) -> None:
    """Raise the OSError that making `folder`, or a folder in it, would raise; nothing is left."""
    made = []
    try:
        for path in (*reversed((folder, *folder.parents)), folder / f".{secrets.token_hex(6)}.tmp"):
            if not path.is_dir():
                path.mkdir()
                made.append(path)
    finally:
        for path in reversed(made):
            path.rmdir()


def claim(run_dir: Path) -> bool:
    """Lock the directory for this process; False when another process runs there. Released when the process ends.

    Half-written files of a process that was killed are removed.
    """
    file = open(run_dir / ".lock", "w")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    _locks.append(file)
    for path in run_dir.iterdir():
        if TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)
    return True


def read_options(run_dir: Path) -> dict[str, Any] | None:
    """The options a run was started with, or None when the directory holds none that can be read."""
    try:
        return json.loads((run_dir / OPTIONS).read_text())
    except (OSError, ValueError):
        return None


def same_run(a: Mapping[str, Any], b: Mapping[str, Any], free: Set[str]) -> bool:
    """Whether two records describe the same numbers; options in `free` may differ, an unknown seed matches any."""
    keys = (set(a) | set(b)) - free - {"seed", "run_dir", "world_size", FINISHED, JOB}
    return all(a.get(k) == b.get(k) for k in keys) and (b.get("seed") is None or a.get("seed") == b["seed"])


def find_unfinished(outdir: Path, options: Mapping[str, Any], description: str, free: Set[str]) -> Path | None:
    """The newest claimed-by-nobody run under `outdir` with these options that has not finished; it is claimed now.

    A directory of this description without any file is one whose process was killed before it could write its options.
    """
    wanted = _as_stored(options)

    def fits(run_dir: Path) -> bool:
        stored = read_options(run_dir)
        if stored is None:
            return re.sub(r"^\d+-", "", run_dir.name) == description and is_blank(run_dir)
        return not stored.get(FINISHED) and same_run(stored, wanted, free)

    for run_dir in _newest_first(outdir, options):
        if fits(run_dir) and claim(run_dir) and fits(run_dir):  # again: it may have finished before it was ours
            return run_dir
    return None


def find_finished(outdir: Path, options: Mapping[str, Any], free: Set[str]) -> Path | None:
    """The run of these options that this very job has finished: torchrun starts it again when a process dies later."""
    job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if job == "none" or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return None
    wanted = _as_stored(options)
    stored = ((run_dir, read_options(run_dir) or {}) for run_dir in _newest_first(outdir, options))
    return next((d for d, o in stored if o.get(FINISHED) and o.get(JOB) == job and same_run(o, wanted, free)), None)


def _newest_first(outdir: Path, options: Mapping[str, Any]) -> list[Path]:
    return [outdir] if options.get("nosubdir") else sorted(outdir.glob("[0-9]*"), reverse=True)


def _as_stored(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they are in a file, where tuples are lists."""
    return json.loads(json.dumps(options))


def is_blank(run_dir: Path) -> bool:
    """Whether nothing but hidden files is there."""
    return run_dir.is_dir() and all(p.name.startswith(".") for p in run_dir.iterdir())


def discard_unused(run_dir: Path) -> None:
    """Remove a run in which nothing was computed, so that a mistyped command leaves nothing behind."""
    left_by_a_start = {OPTIONS, "log.txt", ".lock"}
    if {p.name for p in run_dir.iterdir()} <= left_by_a_start:
        for name in left_by_a_start:
            (run_dir / name).unlink(missing_ok=True)
        with suppress(OSError):  # --nosubdir may name a mount point
            run_dir.rmdir()


def mark_finished(run_dir: Path) -> None:
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    write_json(run_dir / OPTIONS, {**(read_options(run_dir) or {}), FINISHED: True, **({JOB: job} if job else {})})


def newest_state(run_dir: Path) -> Path | None:
    """The newest complete training state of a run; None where no state was written yet.

    Raises:
        ValueError: there are states, and none can be read.
    """
    state = newest(run_dir, STATES)
    if state is None and (damaged := numbered(run_dir, STATES)):
        raise ValueError(
            f"{damaged[-1]} and the {len(damaged) - 1} states before it cannot be read: restore one from a backup, "
            "or start with --new-run"
        )
    return state
