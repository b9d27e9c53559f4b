"""Benchmarks on the digits over seeds: what they train and skip, whose distances they show, and their rows."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from exact_runs import make_data
from run_locks import release_locks

import dataset_tool
import fid
import networks
from bench import digits, idff_digits, transformers_digits
from networks.load import save_network
from samplers.planning.plan import SamplerOptions, build_plan


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Command lines that would be run; a training leaves an untrained network, the data set few images."""
    made = []

    def call(script, arguments):
        made.append(arguments)
        given = dict(a.lstrip("-").split("=", 1) for a in shlex.split(arguments) if "=" in a)
        if "dest" in given:
            zipped = ["--source", str(make_data(tmp_path / "toy")), "--dest", given["dest"]]
            assert CliRunner().invoke(dataset_tool.main, zipped).exit_code == 0
            return
        torch.manual_seed(int(given["seed"]))
        net = networks.build(
            "EDMPrecond", img_resolution=8, img_channels=1, model_channels=4, channel_mult=[1], num_blocks=1
        )
        Path(given["outdir"]).mkdir(parents=True, exist_ok=True)
        save_network(f"{given['outdir']}/network-snapshot-000001.pkl", net)

    monkeypatch.setattr(digits.commands, "call", call)
    return made


def test_finished_work_is_skipped_and_distances_are_those_of_fid_py(calls, tmp_path):
    rows = {"Euler": digits.Sampler("small", {n: SamplerOptions(solver="euler", steps=n) for n in (2, 3)})}
    main = digits.command({"small": "edm --batch=8"}, rows, "A title", str(tmp_path / "out"), 0.001)

    def run(*more):
        result = CliRunner().invoke(main, ["--seeds=0,5", "--num=20", *more])
        assert result.exit_code == 0, result.output
        return result.output, json.loads((tmp_path / "out" / "results.json").read_text())

    text, found = run()
    assert sum("--seed=" in c for c in calls) == 2
    assert all("--cond=1" in c and "--duration=0.001" in c for c in calls if "--seed=" in c)
    values = found["distances"]["Euler"]
    assert [len(values[n]) for n in ("2", "3")] == [2, 2]
    mean = sum(values["3"]) / 2
    assert f"{mean:.3f} ± {abs(values['3'][0] - values['3'][1]) / 2**0.5:.3f}" in text
    calls.clear()
    assert run() == (text, found)
    assert not calls
    network = tmp_path / "out" / "seed5" / "small" / "network-snapshot-000001.pkl"
    report = tmp_path / "fid.json"
    arguments = ["calc", f"--network={network}", f"--ref={tmp_path / 'out' / 'digits.zip'}", "--num=20"]
    arguments += ["--features=pixels", "--solver=euler", "--steps=3", f"--json={report}", "--device=cpu"]
    result = CliRunner().invoke(fid.main, arguments)
    release_locks()
    assert result.exit_code == 0, result.output
    assert json.loads(report.read_text())["distance"] == pytest.approx(values["3"][1], rel=1e-9)
    save_network(network, networks.load_network(tmp_path / "out" / "seed0" / "small" / network.name))
    assert run()[1]["distances"]["Euler"]["3"] == [values["3"][0]] * 2


@pytest.mark.parametrize("bench", [idff_digits, transformers_digits])
def test_rows_cost_what_they_say(bench):
    """Every row names a network that is trained, and makes as many network evaluations as its column says."""
    size = {"img_resolution": 8, "img_channels": 1}
    unet = {**size, "model_channels": 32, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
    heads = {**size, "model_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": []}
    small = {
        "edm": ("EDMPrecond", unet), "curvature": ("VelocityNetwork", unet), "idff": ("FusionNetwork", heads),
        "idff-independent": ("FusionNetwork", heads),
    }  # fmt: skip
    for name, row in bench.ROWS.items():
        assert row.network in bench.TRAINED
        if row.network not in small or "calibrated" in name or "GITS" in name:
            continue
        kind, config = small[row.network]
        net = networks.build(kind, **config)
        for n, options in row.samplers.items():
            plan = build_plan(net, options)
            wanted = options.N if "published" in name else n
            assert plan.nfe == wanted, (name, n)
