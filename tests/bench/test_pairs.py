"""The paired benchmark: rows agree with their plain implementations, and what does not agree is not timed."""

import json

import pytest
import torch
from click.testing import CliRunner

from bench.pairs import main, measure, rows
from bench.rows.curvature import step
from bench.rows.row import Row, Work

CHEAP = [name for name in rows() if name.startswith("solver") and "float32" in name]


def test_rows_are_known_by_name():
    assert len(rows()) >= 18
    assert all(name == row.name and row.goal > 0 for name, row in rows().items())


@pytest.mark.parametrize("name", CHEAP)
def test_solver_rows_agree(name):
    result = measure(rows()[name], repeats=1)
    assert result["ratio"] > 0
    assert result["difference"] < 1e-3


def test_results_that_differ_are_refused():
    row = Row("wrong", lambda: Work(lambda: torch.ones(3), lambda: torch.tensor([1.0, 1.0, 1.1])), goal=1, agree=1e-3)
    with pytest.raises(ValueError, match=r"wrong: the results differ by 0\.1"):
        measure(row, repeats=1)


def test_results_that_are_not_finite_are_refused():
    row = Row("nan", lambda: Work(lambda: torch.ones(1), lambda: torch.tensor([torch.nan])), goal=1)
    with pytest.raises(ValueError, match="differ by nan"):
        measure(row, repeats=1)


def test_command_line():
    done = CliRunner().invoke(main, ["--only=euler, float32", "--repeats=1", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.output)["row"] == "solver euler, float32 state"
    done = CliRunner().invoke(main, ["--only=nothing"])
    assert done.exit_code != 0
    assert "no row's name holds" in done.output


def test_plain_and_own_networks_of_the_curvature_step_hold_the_same_weights():
    """Making the row compares outputs of both networks, and of both encoders; then both sides train once."""
    work = step("digits", 2)
    assert work.reference() is None
    assert work.ours() is False
