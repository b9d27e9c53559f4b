"""What the sub-commands share: the folder of results, the network, and numbers beside their picture."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

import networks
from networks.load import unfinished_note
from samplers.run import prepare
from torch_utils import distributed as dist
from torch_utils.files import write_json

__all__ = ["OUTDIR", "make_folder", "open_network", "write"]

OUTDIR = click.option("--outdir", required=True, metavar="DIR", help="Folder of the pictures and numbers")


def open_network(source: str, device: torch.device) -> torch.nn.Module:
    """The network that a path, an address or a name means, ready on the device of this process."""
    net = dist.rank0_first(lambda: networks.load_network(source))
    if note := unfinished_note(net):
        dist.print0(f"{note} ({source})", file=sys.stderr)
    return prepare(net, device)


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
