"""What the sub-commands share: the folder of results, and numbers beside their picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import click

from torch_utils.files import write_json
from torch_utils.options import OptionGroup, opt

OUTDIR = click.option("--outdir", required=True, metavar="DIR", help="Folder of the pictures and numbers")


@dataclass(frozen=True, kw_only=True)
class AnalysisDevice:
    """Options of the analyses that run a network."""

    group: ClassVar = OptionGroup("Device", "Where and how fast.", rank=8)

    batch: int = opt(64, "Most samples at once on one process", metavar="INT", at_least=1)
    device: str = opt("auto", "cpu, cuda or auto (a GPU when there is one)", metavar="DEVICE")


def make_folder(outdir: str) -> Path:
    """Make the folder before the work, so that a wrong path fails early."""
    folder = Path(outdir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write(
    folder: Path, name: str, numbers: dict[str, Any], draw: Callable[[dict[str, Any], Path], None],
    more: Sequence[str] = (),
) -> None:  # fmt: skip
    """Write NAME.json and, by `draw(numbers, path)`, NAME.png, and say so; `more` names files that were written."""
    write_json(folder / f"{name}.json", numbers)
    draw(numbers, folder / f"{name}.png")
    *names, last = (f"{name}.json", f"{name}.png", *more)
    click.echo(f"Wrote {', '.join(names)} and {last} to {folder}")
