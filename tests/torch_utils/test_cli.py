"""Shared command line behaviour: spellings, sentences, numbers, dataclass options in groups."""

import math
from dataclasses import dataclass
from typing import ClassVar

import click
import pytest
from click.testing import CliRunner

from torch_utils.cli import Command, Group, IntList, NumberList
from torch_utils.options import Alias, OptionGroup, may_change, opt, options_of


@dataclass(frozen=True, kw_only=True)
class Options:
    batch_gpu: int = opt(4, "Per pass", at_least=1)
    S_churn: float = opt(0.0, "Noise", at_least=0)
    sizes: tuple[int, ...] | None = opt(None, "Sizes")
    fast: bool = opt(False, "Go fast", flag=True)
    mode: str = opt("a", "Mode", choices=["a", "b"])
    ratio: float | None = opt(None, "Ratio", at_least=0)
    limit: float | None = opt(None, "Limit", finite=False)
    levels: tuple[float, ...] | None = opt(None, "Levels")


@click.command(cls=Command)
@options_of(Options)
def command(options):
    if options.batch_gpu == 13:
        raise ValueError("thirteen is\nunlucky")
    if options.batch_gpu == 14:
        open("/nonexistent/file")  # noqa: SIM115
    if options.batch_gpu == 15:
        raise KeyError("a bug, not bad input")
    click.echo(repr(options))


def run(*args, target=command):
    return CliRunner().invoke(target, list(args))


@pytest.mark.parametrize("spelling", ["--batch-gpu=2", "--batch_gpu=2"])
def test_both_spellings(spelling):
    assert "batch_gpu=2" in run(spelling).output


def test_capitals_and_underscores_stay():
    assert "S_churn=1.5" in run("--S_churn=1.5").output
    assert "S_churn=1.5" in run("--S-churn", "1.5").output


def test_lists_flags_and_choices():
    output = run("--sizes=1,2,4-6", "--fast", "--mode=b").output
    assert "sizes=(1, 2, 4, 5, 6)" in output
    assert "fast=True" in output
    assert "mode='b'" in output


def test_errors_are_one_sentence():
    result = run("--batch-gpu=13")
    assert result.exit_code == 1
    assert result.output == "Error: thirteen is unlucky\n"
    result = run("--batch-gpu=14")
    assert result.exit_code == 1
    assert result.output == "Error: No such file or directory: /nonexistent/file\n"


def test_bugs_are_not_hidden():
    assert isinstance(run("--batch-gpu=15").exception, KeyError)


@pytest.mark.parametrize("args", [["--batch-gpu=0"], ["--mode=c"], ["--sizes=1;2"], ["--unknown=1"], ["--S_churn=x"]])
def test_bad_usage_exits_with_two(args):
    result = run(*args)
    assert result.exit_code == 2
    assert "Error" in result.output


def test_default_sub_command():
    @click.group(cls=Group, default="one")
    def group():
        pass

    @group.command("one")
    @click.option("--x", default=1)
    def one(x):
        click.echo(f"one {x}")

    @group.command("two")
    def two():
        click.echo("two")

    assert run("--x=3", target=group).output == "one 3\n"
    assert run("two", target=group).output == "two\n"
    assert "Commands" in run("--help", target=group).output


@pytest.mark.parametrize(("text", "values"), [("1,2,5-7", [1, 2, 5, 6, 7]), ("3,3", [3, 3])])
def test_int_list(text, values):
    assert IntList().convert(text, None, None) == values


@pytest.mark.parametrize(("text", "values"), [("[80,1e-1]", [80, 0.1]), ("80, 2", [80, 2])])
def test_number_list(text, values):
    assert NumberList().convert(text, None, None) == values


@pytest.mark.parametrize("text", ["7-5", "", "a", "1-2-3", "-3", "0-99999999999", "1" * 5000, "²"])
def test_int_list_refuses(text):
    with pytest.raises(click.BadParameter):
        IntList().convert(text, None, None)


@pytest.mark.parametrize("text", ["[1,2", "a,b", "[[1]]", "__import__('os')", "", "[]", "[" * 5000])
def test_number_list_refuses(text):
    with pytest.raises(click.BadParameter):
        NumberList().convert(text, None, None)


@pytest.mark.parametrize("name", ["ratio", "limit", "levels", "batch-gpu"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "1,nan", "99999999999999999999999", ""])
def test_numbers_nobody_can_calculate_with(name, value):
    result = run(f"--{name}={value}")
    good = name == "limit" and value in ("inf", "-inf", "1e999")
    good |= name in ("ratio", "limit", "levels") and value.isdigit()
    assert result.exit_code == (0 if good else 2)
    assert good or f"--{name}" in result.output.splitlines()[-1]


def test_infinity_where_it_is_allowed():
    assert f"limit={math.inf}" in run("--limit=inf").output


@dataclass(frozen=True, kw_only=True)
class Second:
    group: ClassVar = OptionGroup("Second things", "Only on Sundays.", rank=2)
    speed: float = opt(1.0, "Speed", may_change=True, aliases=(Alias("--fast", "Speed 9", lambda on: 9.0, bool),))
    size: int = opt(1, "Size")


@dataclass(frozen=True, kw_only=True)
class First:
    group: ClassVar = OptionGroup("First things", "Always.", rank=1)
    name: str | None = opt(None, "Name")


@dataclass(frozen=True, kw_only=True)
class Both(First, Second):
    size: int = opt(2, "Size in feet")
    loose: int = opt(3, "Of no group")


@click.command(cls=Command)
@options_of(Both)
def grouped(options):
    click.echo(repr(options))


@click.command(cls=Command)
@options_of(Second)
def alone(options):
    click.echo(repr(options))


def test_help_in_groups():
    lines = run("-h", target=grouped).output.splitlines()
    found = [line.split()[0] for line in lines if line.strip()]
    assert found[found.index("First") :] == ["First", "Always.", "--name", "Second", "Only", "--speed", "--fast",
                                             "--size", "Other", "--loose", "-h,"]  # fmt: skip
    assert "Size in feet" in run("-h", target=grouped).output
    assert "--name" not in run("-h", target=alone).output
    assert "Size in feet" not in run("-h", target=alone).output  # groups of two commands stay apart


def test_aliases_are_not_recorded():
    assert "Second(speed=9.0, size=1)" in run("--fast", target=alone).output
    assert "speed=9.0" in run("--fast", "--speed=9", target=alone).output
    result = run("--fast", "--speed=2", target=alone)
    assert result.exit_code == 2
    assert "--fast=1 and --speed=2.0 contradict each other" in result.output


def test_what_may_change_is_said_where_it_is_declared():
    assert may_change(Both) == {"speed"}
