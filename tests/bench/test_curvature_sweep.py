"""The sweep over beta: what it trains, what it skips, whose numbers it shows; on digits, that the trend is there."""

import json

import pytest
import torch
from click.testing import CliRunner
from exact_runs import make_data
from PIL import Image
from run_locks import release_locks

import dataset_tool
import fid
import networks
from bench import curvature_sweep
from samplers.planning.plan import SamplerOptions, build_plan


def call(command, *arguments, code=0):
    result = CliRunner().invoke(command, [str(a) for a in arguments])
    release_locks()
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


def test_sweep_trains_once_and_measures_as_fid_py(tmp_path, monkeypatch):
    monkeypatch.setitem(curvature_sweep.CURVATURE, "num", 8)
    data = make_data(tmp_path / "toy")
    command = [f"--data={data}", f"--outdir={tmp_path / 'out'}", "--beta=independent,5", "--iterations=4"]
    measured = [*command, "--steps=1,3", "--num=30", "--device=cpu"]
    first = call(curvature_sweep.main, *measured)
    assert first.count("Run directory") == 2
    report = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert (report["num"], report["features"]) == (30, "pixels")
    found = {(r["label"], r["prior"]): r for r in report["results"]}
    assert list(found) == [("independent", "standard"), ("beta 5", "standard"), ("beta 5", "matched")]
    row = found["beta 5", "matched"]
    assert row["curvature"]["curvature"] > 0
    network = ["--network=" + row["network"], "--N=3", "--prior=matched", f"--ref={data}"]
    other = call(fid.main, "calc", *network, "--num=30", "--features=pixels", "--device=cpu")
    assert float(other.split()[-1]) == pytest.approx(row["frechet"]["3"], rel=1e-3)
    with Image.open(tmp_path / "out" / "sweep.png") as picture:
        assert picture.width > 1.5 * picture.height
    again = call(curvature_sweep.main, *measured)
    assert "Run directory" not in again
    assert first.endswith(again)
    assert "other options" in call(curvature_sweep.main, *measured, "--seed=1", code=1)


@pytest.mark.parametrize(
    ("more", "words"),
    [(["--beta=-1"], "0 or more"), (["--beta=x"], "not a list like"), (["--data=nowhere"], "nowhere")],
)
def test_bad_input(tmp_path, more, words):
    output = call(curvature_sweep.main, f"--outdir={tmp_path / 'out'}", "--data=toy", "--iterations=1", *more, code=1)
    assert words in output


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The report of a sweep on digits, long enough to show the trend."""
    folder = tmp_path_factory.mktemp("digits")
    call(dataset_tool.main, "--source=digits", f"--dest={folder / 'digits.zip'}")
    command = [f"--data={folder / 'digits.zip'}", f"--outdir={folder / 'out'}", "--beta=independent,5"]
    call(curvature_sweep.main, *command, "--iterations=400", "--steps=2,4")
    return json.loads((folder / "out" / "sweep.json").read_text())["results"]


@pytest.mark.slow
def test_a_small_beta_is_straighter_and_better_in_few_steps(digits):
    independent, learned, _ = digits
    assert (independent["label"], learned["label"], learned["prior"]) == ("independent", "beta 5", "standard")
    assert learned["curvature"]["curvature"] < 0.85 * independent["curvature"]["curvature"]
    for steps in ("2", "4"):
        assert learned["frechet"][steps] < 0.9 * independent["frechet"][steps], steps


@pytest.mark.slow
def test_five_evaluations_of_a_trained_model_beat_euler(digits):
    net = networks.load_network(digits[1]["network"])
    noise = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    few = {"num_warmup": 64, "sigma_max": 4.0}
    with torch.inference_mode():
        exact = build_plan(net, SamplerOptions(solver="heun", N=199))(net, noise)
        error = {}
        for name, options in {
            "euler": SamplerOptions(N=5),
            "gits": SamplerOptions(solver="ipndm", dp=True, num_steps=5, **few),
            "unipc": SamplerOptions(solver="unipc", dp=True, num_steps=5, **few),
            "calibrated": SamplerOptions(calibrate=(5,), **few),
        }.items():
            plan = build_plan(net, options)
            assert plan.nfe == 5, name
            error[name] = float((plan(net, noise) - exact).square().mean().sqrt())
    assert max(error["gits"], error["unipc"], error["calibrated"]) < 0.9 * error["euler"], error
