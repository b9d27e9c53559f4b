"""The comparison of several training processes with one: its arithmetic, and one real run of each kind."""

import json

import pytest
from click.testing import CliRunner

from bench.processes import compare, main


def test_costs_that_are_repeated_and_costs_of_the_exchange_are_told_apart():
    whole = {"processes": 1, "img_per_sec": 100, "cpu_ms_per_step": 100}
    share = {"processes": 1, "img_per_sec": 80, "cpu_ms_per_step": 60}
    together = {"processes": 2, "img_per_sec": 75, "cpu_ms_per_step": 150}
    found = compare(whole, share, together)
    assert found == pytest.approx({"speed": 1.5, "cpu_time": 1.5, "repeated": 0.2, "exchange": 0.25})


def test_batches_that_cannot_be_shared_are_refused():
    done = CliRunner().invoke(main, ["--batch=7"])
    assert done.exit_code == 2
    assert "--batch=7 cannot be shared equally by 2 processes" in done.output


@pytest.mark.slow
def test_runs_of_one_and_of_two_processes():
    done = CliRunner().invoke(main, ["--batch=4", "--steps=1", "--turns=1"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output.splitlines()[-1])
    assert found["speed"] > 0
    assert found["cpu_time"] > 0
