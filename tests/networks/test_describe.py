"""`python -m networks.describe`: every format, nothing executed, errors as one sentence."""

import subprocess
import sys

import hostile
import pytest
import torch
from click.testing import CliRunner
from golden_cases import cases

from networks import describe
from torch_utils.checkpoint import load, save, save_safetensors


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "training-state-000001.pt"
    net = {"weight": torch.ones(2, 3), "bias": torch.zeros(3)}
    save(path, "state", {"method": "edm"}, {"net": net, "optimizer": {"state": {0: {"exp_avg": torch.ones(5)}}}})
    return path


def shown(*arguments):
    return CliRunner().invoke(describe.main, [*map(str, arguments)])


def test_show_state(saved):
    result = shown(saved)
    assert result.exit_code == 0
    sha256 = load(saved).sha256
    for piece in ("Fewstep state, version 1", '"method": "edm"', f"sha256: {sha256}", "optimizer.state.0.exp_avg"):
        assert piece in result.output
    assert "parameters: 14" in result.output
    assert "exp_avg" not in shown(saved, "--no-tensors").output


def test_show_safetensors(tmp_path):
    save_safetensors(tmp_path / "x.safetensors", {"method": "edm"}, {"a.weight": torch.ones(3, 4)})
    output = shown(tmp_path / "x.safetensors").output
    for piece in ("format: safetensors", '"method": "edm"', "parameters: 12", "a.weight  float32   [3, 4]"):
        assert piece in output


@pytest.mark.parametrize("case", cases("edm", "snapshot"))
def test_show_edm_pickle(case):
    with hostile.watched():
        result = shown(case.path.parent / case.spec["file"])
    assert result.exit_code == 0
    assert "EDM-style pickle" in result.output
    assert f'"class": "{case.spec["ema_class"]}"' in result.output
    assert f"tensors: {case.spec['num_tensors']}" in result.output


@pytest.mark.parametrize("case", cases("edm", "training_state"))
def test_show_training_state(case):
    result = shown(case.path.parent / case.spec["file"])
    assert result.exit_code == 0
    assert "optimizer_state.state.0.exp_avg" in result.output


def test_show_errors_are_one_sentence(tmp_path):
    (tmp_path / "x.pkl").write_bytes(hostile.BODIES["posix system"][0])
    result = shown(tmp_path / "x.pkl")
    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    assert "posix.system" in result.output
    assert shown(tmp_path / "missing").exit_code == 1


def test_show_escapes_control_characters(tmp_path):
    save(tmp_path / "x.pt", "state", {"evil": "\x1b[2J"}, {"\x1b[31m": torch.ones(1)})
    assert "\x1b" not in shown(tmp_path / "x.pt").output


def test_its_old_name_still_works(saved):
    command = [sys.executable, "-m", "torch_utils.checkpoint", "show", str(saved), "--no-tensors"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Fewstep state, version 1" in result.stdout
    assert result.stderr == ""
