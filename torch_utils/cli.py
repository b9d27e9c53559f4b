"""What every command line here shares: options with `-` or `_`, sane numbers, errors as one sentence.

`Command` and `Group` are cloup's classes (click with options in groups). They accept `--batch-gpu` and `--batch_gpu`
alike, `-h`, and no number that is nan, infinite (unless its option says so) or beyond 64 bits. They print a
`ValueError`, `OSError` or exhausted memory as `Error: <sentence>` with exit code 1 (bad usage exits with 2, as click
does), and never a traceback for bad input. Ctrl-C, SIGTERM and SIGHUP clean up and exit with 130, 143 and 129. Set
FEWSTEP_TRACEBACK=1 to see where an error came from.
"""

from __future__ import annotations

import io
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any

import click
import cloup

from torch_utils import process
from torch_utils.misc import parse_int_list
from torch_utils.signals import SignalExit, ending_as_exit

# What torch says in a RuntimeError of a machine that has no such memory or device
LACKING = "out of memory", "can't allocate memory", "No CUDA GPUs", "CUDA driver", "CUDA generator"


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
    except (ValueError, OSError, MemoryError, OverflowError, RuntimeError) as error:
        lacking = any(key in str(error) for key in LACKING)
        if os.environ.get("FEWSTEP_TRACEBACK") or (isinstance(error, RuntimeError) and not lacking):
            raise
        text = str(error).split("\n")[0] if isinstance(error, RuntimeError) else sentence(error)
        if isinstance(error, OverflowError):  # options within their bounds whose combination is not
            text = "numbers grow beyond what can be computed: an option is too large or small"
        raise click.ClickException(text) from error


def _print_anything() -> None:
    """Let the console show characters that it lacks, and file names that are no text, as escapes instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 120,
    "align_option_groups": False,
    "token_normalize_func": lambda token: token.replace("_", "-"),  # of options and sub-commands
}


class Option(cloup.Option):
    """An option in a group; with finite=False, numbers may be infinite."""

    def __init__(self, *args: Any, finite: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.finite = finite


class Choice(click.Choice):
    """One of some words, spelled as they are: `-` and `_` are alike in names of options only."""

    def normalize_choice(self, choice: Any, ctx: click.Context | None) -> str:
        return super().normalize_choice(choice, None)


def _check_numbers(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """The value of any option or argument, refused where it holds a number that nothing can be computed with."""
    for number in value if isinstance(value, list | tuple) else [value]:
        if isinstance(number, int) and not -(2**63) <= number < 2**63:
            raise click.BadParameter("this is beyond any sensible size: give a number below 2^63", ctx, param)
        if isinstance(number, float) and math.isnan(number):
            raise click.BadParameter("nan is not a number: give one", ctx, param)
        if isinstance(number, float) and math.isinf(number) and getattr(param, "finite", True):
            raise click.BadParameter("it must be finite: give a number", ctx, param)
    return value


class Command(cloup.Command):
    """A click command with both spellings of every option, checked numbers, and errors as sentences."""

    def __init__(self, *args: Any, context_settings: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, context_settings=SETTINGS | (context_settings or {}), **kwargs)
        for param in self.params:
            param.callback = _checked(param.callback)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        process.imported()  # before `--help`, which ends here
        try:
            with _errors_as_sentences():  # of `--help` to a full disk
                return super().parse_args(ctx, args)
        except click.UsageError as error:
            if os.environ.get("RANK", "0") == "0":  # of torchrun: every process is given the same command line
                raise
            raise SystemExit(error.exit_code) from error

    def invoke(self, ctx: click.Context) -> Any:
        _print_anything()
        try:
            with ending_as_exit(), _errors_as_sentences():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Stopped by Ctrl-C", err=True)
            raise SignalExit(signal.SIGINT, said=True) from None
        except SignalExit as end:
            if not end.said:
                click.echo(f"Stopped by {end.name}", err=True)
            raise


def _checked(callback: Callable[..., Any] | None) -> Callable[..., Any]:
    """The callback of an option, after the check of its numbers."""
    if callback is None:
        return _check_numbers
    return lambda ctx, param, value: callback(ctx, param, _check_numbers(ctx, param, value))


class Group(cloup.Group):
    """A click group of `Command`s; with `default="name"`, `script.py --option` means `script.py name --option`."""

    command_class = Command

    def __init__(
        self, *args: Any, default: str | None = None, context_settings: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, context_settings=SETTINGS | (context_settings or {}), **kwargs)
        self.default = default

    def command(self, *args: Any, cls: type[click.Command] = Command, **kwargs: Any) -> Any:
        return super().command(*args, cls=cls, **kwargs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if self.default and args and args[0].startswith("-") and args[0] not in ("--help", "-h"):
            args = [self.default, *args]
        return super().parse_args(ctx, args)


def examples_of(name: str, epilog: str | None, default: bool = False) -> str | None:
    """The blocks of a script's examples, each after a line `\\b`, that have the sub-command `name`; of the default
    sub-command also those that have none."""
    head, *blocks = (epilog or "").split("\b\n")
    command = re.compile(rf"\.py (?:{name}\b{'|--' * default})")
    own = [block for block in blocks if command.search(block)]
    title = "" if not own or own[0].startswith("Examples:") else "Examples:\n"
    return head + "".join(f"\b\n{title * (i == 0)}{block}" for i, block in enumerate(own)) or None


class LazyGroup(Group):
    """A group whose sub-commands are made when they are called, so that its `--help` waits for no import of theirs.

    Args:
        lines: name -> one line of the group's `--help`.
        load: name -> the sub-command; without an epilog it has those examples of the group that have its name.
    """

    def __init__(
        self, *args: Any, lines: Mapping[str, str], load: Callable[[str], click.Command], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.load = load
        for name, line in lines.items():
            self.add_command(Command(name, help=line))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if super().get_command(ctx, name) is None:
            return None
        command = self.load(name)
        command.epilog = command.epilog or examples_of(name, self.epilog, name == self.default)
        return command


class IntList(click.ParamType):
    """`1,2,5-10` -> [1, 2, 5, 6, 7, 8, 9, 10]; at least one."""

    name = "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        try:
            found = parse_int_list(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if not found:
            self.fail(f"'{value}' names no number: write for example 1,2,5-10", param, ctx)
        return found


class CountList(IntList):
    """A list of integers from 1 on, written as for `IntList`; `auto`, what the bare option means, is the empty list."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if value == "auto":
            return []
        found = super().convert(value, param, ctx)
        if min(found) < 1:
            self.fail(f"'{value}' holds {min(found)}: give numbers from 1 on, or none for the default", param, ctx)
        return found


class NumberList(click.ParamType):
    """`[80,10.9,0.002]` or `80,10.9,0.002` -> list of floats; at least one."""

    name = "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        if not isinstance(value, str):
            return [float(v) for v in value]
        match = re.fullmatch(r"\s*(?:\[(.*)\]|([^\[].*))\s*", value)
        try:
            return [float(part) for part in (match[1] or match[2] or "").split(",")]
        except (TypeError, ValueError):
            self.fail(f"'{value}' is not a list of numbers: write for example [80,10.9,0.002]", param, ctx)
