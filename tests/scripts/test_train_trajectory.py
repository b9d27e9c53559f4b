"""train_trajectory.py from the command line: runs, resumes to the same numbers, is sampled, refuses bad input."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from exact_runs import make_data
from patience import HUNG

import generate
import networks
import train
import train_trajectory
from training.runs import run_dir as runs

ROOT = Path(__file__).parents[2]
V = "--cbase=8 --cres=1 --num-blocks=1 --attn-resolutions=4 --augment=0 --dropout=0 --batch=16 --duration=0.001"
C = "--coef-channels=8 --coef-mult=1 --coef-blocks=1 --basis-num=2"
SHORT = f"{C} --backbones=light --batch=50 --batch-edm=4 --batch-disc=6 --kimg=0.2 --tick=0.1 --seed=1 --num-steps=3"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of 24 grey 8x8 images in three classes."""
    return make_data(tmp_path_factory.mktemp("d") / "toy")


@pytest.fixture(scope="module")
def network(data, tmp_path_factory):
    """A conditional denoiser of them, and an unconditional one that is told the level of every element."""
    out = tmp_path_factory.mktemp("v")
    for name, how in (("plain", "--cond=1"), ("gamma", "--precond=edm_gamma --scale=0.1 --basis-num=2")):
        args = shlex.split(f"edm --outdir={out / name} --nosubdir --data={data} --seed=0 {V} {how}")
        result = CliRunner().invoke(train.main, args)
        assert result.exit_code == 0, result.output
    return {name: out / name / "network-snapshot-000001.pkl" for name in ("plain", "gamma")}


def run(text, **kwargs):
    return CliRunner().invoke(train_trajectory.main, shlex.split(text.format(**kwargs)))


def losses(run_dir, name="Loss/C"):
    lines = (run_dir / "stats.jsonl").read_text().splitlines()
    return [json.loads(line)[name]["mean"] for line in lines]


def test_a_run_leaves_what_the_docs_promise(data, network, tmp_path):
    result = run("--outdir={o} --data={d} --cond=1 --network={n} " + SHORT, o=tmp_path, d=data, n=network["plain"])
    assert result.exit_code == 0, result.output
    run_dir = tmp_path / "00000-toy-cond-trajectory-gpus1-batch50-fp32"
    names = {p.name for p in run_dir.iterdir()}
    assert {"training_options.json", "stats.jsonl", "network-snapshot-000000.pkl", "samples-000000.png"} <= names
    assert {"plain-000000.png", "training-state-000000.pt"} <= names
    assert len(list((run_dir / "coefficients" / "000000").iterdir())) == 2 * 1 * 2
    assert len(list((run_dir / "paths" / "000000").iterdir())) == 3 + 1
    assert "network evaluations + " in result.output
    for name in ("Loss/V", "Loss/C", "Loss/D_fake", "Loss/D_real", "Grad/C_norm"):
        assert all(np.isfinite(losses(run_dir, name)))
    net, start = networks.load_network(run_dir / "network-snapshot-000000.pkl"), networks.load_network(network["plain"])
    assert len(net.schedule) == 3
    assert net.label_dim == 3
    moved = [not torch.equal(a, b) for a, b in zip(net.V.parameters(), start.parameters(), strict=True)]
    assert any(moved)

    out = tmp_path / "images"
    text = f"--network={run_dir / 'network-snapshot-000000.pkl'} --seeds=0-3 --outdir={out} --class=1"
    result = CliRunner().invoke(generate.main, text.split())
    assert result.exit_code == 0, result.output
    assert "3 network evaluations per sample" in result.output
    assert "3 + " in result.output
    assert len(list(out.glob("*.png"))) == 4


