"""What every command line here shares: options with `-` or `_`, errors as one sentence, clean interruption.

`Command` and `Group` are click classes that accept `--batch-gpu` and `--batch_gpu` alike, print a `ValueError`,
`OSError` or exhausted memory as `Error: <sentence>` with exit code 1 (bad usage exits with 2, as click does), and never
a traceback for bad input. Set FEWSTEP_TRACEBACK=1 to see where an error came from.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import click

from torch_utils.misc import parse_int_list

__all__ = ["Command", "Group", "IntList", "NumberList", "sentence"]


def sentence(error: BaseException) -> str:
    """The error as one line for a person."""
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    text = " ".join(str(error).split())
    return text or type(error).__name__


@contextmanager
def _errors_as_sentences():  # noqa: ANN202
    try:
        yield
    except (ValueError, OSError, MemoryError) as error:
        if os.environ.get("FEWSTEP_TRACEBACK"):
            raise
        raise click.ClickException(sentence(error)) from error
    except RuntimeError as error:  # torch reports exhausted memory and missing devices as RuntimeError
        text = str(error)
        if os.environ.get("FEWSTEP_TRACEBACK") or not any(
            key in text for key in ("out of memory", "can't allocate memory", "No CUDA GPUs", "CUDA driver")
        ):
            raise
        raise click.ClickException(text.splitlines()[0]) from error


def _both_spellings(args: Sequence[str], known: set[str]) -> list[str]:
    """Rewrite `--some_option` to `--some-option` or back, whichever the command defines; values stay untouched."""
    result = []
    for i, arg in enumerate(args):
        if arg == "--":
            return result + list(args[i:])
        name, equals, value = arg.partition("=")
        if name.startswith("--") and name not in known:
            for other in (name.replace("_", "-"), name.replace("-", "_").replace("__", "--", 1)):
                if other in known:
                    name = other
                    break
        result.append(name + equals + value)
    return result


class Command(click.Command):
    """A click command with both spellings of every option and errors as sentences."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {name for p in self.params for name in (*p.opts, *p.secondary_opts)}
        return super().parse_args(ctx, _both_spellings(args, known))

    def invoke(self, ctx: click.Context) -> Any:
        with _errors_as_sentences():
            return super().invoke(ctx)


class Group(click.Group):
    """A click group of `Command`s; with `default="name"`, `script.py --option` means `script.py name --option`."""

    command_class = Command

    def __init__(self, *args: Any, default: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.default = default

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if self.default and args and args[0].startswith("-") and args[0] not in ("--help", "-h"):
            args = [self.default, *args]
        return super().parse_args(ctx, args)


class IntList(click.ParamType):
    """`1,2,5-10` -> [1, 2, 5, 6, 7, 8, 9, 10]."""

    name = "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        try:
            return parse_int_list(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class NumberList(click.ParamType):
    """`[80,10.9,0.002]` or `80,10.9,0.002` -> list of floats."""

    name = "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        if not isinstance(value, str):
            return [float(v) for v in value]
        try:
            parsed = ast.literal_eval(value if value.lstrip().startswith("[") else f"[{value}]")
            return [float(v) for v in parsed]
        except (ValueError, SyntaxError, TypeError):
            self.fail(f"'{value}' is not a list of numbers: write for example [80,10.9,0.002]", param, ctx)
