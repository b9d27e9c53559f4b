"""Points in the plane through every command: denoisers, trajectories of both kinds of family, samples, bad input."""

import shlex

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from run_locks import release_locks

import generate
import networks
import train
import train_trajectory

DATA = "--data=toy:8gaussians:size=2000 --seed=0 --nosubdir --device=cpu"
V = "--batch=64 --duration=0.004 --lr=1e-3 --lr-rampup=0 --ema=0.001 --cbase=16"
C = "--coef-channels=8 --coef-blocks=1 --basis-num=2 --scale=0.5 --batch=32 --batch-edm=32 --batch-disc=32 --kimg=0.2"
C += " --tick=0.1 --num-steps=3"


def run(script, text, **kwargs):
    result = CliRunner().invoke(script, shlex.split(text.format(**kwargs)))
    release_locks()
    return result


def test_steps_that_were_published_as_evaluations(tmp_path):
    """`--nfe-convention=steps` prints them beside the network calls."""
    net = networks.build("FusionNetwork", img_resolution=1, img_channels=2, model_type="SELUMLP", width=8)
    networks.save_network(tmp_path / "a.pkl", net)
    sampler = "--field=legacy_2024 --solver=ssprk3 --N=30 --seeds=0-3 --device=cpu --nfe-convention=steps"
    result = run(generate.main, "--network={t}/a.pkl --outdir={t}/out " + sampler, t=tmp_path)
    assert result.exit_code == 0, result.output
    assert "Steps:    10, what IDFF was published with" in result.output
    assert "30" in result.output.split("Steps:")[0]


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """Snapshots: a denoiser, a conditional one, one that is told every element's level, flows on two paths."""
    out = tmp_path_factory.mktemp("v")
    flow = "curvature --outdir={o} {d} --independent --optimizer=adam --lr=1e-3 --batch=64 --iterations=60 --N=2"
    commands = {
        "plain": "edm --outdir={o} {d} " + V,
        "cond": "edm --outdir={o} {d} --cond=1 --label-dropout=0.1 --num-blocks=2 " + V,
        "gamma": "edm --outdir={o} {d} --precond=edm_gamma --scale=0.5 " + V,
        "linear": flow + " --num-samples=8",
        "trig": flow + " --num-samples=8 --coupling=ot --trig",
    }
    found = {}
    for name, text in commands.items():
        result = run(train.main, text, o=out / name, d=DATA)
        assert result.exit_code == 0, result.output
        (found[name],) = sorted((out / name).glob("network-snapshot-*.pkl"))[-1:]
    return found


def test_denoisers_know_the_scale_of_their_points(nets):
    net = networks.load_network(nets["plain"])
    assert net.sigma_data == pytest.approx((25 / 2 + 0.1**0.5) ** 0.5, rel=0.03)
    assert type(net.model).__name__ == "FourierMLP"
    assert networks.load_network(nets["cond"]).label_dim == 8
    assert networks.load_network(nets["gamma"]).takes_gamma
    with Image.open(nets["plain"].parent / "samples-000004.png") as picture:
        assert picture.mode == "RGB"
    assert networks.load_network(nets["trig"]).path == "trig"
    assert not networks.load_network(nets["trig"]).gaussian_noise


@pytest.mark.parametrize("name", ["cond", "gamma", "linear"])
def test_points_are_sampled(nets, name, tmp_path):
    steps = "--N=3" if name == "linear" else "--steps=4"
    result = run(generate.main, "--network={n} --outdir={o} --seeds=0-19 {s}", n=nets[name], o=tmp_path, s=steps)
    assert result.exit_code == 0, result.output
    with np.load(tmp_path / "points.npz") as arrays:
        assert arrays["points"].shape == (20, 2)
        assert np.isfinite(arrays["points"]).all()
    assert (tmp_path / "points.png").exists()


