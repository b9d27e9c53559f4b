"""train.py from the command line: runs, resumes, shares a batch among processes, refuses bad input in one sentence."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from exact_runs import make_data
from patience import HUNG
from run_locks import release_locks

import networks
import train
from torch_utils import checkpoint

ROOT = Path(__file__).parents[2]
TINY = "--cbase=8 --cres=1 --num-blocks=1 --attn-resolutions=4 --augment=0 --dropout=0 --lr-rampup=0.0001 --lr=1e-3"
SHORT = f"{TINY} --batch=16 --duration=0.001 --tick=0.2 --snap=2 --dump=1 --seed=3 --bench=0"


@pytest.fixture
def data(tmp_path):
    """A folder of 24 grey 8x8 images in three classes."""
    return make_data(tmp_path / "toy")


def run(text, **kwargs):
    return CliRunner().invoke(train.main, shlex.split(text.format(**kwargs)))


def stats_of(run_dir):
    return [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]


def losses(run_dir):
    return [s["Loss/loss"]["mean"] for s in stats_of(run_dir)]


def weights(run_dir, name="network-snapshot-000001.pkl"):
    return networks.load_network(run_dir / name).state_dict()


def test_a_run_leaves_what_the_docs_promise(data, tmp_path):
    result = run("--outdir={o} --data={d} --cond=1 " + SHORT, o=tmp_path / "runs", d=data)
    assert result.exit_code == 0, result.output
    run_dir = tmp_path / "runs" / "00000-toy-cond-ddpmpp-edm-gpus1-batch16-fp32"
    names = {p.name for p in run_dir.iterdir()}
    assert {"training_options.json", "log.txt", "stats.jsonl", "network-snapshot-000000.pkl"} <= names
    assert {"network-snapshot-000001.pkl", "training-state-000001.pt", "samples-000001.png"} <= names
    options = json.loads((run_dir / "training_options.json").read_text())
    assert options["seed"] == 3
    assert options["finished"]
    assert {"Loss/loss", "Progress/kimg", "Timing/sec_per_kimg", "timestamp"} <= stats_of(run_dir)[-1].keys()
    assert "img/s" in result.output
    assert "eta" in result.output
    net = networks.load_network(run_dir / "network-snapshot-000001.pkl")
    assert (net.img_resolution, net.img_channels, net.label_dim) == (8, 1, 3)


def test_sub_command_and_bare_command_are_the_same(data, tmp_path):
    for name, method in (("a", ""), ("b", "edm ")):
        assert run(method + "--outdir={o} --data={d} " + SHORT, o=tmp_path / name, d=data).exit_code == 0
    a, b = (next((tmp_path / name).glob("0*")) for name in "ab")
    assert losses(a) == losses(b)


def test_dry_run_writes_nothing(data, tmp_path):
    result = run("--outdir={o} --data={d} --dry-run " + SHORT, o=tmp_path / "runs", d=data)
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "runs").exists()
    for word in ("parameters", "FLOPs", "Memory", "Steps"):
        assert word in result.output


def test_interrupted_command_continues_to_the_same_numbers(data, tmp_path):
    command = "--outdir={o} --data={d} --cond=1 " + SHORT
    assert run(command, o=tmp_path / "straight", d=data).exit_code == 0
    assert run(command, o=tmp_path / "cut", d=data).exit_code == 0
    straight = next((tmp_path / "straight").glob("0*"))
    cut = next((tmp_path / "cut").glob("0*"))
    # Make it look as if the run had been killed after an early state: later files gone, later statistics half written.
    states = sorted(cut.glob("training-state-*.pt"))
    states[-1].unlink()
    (cut / "network-snapshot-000001.pkl").unlink()
    options = json.loads((cut / "training_options.json").read_text())
    del options["finished"]
    (cut / "training_options.json").write_text(json.dumps(options))
    release_locks()
    result = run(command, o=tmp_path / "cut", d=data)
    assert result.exit_code == 0, result.output
    assert "Continuing from" in result.output
    assert len(list((tmp_path / "cut").glob("0*"))) == 1
    assert losses(cut) == losses(straight)
    for key, value in weights(straight).items():
        assert torch.equal(weights(cut)[key], value), key
    a, b = (checkpoint.load(d / "training-state-000001.pt", kind="state").payload["loop"] for d in (straight, cut))
    for i, slot in a["optimizers"]["net"]["state"].items():
        for name, value in slot.items():
            assert torch.equal(b["optimizers"]["net"]["state"][i][name], value)


def test_transfer_starts_from_the_weights(data, tmp_path):
    assert run("--outdir={o} --data={d} " + SHORT, o=tmp_path / "a", d=data).exit_code == 0
    donor = next((tmp_path / "a").glob("0*"))
    text = "--outdir={o} --data={d} --transfer={t} " + SHORT.replace("--tick=0.2", "--tick=10")
    result = run(text, o=tmp_path / "b", d=data, t=donor / "network-snapshot-000001.pkl")
    assert result.exit_code == 0, result.output
    first = weights(next((tmp_path / "b").glob("0*")), "network-snapshot-000000.pkl")
    for key, value in weights(donor).items():
        assert torch.equal(first[key], value), key  # the first step has learning rate 0


@pytest.mark.parametrize("extra", ["--precond=vp", "--precond=ve", "--arch=ncsnpp", "--arch=adm --cbase=16 --cres=1"])
def test_every_architecture_and_preconditioner_trains(data, tmp_path, extra):
    text = "--outdir={o} --data={d} " + SHORT + " " + extra
    result = run(text, o=tmp_path / "runs", d=data)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("text", "words", "code"),
    [
        ("--outdir={o} --data={d}/missing", "missing", 1),
        ("--outdir={o}", "--data", 2),
        ("--outdir={o} --data={d} --arch=unet9000", "unet9000", 2),
        ("--outdir={o} --data={d} --batch=0", "batch", 2),
        ("--outdir={o} --data={d} --batch=12 --batch-gpu=5", "divisor", 1),
        ("--outdir={o} --data={d} --duration=-1", "duration", 2),
        ("--outdir={o} --data={d} --duration=0.0009", "give 0.001 or more", 1),
        ("--outdir={o} --data={d} --resume={d}", "no complete training state", 1),
        ("--outdir={o} --data={d} --resume={d}/nothing", "no such file", 1),
        ("--outdir={o} --data={d} --transfer={d}/00.png " + TINY, "00.png", 1),
        ("--outdir={o} --data={d} --fp16=1 --precision=bf16", "contradict", 2),
        ("--outdir={o} --data={d} --precond=vp --p-mean=-1", "precond", 1),
        ("--outdir={o} --data={d} --device=cuda", "CUDA", 1),
        ("--outdir={d}/00.png --data={d} " + TINY, "00.png", 1),
        ("--outdir={o} --data={d} --cres=1,x", "list", 2),
        ("nonsense --outdir={o}", "nonsense", 2),
    ],
)
def test_bad_input_is_one_sentence(data, tmp_path, text, words, code):
    if "cuda" in text and torch.cuda.is_available():
        pytest.skip("this machine has what the test says is missing")
    result = run(text, o=tmp_path / "runs", d=data)
    assert result.exit_code == code, result.output
    assert words.lower() in result.output.lower()
    assert "Traceback" not in result.output
    assert not list((tmp_path / "runs").glob("*/*.pkl"))


def test_labels_missing(data, tmp_path):
    (data / "dataset.json").unlink()
    result = run("--outdir={o} --data={d} --cond=1", o=tmp_path / "runs", d=data)
    assert result.exit_code == 1
    assert "labels" in result.output
    assert not (tmp_path / "runs").exists()


def test_every_option_has_help():
    method = train.main.get_command(click.Context(train.main), "edm")
    assert all(option.help for option in method.params)
    assert "Examples" in run("--help").output


def torchrun(processes, command, tmp_path):
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    done = subprocess.run(
        [*launcher, str(ROOT / "train.py"), *shlex.split(command)],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=HUNG, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_processes_give_the_curve_of_one(data, tmp_path):
    """Same global batch, same noise per image, same data order: only the order of summation differs."""
    command = f"--outdir={tmp_path}/{{name}} --data={data} --cond=1 {SHORT}"
    assert run(command.format(name="one")).exit_code == 0
    torchrun(2, command.format(name="two"), tmp_path)
    one, two = (next((tmp_path / name).glob("0*")) for name in ("one", "two"))
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-4)
    for key, value in weights(one).items():
        torch.testing.assert_close(weights(two)[key], value, rtol=0, atol=2e-4)


def test_batch_not_divisible_by_processes(data, tmp_path):
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launcher, str(ROOT / "train.py"), f"--outdir={tmp_path}/x", f"--data={data}", "--batch=9", *TINY.split()],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=HUNG, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "not divisible by the 2 processes" in done.stderr
