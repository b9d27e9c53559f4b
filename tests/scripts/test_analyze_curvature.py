"""analyze.py curvature: a sweep over beta and a single denoiser, as table, JSON and picture."""

import json

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import analyze
import networks


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, options) in enumerate(
        {"b1": {"weight_prior": 1.0}, "b10": {"weight_prior": 10.0}, "free": {"independent": True}}.items()
    ):
        torch.manual_seed(seed)
        net = networks.build("VelocityNetwork", img_resolution=1, img_channels=2, model_type="MLP", hidden=8)
        networks.save_network(folder / f"{name}.pkl", net, {"options": {"weight_prior": 3.0, **options}})
    net = networks.build(
        "EDMPrecond", img_resolution=8, img_channels=1, model_channels=64, channel_mult=[1], num_blocks=1,
        attn_resolutions=[], label_dim=2,
    )  # fmt: skip
    networks.save_network(folder / "edm.pkl", net)
    return folder


def run(*args):
    return CliRunner().invoke(analyze.main, ["curvature", *map(str, args), "--device=cpu"])


def test_sweep(models, tmp_path):
    names = [models / f"{n}.pkl" for n in ("b1", "b10", "free")]
    result = run(*names, f"--outdir={tmp_path}", "--num=12", "--N=10", "--label=one", "--label=ten", "--label=free")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "curvature.json").read_text())["results"]
    assert [(r["label"], r["beta"]) for r in report] == [("one", 1), ("ten", 10), ("free", None)]
    for r in report:
        assert len(r["profile"]) == len(r["profile_stderr"]) == len(r["times"]) == r["steps"] == 10
        assert r["curvature"] > 0
        assert r["curvature_sum"] == pytest.approx(2 * r["curvature"])
        assert f"{r['curvature']:.4g} ± {r['stderr']:.2g}" in result.output
    with Image.open(tmp_path / "curvature.png") as picture:
        assert picture.width > 1.5 * picture.height  # two panels


def test_denoiser_with_classes(models, tmp_path):
    result = run(models / "edm.pkl", f"--outdir={tmp_path}", "--num=4", "--N=5", "--solver=heun")
    assert result.exit_code == 0, result.output
    (report,) = json.loads((tmp_path / "curvature.json").read_text())["results"]
    assert (report["steps"], report["beta"], report["dimension"]) == (3, None, 64)
    assert report["start_time"] == pytest.approx(80 / 81)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--label=a", "--label=b"], "--label is given 2 times for 1 networks"),
        (["--solver=heun", "--N=10"], "N is odd"),
        (["--prior=matched"], "matched"),
    ],
)
def test_bad_input(models, tmp_path, args, message):
    result = run(models / "b1.pkl", f"--outdir={tmp_path}", "--num=4", *args)
    assert result.exit_code == 1
    assert message in result.output
