"""Experiments made of the project's own command lines: shown, run, and not repeated once they are finished."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import click

__all__ = ["call", "trained"]

ROOT = Path(__file__).parents[1]


def call(script: str, arguments: str) -> None:
    """Run one of the project's command lines, shown first."""
    click.echo(f"python {script} {arguments}")
    command = [sys.executable, str(ROOT / script), *shlex.split(arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"{script} failed: {(done.stderr or done.stdout).strip()[-2000:]}")


def trained(run: Path, script: str, arguments: str) -> Path:
    """The last snapshot of a training run; `run.done` says that it is finished, else the command starts or goes on."""
    done = run.with_name(run.name + ".done")
    if not done.exists():
        call(script, f"{arguments} --outdir={run} --nosubdir")
        done.touch()
    return max(run.glob("network-snapshot-*.pkl"))
