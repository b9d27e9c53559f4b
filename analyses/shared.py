"""What the sub-commands share: the folder of results, and numbers beside their picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from torch_utils.files import write_json

__all__ = ["OUTDIR", "make_folder", "write"]

OUTDIR = click.option("--outdir", required=True, metavar="DIR", help="Folder of the pictures and numbers")


def make_folder(outdir: str) -> Path:
    """Make the folder before the work, so that a wrong path fails early."""
    folder = Path(outdir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write(folder: Path, name: str, numbers: dict[str, Any], draw: Callable[[dict[str, Any], Path], None]) -> None:
    """Write NAME.json and, by `draw(numbers, path)`, NAME.png."""
    write_json(folder / f"{name}.json", numbers)
    draw(numbers, folder / f"{name}.png")
    click.echo(f"Wrote {folder / name}.json and {name}.png")
