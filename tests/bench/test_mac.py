"""The benchmark of MAC's second stage: what it runs, what it skips, and its statistics."""

import json
import shlex

import pytest
from click.testing import CliRunner

from bench import mac


@pytest.fixture
def calls(monkeypatch):
    """Command lines that would be run, in order; each leaves the files that its next reader wants."""
    made = []

    def call(script, arguments):
        made.append((script, arguments))
        given = dict(a.lstrip("-").split("=", 1) for a in shlex.split(arguments) if "=" in a)
        if "outdir" in given:
            run = mac.Path(given["outdir"])
            run.mkdir(parents=True)
            for kimg in ("000000", "000089"):
                (run / f"network-snapshot-{kimg}.pkl").touch()
        elif "json" in given:
            learned = "denoiser" not in given["network"]
            distance = (1.0 if learned else 2.0) + 0.1 * int(given["network"].split("seed")[1][0])
            mac.Path(given["json"]).write_text(json.dumps({"distance": distance}))
        else:
            mac.Path(given["dest"]).touch()

    monkeypatch.setattr(mac.commands, "call", call)
    return made


def test_finished_runs_are_skipped(calls, tmp_path):
    arguments = [f"--outdir={tmp_path}", "--seeds=0,3", "--variants=C-lean"]
    result = CliRunner().invoke(mac.main, arguments)
    assert result.exit_code == 0, result.output
    trained = [text for script, text in calls if script == "train_trajectory.py"]
    assert len(trained) == 2
    assert all("network-snapshot-000089.pkl" in text and mac.LEAN in text for text in trained)
    assert sum(script == "train.py" for script, _ in calls) == 2
    found = json.loads((tmp_path / "results.json").read_text())["distances"]
    assert found["C-lean"] == {"0": 1.0, "3": 1.3}
    assert "-1.000 ± 0.000" in result.output
    calls.clear()
    assert CliRunner().invoke(mac.main, [*arguments, "--variants=C-lean,V"]).exit_code == 0
    assert {text.split("--outdir=")[1].split()[0] for script, text in calls if script == "train_trajectory.py"} == {
        str(tmp_path / f"seed{s}" / "V") for s in (0, 3)
    }
    assert not any(script == "train.py" for script, _ in calls)


def test_what_another_command_made_is_not_taken(calls, tmp_path):
    arguments = [f"--outdir={tmp_path}", "--seeds=0", "--variants=C-lean"]
    assert CliRunner().invoke(mac.main, arguments).exit_code == 0
    calls.clear()
    assert CliRunner().invoke(mac.main, [*arguments, "--num=100"]).exit_code == 0
    assert [script for script, _ in calls] == ["fid.py"] * 3
    (tmp_path / "seed0" / "denoiser" / "network-snapshot-000089.pkl").write_text("other weights")
    calls.clear()
    assert CliRunner().invoke(mac.main, [*arguments, "--num=100"]).exit_code == 0
    assert [script for script, _ in calls] == ["fid.py"] * 2
    calls.clear()
    result = CliRunner().invoke(mac.main, [*arguments, "--mimg=0.2"])
    assert result.exit_code == 1
    assert "is finished by another command (arguments: edm" in result.output
    assert not calls


def test_unknown_variant(tmp_path):
    result = CliRunner().invoke(mac.main, [f"--outdir={tmp_path / 'x'}", "--variants=D"])
    assert result.exit_code == 1
    assert "choose from C" in result.output
    assert not (tmp_path / "x").exists()


def test_interval_is_students():
    mean, half = mac.interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(4.302653 / 3**0.5)  # t of two degrees of freedom at 97.5 %
    assert mac.interval([1.0])[1] == float("inf")
