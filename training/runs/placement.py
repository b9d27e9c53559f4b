"""Which run directory a command trains in, and which state it starts from.

    the same command again     the newest unfinished run of these options continues in its directory
    --resume=DIR               that run continues in its directory, from its newest complete state
    --resume=FILE              the same if FILE is the newest state of its run; else a new run that branches off there

A branch gets a directory of its own because the later states of the old one belong to another history. States of
published EDM code always start a new run.
"""

from __future__ import annotations

import dataclasses
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch_utils import checkpoint
from torch_utils.files import numbered, write_json
from torch_utils.options import OptionGroup, may_change, opt
from training.runs import run_dir as runs
from training.runs.published_state import is_published


@dataclass(frozen=True, kw_only=True)
class PlaceOptions:
    """Options of the run directory and of what a run starts from."""

    group: ClassVar = OptionGroup("Run", "Where results go, and what a run starts from.")

    outdir: str = opt(None, "Where to save the results", metavar="DIR", required=True, may_change=True)
    resume: str | None = opt(
        None, "Continue from a run directory or a training state", metavar="DIR|FILE", may_change=True
    )
    new_run: bool = opt(False, "Start anew although the same command has an unfinished run", flag=True, may_change=True)
    transfer: str | None = opt(None, "Start from the weights of a snapshot", metavar="FILE|URL")
    dry_run: bool = opt(
        False, "Print what would be done, with costs, and exit", flag=True, names=("-n",), may_change=True
    )
    desc: str | None = opt(None, "Text to add to the run directory's name", metavar="STR", may_change=True)
    nosubdir: bool = opt(False, "Use --outdir itself as the run directory", flag=True, may_change=True)


class Place(NamedTuple):
    """The claimed directory, the state to continue from (None: start anew), the seed and what is to be recorded.

    finished: this very job has finished the run, and torchrun started it again because a process died after that.
    """

    run_dir: Path
    state: Path | None
    seed: int
    record: dict[str, Any]
    finished: bool = False

    def write_options(self) -> None:
        """Record the options in the run directory: the first change there, made when all that can be wrong is right."""
        write_json(self.run_dir / runs.OPTIONS, self.record | {"seed": self.seed, "run_dir": str(self.run_dir)})


def find_place(options: PlaceOptions, seed: int | None, description: str, world: int) -> Place:
    """Claim the run directory, which stays as it is; for one process to call.

    Args:
        options: all options of the method; with `dry_run` a new directory is not made, only tried.
        seed: given by the user; None: that of the run which continues, else a random one.
        description: of a new directory.
        world: number of processes.

    Raises:
        ValueError, OSError: nothing to resume from, a directory in use, or one that cannot be written.
    """
    record: dict[str, Any] = dataclasses.asdict(options) | {"world_size": world, "branch_of": None}
    if options.resume and (run_dir := _run_of(options.resume)) is not None:
        if not runs.claim(run_dir):
            raise ValueError(f"another process is training in {run_dir}: stop it first, or start a run of its own")
        return _continued(seed, run_dir, Path(options.resume), record)
    if options.resume:
        record["branch_of"] = str(Path(options.resume).resolve())
    free = may_change(type(options))
    if done := runs.find_finished(Path(options.outdir), record, free):
        return Place(done, None, 0, record, finished=True)
    # A worker that torchrun started again must find the new run, not make yet another one.
    anew = options.new_run and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    found = None if anew else runs.find_unfinished(Path(options.outdir), record, description, free)
    run_dir = found or _new_directory(options, description)
    return _continued(seed, run_dir, Path(options.resume) if options.resume else None, record)


def _run_of(resume: str) -> Path | None:
    """The run that --resume continues in place; None: its state starts a new run.

    Raises:
        ValueError: no such state, or none in that directory.
    """
    path = Path(resume)
    if path.is_dir():
        if runs.newest_state(path) is None:
            raise ValueError(f"--resume={resume}: the directory holds no complete training state ({runs.STATES})")
        return path
    stored = runs.read_options(path.parent) or {}
    if stored.get("resume") == resume and not stored.get(runs.FINISHED):
        return path.parent  # this very command, again: by now there are newer states
    if not path.is_file():
        raise ValueError(f"--resume={resume}: no such file or directory")
    newest = path in numbered(path.parent, runs.STATES)[-1:]
    return path.parent if newest and stored and not is_published(path) else None


def _continued(seed: int | None, run_dir: Path, resume: Path | None, record: dict[str, Any]) -> Place:
    """Where a run stands: at its own newest state, else at the one it starts from."""
    state = runs.newest_state(run_dir)
    if state is None and resume is not None and resume.is_file():
        state = resume
    if seed is None:
        seed = (runs.read_options(run_dir) or {}).get("seed")
    if seed is None and state is not None and not is_published(state):
        seed = checkpoint.load(state, kind="state").payload["loop"]["seed"]
    return Place(run_dir, state, random.SystemRandom().randrange(1 << 31) if seed is None else seed, record)


def _new_directory(options: PlaceOptions, description: str) -> Path:
    outdir = Path(options.outdir)
    if options.dry_run:
        runs.try_to_make(outdir)
    else:
        outdir.mkdir(parents=True, exist_ok=True)
    if not options.nosubdir:
        return runs.next_name(outdir, description) if options.dry_run else runs.create(outdir, description)
    if runs.read_options(outdir) is not None or numbered(outdir, runs.STATES):
        raise ValueError(
            f"--nosubdir: {outdir} already holds a run, with other options or finished: choose another --outdir, or "
            f"continue that run with --resume={outdir}"
        )
    if not options.dry_run and not runs.claim(outdir):
        raise ValueError(f"another process is training in {outdir}: choose another --outdir")
    return outdir
