"""Every numeric option of every command refuses what nobody can calculate with, in a sentence that names it."""

import importlib

import click
import pytest
from click.testing import CliRunner

from torch_utils.cli import Group, IntList, NumberList

SCRIPTS = ("train", "train_trajectory", "generate", "fid", "analyze", "dataset_tool", "training.runs.phema")


def commands(command, path):
    if not isinstance(command, Group):
        yield path, command
        return
    for name in command.commands:
        yield from commands(command.get_command(click.Context(command), name), (*path, name))


def numeric():
    for script in SCRIPTS:
        for path, command in commands(importlib.import_module(script).main, (script,)):
            for param in command.params:
                kind = param.type
                integers = isinstance(kind, IntList | click.IntRange) or kind is click.INT
                reals = isinstance(kind, NumberList | click.FloatRange) or kind is click.FLOAT
                if integers or reals:
                    yield pytest.param(command, param, integers, id=f"{' '.join(path)} {param.opts[0]}")


CASES = list(numeric())


def beyond(kind):
    """Numbers outside of the bounds that an option declares: zero and a negative one where it asks for more."""
    low, high = getattr(kind, "min", None), getattr(kind, "max", None)
    below = [] if low is None else ["0", str(low - 1)] if low > 0 or kind.min_open else [str(low - 1)]
    return below + ([] if high is None else [str(high + 1)])


@pytest.mark.parametrize(("command", "param", "integers"), CASES)
def test_refused_by_construction(command, param, integers):
    values = ["nan", "", "x", "1,nan"]
    values += ["inf", "-1e999"] if getattr(param, "finite", True) or integers else []
    values += ["9" * 30, "-" + "9" * 30] if integers else []
    values += beyond(param.type)
    if getattr(param, "_flag_needs_value", False):  # click takes what follows for another option
        values = [value for value in values if not value.startswith("-")]
    for value in values:
        result = CliRunner().invoke(command, [f"{param.opts[0]}={value}"])
        assert result.exit_code == 2, (value, result.output)
        assert param.opts[0] in result.output.splitlines()[-1]


def test_the_list_is_long():
    assert len(CASES) > 150
    assert sum(bool(beyond(case.values[1].type)) for case in CASES) > 400
