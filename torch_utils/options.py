"""Frozen dataclasses filled by click: one place declares an option's name, type, default and help.

    @dataclass(frozen=True, kw_only=True)
    class Options:
        batch: int = opt(512, "Total batch size over all processes", metavar="INT", at_least=1)

    @click.command(cls=Command)
    @options_of(Options)
    def main(options: Options): ...

The dataclass is also what is written to training_options.json and compared when a run is continued.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable
from typing import Any

import click

from torch_utils.cli import IntList

__all__ = ["opt", "options_of"]


def opt(
    default: Any,
    help: str,  # click's own word
    *,
    metavar: str | None = None,
    choices: list[str] | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    flag: bool = False,
    names: tuple[str, ...] = (),
    required: bool = False,
    type: click.ParamType | None = None,
    bare: Any = None,
) -> Any:
    """A dataclass field that is also a command line option.

    With `bare`, the option may be given without a value and then has this one: `--afs` as well as `--afs=True`.
    """
    extra = {
        "help": help, "metavar": metavar, "choices": choices, "at_least": at_least, "above": above,
        "at_most": at_most, "flag": flag, "names": names, "required": required, "type": type, "bare": bare,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=extra)


def _click_type(hint: Any, meta: typing.Mapping[str, Any]) -> Any:
    if meta["type"] is not None:
        return meta["type"]
    if meta["choices"]:
        return click.Choice(meta["choices"])
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    if typing.get_origin(hint) is tuple:
        return IntList()
    if hint in (int, float) and all(meta[k] is None for k in ("at_least", "above", "at_most")):
        return hint
    bounds = {"min": meta["at_least"] if meta["above"] is None else meta["above"], "max": meta["at_most"]}
    if hint is int:
        return click.IntRange(**bounds)
    if hint is float:
        return click.FloatRange(**bounds, min_open=meta["above"] is not None)
    return hint


def options_of(cls: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: one click option per field of the dataclass `cls`; the function gets the filled instance."""
    hints = typing.get_type_hints(cls)
    fields = [f for f in dataclasses.fields(cls) if f.metadata]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(**values: Any) -> Any:
            given = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            return function(cls(**given))

        for f in reversed(fields):
            meta = f.metadata
            wrapped = click.option(
                "--" + f.name.replace("_", "-"),
                *meta["names"],
                f.name,
                type=bool if meta["flag"] else _click_type(hints[f.name], meta),
                is_flag=meta["flag"],
                show_default=f.default is not None and not meta["flag"],
                required=meta["required"],
                metavar=meta["metavar"],
                help=meta["help"],
                **({} if meta["required"] else {"default": f.default}),
                **({} if meta["bare"] is None else {"flag_value": meta["bare"]}),
            )(wrapped)
        return wrapped

    return decorate
