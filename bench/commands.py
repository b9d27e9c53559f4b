"""Experiments made of the project's own command lines: shown, run, and not repeated once they are finished."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from torch_utils.provenance import differences, read_record, write_record

__all__ = ["call", "finished", "trained"]

ROOT = Path(__file__).parents[1]


def call(script: str, arguments: str) -> None:
    """Run one of the project's command lines, shown first."""
    click.echo(f"python {script} {arguments}")
    command = [sys.executable, str(ROOT / script), *shlex.split(arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"{script} failed: {(done.stderr or done.stdout).strip()[-2000:]}")


def finished(run: Path, record: Mapping[str, Any]) -> bool:
    """Whether a run was finished by what this record says; `write_record` marks it so.

    Raises:
        click.ClickException: it was finished by something else.
    """
    found = read_record(run)
    if found is not None and (other := differences(found, record)):
        there = ", ".join(f"{name}: {found.get(name)}" for name in other)
        raise click.ClickException(
            f"{run} is finished by another command ({there}): give another --outdir, or remove it"
        )
    return found is not None


def trained(run: Path, script: str, arguments: str) -> Path:
    """The last snapshot of a training run; a record in it says that it is finished, else the command starts or goes on.

    Raises:
        click.ClickException: another command finished there.
    """
    record = {"script": script, "arguments": arguments}
    if not finished(run, record):
        call(script, f"{arguments} --outdir={run} --nosubdir")
        write_record(run, record)
    return max(run.glob("network-snapshot-*.pkl"))
