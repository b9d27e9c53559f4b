"""Frozen dataclasses filled by click: one place declares an option's name, type, default and help.

    @dataclass(frozen=True, kw_only=True)
    class Options:
        group: ClassVar = OptionGroup("Batches", "How much is computed at once.")
        batch: int = opt(512, "Total batch size over all processes", metavar="INT", at_least=1)

    @click.command(cls=Command)
    @options_of(Options)
    def main(options: Options): ...

The dataclass is also what is written to training_options.json and compared when a run is continued. A component
declares its options in a dataclass of its own, a command's options inherit from those of its components: `--help` shows
each option in the group of the class that declares it first, groups by their rank and then in the order of the fields.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import click
import cloup

from torch_utils.cli import Choice, IntList, NumberList, Option


class OptionGroup(cloup.OptionGroup):
    """A title of `--help` and a line saying when its options apply; groups of lower rank come first."""

    def __init__(self, title: str, help: str, rank: float = 0) -> None:
        super().__init__(title, help)
        self.rank = rank


@dataclasses.dataclass(frozen=True)
class Alias:
    """A spelling kept for other programs' command lines: what it means is recorded, not that it was used.

    Attributes:
        spelling, help: "--fp16" and what `--help` says.
        means: from what was given to the value of the option proper; None says nothing about it. A ValueError refuses.
        type: of what is given, click's; a bool without metavar is a flag.
    """

    spelling: str
    help: str
    means: Callable[[Any], Any]
    type: Any = str
    metavar: str | None = None


def opt(
    default: Any,
    help: str,  # click's own word
    *,
    metavar: str | None = None,
    choices: list[str] | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    finite: bool = True,
    flag: bool = False,
    names: tuple[str, ...] = (),
    aliases: tuple[Alias, ...] = (),
    required: bool = False,
    type: click.ParamType | None = None,
    bare: Any = None,
    may_change: bool = False,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """A dataclass field that is also a command line option.

    Args:
        at_least, above, at_most: bounds of a number, refused by click. Nan is always refused, infinity unless
            finite=False.
        names: further spellings of the option itself; `aliases` mean a value of it.
        bare: the option may be given without a value and then has this one: `--afs` as well as `--afs=True`.
        may_change: a run that is continued may have another value than it began with.
        presets: name -> values of other options, which hold where those are not given.
    """
    extra = {
        "help": help, "metavar": metavar, "choices": choices, "at_least": at_least, "above": above, "at_most": at_most,
        "finite": finite, "flag": flag, "names": names, "aliases": aliases, "required": required, "type": type,
        "bare": bare, "may_change": may_change, "presets": presets,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=extra)


def may_change(cls: type) -> set[str]:
    """Names of the options that a continued run may have other values of, also where a subclass declares them anew."""
    bases = [base for base in cls.__mro__ if dataclasses.is_dataclass(base)]
    return {f.name for base in bases for f in dataclasses.fields(base) if f.metadata.get("may_change")}


def refuse(options: Any, names: Iterable[str], why: str) -> None:
    """Raise ValueError, "--NAME WHY: leave it out", for the first of these options that is not at its default."""
    defaults = {f.name: f.default for f in dataclasses.fields(options)}
    for name in names:
        if getattr(options, name) != defaults[name]:
            raise ValueError(f"--{name.replace('_', '-')} {why}: leave it out")


def options_of(cls: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: one click option per field of the dataclass `cls`; the function gets the filled instance first.

    A field `tuple[str, ...]` may be given several times. Arguments of the command are passed on by name.
    """
    hints = typing.get_type_hints(cls)
    own = {id(g): copy.copy(g) for g in _groups(cls).values()}  # cloup writes a command's options into its groups
    groups = {name: own[id(g)] for name, g in _groups(cls).items()}
    fields = sorted((f for f in dataclasses.fields(cls) if f.metadata), key=lambda f: _rank(groups.get(f.name)))
    aliases = {_parameter(alias): (f.name, alias) for f in fields for alias in f.metadata["aliases"]}

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(**values: Any) -> Any:
            given = {f.name: values.pop(f.name) for f in fields}
            given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
            for parameter, (name, alias) in aliases.items():
                _apply(alias, values.pop(parameter), name, given)
            return function(cls(**given), **values)

        decorators = [d for f in fields for d in _decorators(f, hints[f.name], groups.get(f.name))]
        for decorator in reversed(decorators):
            wrapped = decorator(wrapped)
        return wrapped

    return decorate


