"""Run directories: `{outdir}/{id:05d}-{description}`, the options inside, and which one the same command continues.

A run that did not finish is continued by giving the same command again. Two equal commands at the same time do not
meet: a running one holds a lock on its directory, and the second starts a directory of its own.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch_utils.checkpoint import newest
from torch_utils.files import write_json

__all__ = ["OPTIONS", "STATES", "claim", "create", "find_unfinished", "read_options"]

OPTIONS = "training_options.json"
STATES = "training-state-*.pt"
FINISHED = "finished"  # key in the options file, set when the last snapshot is on disk

# What may differ between the first command and the one that continues it: it does not change the numbers.
_FREE = {
    "outdir", "resume", "seed", "wandb", "dry_run", "workers", "cache", "device", "nosubdir", "desc", "keep",
    "keep_snapshots", "checkpoint_mins", "batch_gpu", "new_run", "run_dir", FINISHED, "world_size",
}  # fmt: skip

_locks: list[Any] = []  # open files whose lock lives as long as the process


def create(outdir: Path, description: str) -> Path:
    """Make the next numbered directory."""
    outdir.mkdir(parents=True, exist_ok=True)
    numbers = [int(m[1]) for p in outdir.iterdir() if p.is_dir() and (m := re.match(r"(\d+)", p.name))]
    for number in range(max(numbers, default=-1) + 1, 1 << 30):
        run_dir = outdir / f"{number:05d}-{description}"
        try:
            run_dir.mkdir()
            return run_dir
        except FileExistsError:
            continue
    raise OSError(f"no free run number in {outdir}")


def claim(run_dir: Path) -> bool:
    """Lock the directory for this process; False when another process runs there. Released when the process ends."""
    file = open(run_dir / ".lock", "w")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    _locks.append(file)
    return True


def read_options(run_dir: Path) -> dict[str, Any] | None:
    """The options a run was started with, or None when the directory holds none that can be read."""
    try:
        return json.loads((run_dir / OPTIONS).read_text())
    except (OSError, ValueError):
        return None


def same_run(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two option sets describe the same numbers. A seed that was not given matches any."""
    keys = (set(a) | set(b)) - _FREE
    return all(a.get(k) == b.get(k) for k in keys) and (b.get("seed") is None or a.get("seed") == b["seed"])


def find_unfinished(outdir: Path, options: Mapping[str, Any]) -> Path | None:
    """The newest claimed-by-nobody run under `outdir` with these options that has not finished; it is claimed now."""
    candidates = [outdir] if options.get("nosubdir") else sorted(outdir.glob("[0-9]*"), reverse=True)
    wanted = json.loads(json.dumps(options))  # tuples become lists, as in the file
    for run_dir in candidates:
        stored = read_options(run_dir)
        if stored is None or stored.get(FINISHED) or not same_run(stored, wanted):
            continue
        if claim(run_dir):
            return run_dir
    return None


def mark_finished(run_dir: Path) -> None:
    write_json(run_dir / OPTIONS, {**(read_options(run_dir) or {}), FINISHED: True})


def newest_state(run_dir: Path) -> Path | None:
    """The newest complete training state of a run."""
    return newest(run_dir, STATES)