@pytest.mark.parametrize(
    ("name", "options"),
    [("plain", ""), ("linear", "--train-v=0"), ("trig", "--level-draw=uniform --rho=2")]
    + [pytest.param(name, options, marks=pytest.mark.slow) for name, options in (
        ("cond", "--cond=1 --train-v=0"), ("gamma", "--multidimensionality=000"),
        ("linear", "--family=edm --s-churn=1 --checkpointing=0"),
        ("linear", "--family=trigonometric --train-v=0 --x-0-conditioning=0"))],
)  # fmt: skip
def test_trajectories(nets, name, options, tmp_path):
    command = "--outdir={o} {d} --network={n} {c} {x}"
    result = run(train_trajectory.main, command, o=tmp_path, d=DATA, n=nets[name], c=C, x=options)
    assert result.exit_code == 0, result.output
    names = {p.name for p in tmp_path.iterdir()}
    assert {"network-snapshot-000000.pkl", "samples-000000.png", "plain-000000.png", "trajectories-000000.png"} <= names
    net, start = networks.load_network(tmp_path / "network-snapshot-000000.pkl"), networks.load_network(nets[name])
    same = all(torch.equal(a, b) for a, b in zip(net.V.parameters(), start.parameters(), strict=True))
    assert same == ("train-v=0" in options)
    sampled = run(generate.main, "--network={n} --outdir={o} --seeds=0-9", n=tmp_path / "network-snapshot-000000.pkl",
                  o=tmp_path / "out")  # fmt: skip
    assert sampled.exit_code == 0, sampled.output
    assert "NFE:      3 network evaluations" in sampled.output
    flow = net.schedule[0] == float("inf")
    assert flow == (name in ("linear", "trig") and "edm" not in options)
    assert ("inf" in sampled.output) == flow
    for more in ("--solver=heun --num-steps=4", "--steps=3"):
        again = run(generate.main, "--network={n} --outdir={o} --seeds=0-4 {m}", m=more, o=tmp_path / "more",
                    n=tmp_path / "network-snapshot-000000.pkl")  # fmt: skip
        assert again.exit_code == 0, again.output


@pytest.mark.slow
def test_a_run_continues_to_the_same_numbers(nets, tmp_path):
    command = "--outdir={o} {d} --network={n} {c} --kimg={k}"
    for o, kimgs in (("a", [0.2]), ("b", [0.1, 0.2])):
        for k in kimgs:
            more = command + (" --resume={o}" if k != kimgs[0] else "")
            result = run(train_trajectory.main, more, o=tmp_path / o, d=DATA, n=nets["linear"], c=C, k=k)
            assert result.exit_code == 0, result.output
    a, b = (networks.load_network(tmp_path / x / "network-snapshot-000000.pkl").state_dict() for x in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    ("script", "options", "words"),
    [
        ("edm", "--arch=ddpmpp", "is for images"),
        ("edm", "--precond=vp", "use --precond=edm"),
        ("edm", "--augment=0.1", "leave it out with --arch=mlp"),
        ("edm", "--cres=1,2", "leave it out with --arch=mlp"),
        ("edm", "--precond=edm_gamma --lpf=1", "--lpf smooths maps"),
        ("edm", "--arch=mlp --dropout=0.1", "--dropout belongs to U-Nets"),
        ("curvature", "--coupling=ot", "give --independent as well"),
        ("curvature", "--independent --trig --ddpm", "two paths"),
        ("trajectory", "--network={plain} --backbones=light", "--backbones is for images"),
        ("trajectory", "--network={plain} --lpf=1", "--lpf is for images"),
        ("trajectory", "--network={plain} --family=linear", "use edm"),
        ("trajectory", "--network={linear} --s-churn=1", "family edm only"),
        ("trajectory", "--network={linear} --family=cosine", "cosine"),
    ],
)
def test_bad_input_is_one_sentence(nets, script, options, words, tmp_path):
    text = f"--outdir={tmp_path} {DATA} " + options.format(**nets)
    main = train_trajectory.main if script == "trajectory" else train.main
    if script == "trajectory":
        text += f" {C}"
    result = run(main, text if script == "trajectory" else f"{script} {text}")
    assert result.exit_code != 0, result.output
    assert words in result.output
    assert isinstance(result.exception, SystemExit)