def _groups(cls: type) -> dict[str, OptionGroup]:
    """The group of each option: that of the class that declares it first, where this class has one."""
    found: dict[str, OptionGroup | None] = {}
    for base in reversed(cls.__mro__):
        group = vars(base).get("group")
        for name in vars(base).get("__annotations__", {}):
            found.setdefault(name, group)
    return {name: group for name, group in found.items() if isinstance(group, OptionGroup)}


def _rank(group: OptionGroup | None) -> float:
    return float("inf") if group is None else group.rank


def _decorators(f: dataclasses.Field, hint: Any, group: OptionGroup | None) -> Iterator[Callable[..., Any]]:
    """The option of a field, then those of its aliases."""
    meta = f.metadata
    yield cloup.option(
        "--" + f.name.replace("_", "-"),
        *meta["names"],
        f.name,
        cls=Option,
        group=group,
        finite=meta["finite"],
        type=bool if meta["flag"] else _click_type(hint, meta),
        is_flag=meta["flag"],
        multiple=_is_repeated(hint),
        show_default=f.default not in (None, ()) and not meta["flag"],
        required=meta["required"],
        metavar=meta["metavar"],
        help=meta["help"],
        **({} if meta["required"] else {"default": f.default}),
        **({} if meta["bare"] is None else {"flag_value": meta["bare"]}),
        **({} if meta["presets"] is None else {"is_eager": True, "callback": _preset_of(meta["presets"])}),
    )
    for alias in meta["aliases"]:
        yield cloup.option(
            alias.spelling, _parameter(alias), cls=Option, group=group, default=None, help=alias.help, type=alias.type,
            metavar=alias.metavar, is_flag=alias.type is bool and alias.metavar is None,
        )  # fmt: skip


def _parameter(alias: Alias) -> str:
    """The name by which click knows a spelling."""
    return "alias_" + alias.spelling.strip("-").replace("-", "_")


def _apply(alias: Alias, value: Any, name: str, given: dict[str, Any]) -> None:
    """Put what an alias means in the place of the option that it means.

    Raises:
        UsageError: the option itself is given and says something else.
    """
    means = None if value is None else alias.means(value)
    if means is None:
        return
    source = click.get_current_context().get_parameter_source(name)
    if source is click.core.ParameterSource.COMMANDLINE and given[name] != means:
        spelled = f"{alias.spelling}={value:d}" if isinstance(value, bool) else f"{alias.spelling}={value}"
        other = f"--{name.replace('_', '-')}={given[name]}"
        raise click.UsageError(f"{spelled} and {other} contradict each other: give one of them")
    given[name] = means


def _preset_of(presets: Mapping[str, Mapping[str, Any]]) -> Callable[..., str | None]:
    """A click callback that makes the values of the chosen preset the defaults of this command line."""

    def chosen(ctx: click.Context, param: click.Parameter, name: str | None) -> str | None:
        if name is not None:
            ctx.default_map = {**(ctx.default_map or {}), **presets[name]}
        return name

    return chosen


def _is_repeated(hint: Any) -> bool:
    return typing.get_origin(hint) is tuple and typing.get_args(hint)[0] is str


def _click_type(hint: Any, meta: Mapping[str, Any]) -> Any:
    if meta["type"] is not None:
        return meta["type"]
    if meta["choices"] or meta["presets"]:
        return Choice(meta["choices"] or list(meta["presets"]))
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    if _is_repeated(hint):
        return str
    if typing.get_origin(hint) is tuple:
        return NumberList() if typing.get_args(hint)[0] is float else IntList()
    if hint in (int, float) and all(meta[k] is None for k in ("at_least", "above", "at_most")):
        return hint
    bounds = {"min": meta["at_least"] if meta["above"] is None else meta["above"], "max": meta["at_most"]}
    if hint is int:
        return click.IntRange(**bounds)
    if hint is float:
        return click.FloatRange(**bounds, min_open=meta["above"] is not None)
    return hint