def test_interrupted_is_uninterrupted(data, network, tmp_path, monkeypatch):
    command = "--outdir={o} --data={d} --cond=1 --network={n} --nosubdir --dump=1 " + SHORT
    whole = run(command, o=tmp_path / "a", d=data, n=network["plain"])
    assert whole.exit_code == 0, whole.output
    from training.loop.loop import Loop

    step, count = Loop.step, [0]

    def killed(self, stop=False):
        count[0] += 1
        if count[0] == 4:
            raise KeyboardInterrupt
        return step(self, stop)

    monkeypatch.setattr(Loop, "step", killed)
    run(command, o=tmp_path / "b", d=data, n=network["plain"])
    monkeypatch.setattr(Loop, "step", step)
    runs._locks[-1].close()
    again = run(command, o=tmp_path / "b", d=data, n=network["plain"])
    assert again.exit_code == 0, again.output
    assert "Continuing from" in again.output
    assert losses(tmp_path / "b") == losses(tmp_path / "a")
    a, b = (networks.load_network(tmp_path / x / "network-snapshot-000000.pkl").state_dict() for x in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    "options",
    [
        "--train-v=0 --s-churn=5 --s-noise=1.003",
        "--train-c=0 --level-draw=uniform --ema=0.001",
        "--x-0-conditioning=0 --multidimensionality=011 --lpf=0 --k=1 --coef-downsample=2 --checkpointing=0",
        "--batch-gpu=2 --diffaugment=color --level-draw=log --num-steps=1 --coefficient_conditioning=True",
    ],
)
def test_options_have_their_effect(data, network, tmp_path, options):
    command = "--outdir={o} --data={d} --network={n} --nosubdir {s} " + options
    result = run(command, o=tmp_path, d=data, n=network["gamma"], s=SHORT)
    assert result.exit_code == 0, result.output
    net, start = (
        networks.load_network(tmp_path / "network-snapshot-000000.pkl"),
        networks.load_network(network["gamma"]),
    )
    assert net.takes_gamma
    same = all(torch.equal(a, b) for a, b in zip(net.V.parameters(), start.parameters(), strict=True))
    assert same == ("train-v=0" in options)
    assert net.C.flags == ((False, True, True) if "011" in options else (True, True, True))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--cond=1 --network={plain} --multidimensionality=3", "three digits"),
        ("--network={plain}", "give --cond=1"),
        ("--cond=1 --network={gamma}", "unconditional"),
        ("--network={gamma} --coefficient-conditioning=0", "leave the option out"),
        ("--network={gamma} --train-v=0 --train-c=0", "nothing to train"),
        ("--network={gamma} --batch-disc=1000 --batch-gpu=1", "2 or more"),
        ("--network={gamma} --backbones=resnet", "no backbone is called"),
        ("--network={gamma} --diffaugment=blur", "blur"),
        ("--network=/nowhere.pkl", "neither a file nor a known checkpoint"),
        ("--network={gamma} --coef-mult=1,1,1,1,1,1", "cannot be halved"),
    ],
)
def test_bad_input_is_one_sentence(data, network, tmp_path, options, words):
    result = run("--outdir={o} --data={d} {s} ", o=tmp_path, d=data, s=SHORT + " " + options.format(**network))
    assert result.exit_code != 0, result.output
    assert words in result.output
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"class_name": "MACNetwork", "schedule": [80.0], "M": 2,
          "coefficients": {"model_channels": 8, "channel_mult": [1], "num_blocks": 1}}, "--resume"),
        ({"class_name": "CouplingEncoder", "img_resolution": 8, "img_channels": 1, "model_channels": 8,
          "channel_mult": [1], "num_blocks": 1}, "no denoiser with a range of noise levels"),
    ],
)  # fmt: skip
def test_snapshots_of_another_kind_are_no_start(data, network, tmp_path, config, words):
    if config["class_name"] == "MACNetwork":
        config = config | {"network": networks.load_network(network["gamma"]).config}
    networks.save_network(tmp_path / "other.pkl", networks.build(**config))
    result = run("--outdir={o} --data={d} --network={n}", o=tmp_path, d=data, n=tmp_path / "other.pkl")
    assert result.exit_code != 0
    assert words in result.output
    assert isinstance(result.exception, SystemExit)


def test_a_training_state_is_no_network(data, network, tmp_path):
    state = next(network["plain"].parent.glob("training-state-*.pt"))
    result = run("--outdir={o} --data={d} --network={n}", o=tmp_path, d=data, n=state)
    assert result.exit_code != 0
    assert "is a state, but a snapshot is needed" in result.output


def test_dry_run_says_what_a_sample_costs(data, network, tmp_path):
    result = run("-n --outdir={o} --data={d} --network={n} {s}", o=tmp_path / "x", d=data, n=network["gamma"], s=SHORT)
    assert result.exit_code == 0
    assert "Cost of a sample" in result.output
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_two_processes_do_what_one_does(data, network, tmp_path):
    """Noise, classes and power iterations belong to the global batch, batch normalisation to passes of four images."""
    command = f"--nosubdir --data={data} --cond=1 --network={network['plain']} --device=cpu {SHORT} --kimg=0.04"
    command += " --tick=0.008 --batch=8 --batch-edm=8 --batch-disc=8 --batch-gpu=4"
    one = run(f"--outdir={tmp_path / 'one'} {command}")
    assert one.exit_code == 0, one.output
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*torchrun, "train_trajectory.py", f"--outdir={tmp_path / 'two'}", *command.split()],
        cwd=ROOT, capture_output=True, text=True, timeout=HUNG,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("Loss/V", "Loss/C", "Loss/D_fake", "Loss/D_real", "Grad/C_norm"):
        assert losses(tmp_path / "two", name) == pytest.approx(losses(tmp_path / "one", name), rel=1e-4), name
    one, two = (
        networks.load_network(tmp_path / x / "network-snapshot-000000.pkl").state_dict() for x in ("one", "two")
    )
    for key in one:
        torch.testing.assert_close(two[key], one[key], atol=1e-6, rtol=1e-5)
