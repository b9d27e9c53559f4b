"""Take a schedule file to another tool.

python -m samplers.export five.json --to=diffusers --model=DIR OUT
"""

from __future__ import annotations

from functools import partial

import click

from samplers.export.write import TARGETS, export
from torch_utils.cli import Command, CountList

__all__ = ["main"]


@click.command(cls=Command)
@click.argument("file", metavar="FILE.json")
@click.argument("out", metavar="OUT", type=click.Path())
@click.option("--to", type=click.Choice(list(TARGETS)), required=True, help="The tool to write for")
@click.option(
    "--model", metavar="DIR",
    help="The folder of diffusers that the schedule is for, or its scheduler_config.json",
)  # fmt: skip
@click.option("--coeff", type=float, help="Which schedules of a file searched with several coefficients")
@click.option(
    "--nfe", type=CountList(), metavar="LIST",
    help="Evaluations of the schedules to write [default: all in the file]; calibrated ones that it lacks are made",
)  # fmt: skip
def main(file: str, out: str, to: str, model: str | None, coeff: float | None, nfe: tuple[int, ...] | None) -> None:
    """Write OUT: a folder for diffusers and ComfyUI, a Python file for k-diffusion, a list of levels (.txt, .json)."""
    for path in export(file, to, out, model, coeff, nfe, partial(click.echo, err=True)):
        click.echo(path)


if __name__ == "__main__":
    main()
