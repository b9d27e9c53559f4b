"""Shared command line behaviour: spellings, sentences, dataclass options."""

from dataclasses import dataclass

import click
import pytest
from click.testing import CliRunner

from torch_utils.cli import Command, Group, IntList, NumberList
from torch_utils.options import opt, options_of


@dataclass(frozen=True, kw_only=True)
class Options:
    batch_gpu: int = opt(4, "Per pass", at_least=1)
    S_churn: float = opt(0.0, "Noise", at_least=0)
    sizes: tuple[int, ...] | None = opt(None, "Sizes")
    fast: bool = opt(False, "Go fast", flag=True)
    mode: str = opt("a", "Mode", choices=["a", "b"])


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


@pytest.mark.parametrize(("text", "values"), [("1,2,5-7", [1, 2, 5, 6, 7]), ("7-5", []), ("3,3", [3, 3])])
def test_int_list(text, values):
    assert IntList().convert(text, None, None) == values


@pytest.mark.parametrize(("text", "values"), [("[80,1e-1]", [80, 0.1]), ("80, 2", [80, 2])])
def test_number_list(text, values):
    assert NumberList().convert(text, None, None) == values


@pytest.mark.parametrize("text", ["[1,2", "a,b", "[[1]]", "__import__('os')"])
def test_number_list_refuses(text):
    with pytest.raises(click.BadParameter):
        NumberList().convert(text, None, None)
