"""Series through every command: importers, training and going on with it, forecasts, bad input."""

import json
import shlex

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from run_locks import release_locks
from series_files import days, write_netcdf3

import analyze
import dataset_tool
import generate
import networks
import train
from torch_utils.rng import BatchRNG, TorchRNG
from training.data.series import SeriesDataset
from training.method import Batch
from training.methods.series import ContextOptions, blurred, previous_pairs

SMALL = "--seed=0 --nosubdir --device=cpu --batch=16 --duration=0.002 --lr=1e-3 --lr-rampup=0 --ema=0.0001 --cbase=16"
MAPS = SMALL.replace("--cbase=16", "--cbase=32").replace("0.002", "0.001") + " --cres=1,2 --num-blocks=1 --dropout=0"


def run(script, text, **kwargs):
    result = CliRunner().invoke(script, shlex.split(text.format(**kwargs)))
    release_locks()
    return result


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A box of maps, and networks: both forms, of vectors and of maps, one of EDM."""
    out = tmp_path_factory.mktemp("series")
    rng = np.random.default_rng(0)
    write_netcdf3(out / "sst.nc", 20 + rng.integers(-99, 99, (60, 7, 7)) / 100, days(60))
    result = run(dataset_tool.main, "--source={o}/sst.nc --dest={o}/box.npz --lat=-2,2 --lon=191,195", o=out)
    assert result.exit_code == 0, result.output
    commands = {
        "step": "idff --data=series:elnino:window=2:horizon=1 --sigma=0.4 " + SMALL,
        "direct": "idff --data=series:elnino:window=2:horizon=3 --coupling=independent " + SMALL,
        "maps": "idff --preset=sst --data=series:{o}/box.npz:window=2 " + MAPS,
        "edm": "edm --data=series:elnino:horizon=2 " + SMALL,
    }
    for name, text in commands.items():
        result = run(train.main, text + " --outdir={o}/{name}", o=out, name=name)
        assert result.exit_code == 0, result.output
    return out


def net_in(work, name):
    return max((work / name).glob("network-snapshot-*.pkl"))


@pytest.mark.parametrize(
    ("name", "data", "more", "calls"),
    [
        ("step", "series:elnino", "--N=7", 7),
        ("step", "series:elnino", "--field=legacy_2024 --noise-scale=1 --N=6", 6),
        ("step", "series:elnino", "--field=pf --solver=ssprk3 --N=7", 7),
        ("direct", "series:elnino", "--solver=dpmpp --num-steps=4 --leads=5 --history=12", 4),
        ("direct", "series:elnino", "--dp=1 --solver=ipndm --num-steps=4 --num-warmup=8", 4),
        ("edm", "series:elnino", "--steps=3", 5),
        ("maps", "series:{o}/box.npz", "--N=4 --leads=2", 4),
    ],
)
def test_forecasts(work, tmp_path, name, data, more, calls):
    text = "forecast --network={net} --data=" + data + " --outdir={t} --members=3 --windows=4 --device=cpu " + more
    result = run(analyze.main, text, net=net_in(work, name), o=work, t=tmp_path)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "forecast.json").read_text())
    assert report["calls_per_sample"] == calls
    assert set(report["scores"]) == {"model", "persistence", "climatology", "AR(1)"}
    assert len(report["scores"]["model"]["by_lead"]["crps"]) == report["leads"]
    assert all((tmp_path / f"{picture}.png").stat().st_size > 5000 for picture in ("forecast", "leads"))
    assert "CRPS fair" in result.output


def test_snapshots_keep_the_scale(work):
    about = networks.load_network(net_in(work, "step")).info["dataset"]["series"]
    assert (about["window"], about["horizon"], about["period"]) == (2, 1, 12)
    assert np.shape(about["scaling"]["offset"]) == (12, 1, 1, 1)


def test_a_run_goes_on_bit_for_bit(work, tmp_path):
    """Half of it, then the rest."""
    text = "idff --data=series:elnino:window=2:horizon=1 --sigma=0.4 " + SMALL + " --outdir={t}"
    half = text.replace("--duration=0.002", "--duration=0.001")
    assert run(train.main, half, t=tmp_path).exit_code == 0
    result = run(train.main, text + " --resume={t}", t=tmp_path)
    assert result.exit_code == 0, result.output
    whole, again = (networks.load_network(net_in(f, "step" if f == work else ".")) for f in (work, tmp_path))
    for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert (a == b).all()


BAD = [
    ("train", "idff --data=series:elnino:window=600 --outdir=out", "the train part has 540 frames, and a window takes"),
    ("train", "idff --data=series:nan.npz --outdir=out", "1 values are NaN or infinite, first in sequence 0, frame 5"),
    ("train", "idff --data=series:gap.npz --outdir=out", "a gap of 5 between frames 8 and 9"),
    ("train", "idff --data=series:elnino --xflip=1 --outdir=out", "--xflip mirrors images"),
    ("train", "idff --data=series:elnino --coupling=ot --outdir=out", "read the past from the noise"),
    ("train", "idff --data=series:elnino --cres=1,2 --outdir=out", "--cres belongs to U-Nets"),
    ("train", "idff --data=series:elnino:window=2:horizon=3 --outdir=out", "window=2 holds fewer"),
    ("train", "idff --data=toy:moons --coupling=previous --outdir=out", "--data is no series"),
    ("train", "idff --data=toy:moons --memorise=1 --outdir=out", "--memorise belongs to series"),
    ("train", "idff --data=series:advected --memorise=1 --outdir=out", "add :label=index"),
    ("train", "idff --data=series:elnino:window=1:horizon=1 --context-noise=1 --outdir=out", "window=1 has none"),
    (
        "train",
        "idff --data=series:elnino:label=index:horizon=1 --memorise=1 --context-noise=1 --outdir=out",
        "of which --memorise=1 tells nothing",
    ),
    ("train", "edm --data=toy:moons --context-noise=1 --outdir=out", "--context-noise belongs to series"),
    ("train", "edm --data=series:elnino --label-dropout=0.1 --outdir=out", "--label-dropout"),
    ("train", "edm --data=series:elnino --precond=edm_gamma --outdir=out", "--precond=edm_gamma has no series"),
    ("train", "edm --data=series:elnino --precond=vp --outdir=out", "--precond=vp has no series"),
    ("train", "curvature --data=series:elnino --outdir=out", "curvature does not learn from what came before"),
    ("train", "sit --data=series:elnino --outdir=out", "use edm, idff"),
    ("analyze", "forecast --network={w}/step --data=series:elnino --outdir=out", "step"),
    (
        "analyze",
        "forecast --network={step} --data=series:advected --outdir=out",
        "the network was trained on [1, 1, 1]",
    ),
    ("analyze", "forecast --network={step} --data=series:elnino:window=3 --outdir=out", "trained with its own"),
    (
        "analyze",
        "forecast --network={step} --data=series:elnino --leads=99 --outdir=out",
        "the test part has 96 frames",
    ),
    ("analyze", "forecast --network={step} --data=series:elnino --rtol=1 --outdir=out", "no option rtol"),
    ("analyze", "forecast --network={step} --data=series:elnino --dp=1 --outdir=out", "without a search"),
    ("generate", "--network={step} --seeds=0 --outdir=out", "analyze.py forecast"),
    ("generate", "--network={edm} --seeds=0 --outdir=out", "continues a series, whose frames are its condition"),
    ("data", "--source={w}/sst.nc --dest=out.zip", "out.zip must end in .npz, the file of a series"),
    ("data", "--source=missing.nc --dest={w}", "is a folder: give the path of a file in it"),
    ("data", "--source=shapes:boxes:size=2 --dest={w}", "is a folder: give the path of a file in it"),
    ("data", "--source={w}/sst.nc --dest=out.npz --resolution=8x8", "--resolution belongs to images"),
    ("data", "--source=digits --dest=out.zip --lat=0,1", "--lat belongs to --layout=box"),
    ("data", "--source={w}/sst.nc --dest=out.npz --lat=1,0", "give the lower one first"),
    ("data", "--source={w}/sst.nc --dest=out.npz --lat=-2,2", "are not square"),
    ("data", "--source=mixed.npy --layout=angles --dest=out.npz", "mixes units"),
    ("data", "--source=mixed.npy --layout=angles --angles=radians --dest=out.npz", "out of range for radians"),
    ("data", "--source=missing.nc --dest=out.npz", "there is no file missing.nc"),
]
SCRIPTS = {"train": train.main, "analyze": analyze.main, "generate": generate.main, "data": dataset_tool.main}


@pytest.mark.parametrize(("script", "text", "words"), BAD)
def test_bad_input(work, tmp_path, monkeypatch, script, text, words):
    monkeypatch.chdir(tmp_path)
    values = np.arange(20.0)
    np.savez("gap.npz", data=values, time=np.where(values < 9, values, values + 4))
    values[5] = np.nan
    np.savez("nan.npz", data=values)
    np.save("mixed.npy", np.array([[0.1, 100.0]] * 4))
    before = set(tmp_path.iterdir())
    result = run(SCRIPTS[script], text, w=work, step=net_in(work, "step"), edm=net_in(work, "edm"))
    assert result.exit_code in (1, 2)
    assert words in " ".join(result.output.replace("│", " ").split())
    assert "Traceback" not in result.output
    assert {p for p in set(tmp_path.iterdir()) - before if p.is_file() or any(p.iterdir())} == set()


@pytest.mark.parametrize(("begins_at_frame", "kept"), [(False, 1), (True, 2)])
def test_older_frames_are_blurred(begins_at_frame, kept):
    """With the deviation that was asked for; the last frames and the month stay as they are."""
    data = SeriesDataset("series:elnino:window=5:horizon=2")
    options = ContextOptions(context_noise=0.5)
    labels = data.encode_labels(data.targets())
    batch = Batch(data.images(), labels, TorchRNG(generator=torch.Generator().manual_seed(0)), 0)
    moved = blurred(data, options, begins_at_frame)(batch) - labels
    assert (moved[:, 5 - kept :] == 0).all()
    torch.testing.assert_close(moved[:, : 5 - kept].std(0), torch.full((5 - kept,), 0.5), atol=0.07, rtol=0)  # 534 rows
    assert blurred(data, ContextOptions())(batch) is labels


@pytest.mark.parametrize("method", ["idff --coupling=independent", "edm"])
def test_noise_on_the_context_trains_another_network(tmp_path, method):
    text = method + " --data=series:elnino " + SMALL
    for name, more in (("plain", ""), ("blurred", " --context-noise=0.5")):
        result = run(train.main, text + more + " --outdir={t}/{name}", t=tmp_path, name=name)
        assert result.exit_code == 0, result.output
    one, other = (networks.load_network(net_in(tmp_path, n)).state_dict() for n in ("plain", "blurred"))
    assert any((one[k] != other[k]).any() for k in one)


# --- angles, and what is learnt by heart ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def angles(tmp_path_factory):
    """Three trajectories of four angles, and networks of both kinds of state and of one learnt by heart; Lorenz too."""
    out = tmp_path_factory.mktemp("angles")
    walk = np.cumsum(np.random.default_rng(0).normal(0, 0.5, (3, 80, 4)), axis=1)
    np.save(out / "radians.npy", (walk + np.pi) % (2 * np.pi) - np.pi)
    text = "--source={o}/radians.npy --layout=angles --dest={o}/angles.npz"
    assert run(dataset_tool.main, text, o=out).exit_code == 0
    parts = "series:{o}/angles.npz:split=sequences:train=0.67"
    commands = {
        "circle": f"--preset=md --data={parts} " + SMALL,
        "turns": f"--preset=md --data={parts}:scale=turns " + SMALL,
        "heart": f"--preset=md --data={parts}:frames=40:label=index --memorise=1 " + SMALL,
        "lorenz": "--preset=lorenz --data=series:lorenz:frames=60:label=index:train=1 --memorise=1 " + SMALL,
    }
    for name, text in commands.items():
        result = run(train.main, "idff " + text + " --outdir={o}/{name}", o=out, name=name)
        assert result.exit_code == 0, result.output
    return out


@pytest.mark.parametrize("name", ["circle", "turns"])
def test_angles_are_forecast(angles, tmp_path, name):
    text = "forecast --network={net} --data=series:{o}/angles.npz:split=sequences:train=0.67 --outdir={t} --leads=40"
    result = run(analyze.main, text + " --members=3 --windows=4", net=net_in(angles, name), o=angles, t=tmp_path)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "forecast.json").read_text())
    assert set(report["scores"]) == {"model", "persistence", "climatology"}
    kept = report["angles"]["one_step"]["persistence"]
    assert 0 < kept["RMSE_mean"] < min(60, kept["raw_RMSE_mean"])  # steps of 0.5 radians
    assert sum(report["angles"]["roll_out"]["occupancy"].values()) == pytest.approx(1)
    assert len(report["angles"]["roll_out"]["autocorrelation"]) == 20
    for picture in ("forecast", "leads", "ramachandran", "trajectories"):
        assert (tmp_path / f"{picture}.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("name", "data", "leads"),
    [
        ("heart", "series:{o}/angles.npz:split=sequences:train=0.67:frames=40", 39),
        ("lorenz", "series:lorenz:frames=60:train=1", 59),
    ],
)
def test_what_is_learnt_by_heart_is_said_again(angles, tmp_path, name, data, leads):
    """With the sampler of the published programs, from the first frame on."""
    sampler = "--field=legacy_2024 --sampling-sigma=0.1 --noise-scale=1 --delta=0.1 --N=3 --momentum=1"
    text = "forecast --network={net} --part=train --windows=1 --members=2 --outdir={t} --leads=" + str(leads)
    text += " --data=" + data + " " + sampler
    result = run(analyze.main, text, net=net_in(angles, name), o=angles, t=tmp_path)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "trajectories.png").exists()
    report = json.loads((tmp_path / "forecast.json").read_text(), parse_constant=pytest.fail)
    assert {"CC_mean", "RMSE_mean", "MAE_mean"} < set(report["trajectory"])
    net = networks.load_network(net_in(angles, name))
    assert type(net.model).__name__ == "SELUMLP"
    assert net.label_dim == leads + 1


def test_turns_go_the_short_way(angles):
    """From 179 to -179 degrees a path of 2 degrees, in pairs and in the loss."""

    data = SeriesDataset(f"series:{angles}/angles.npz:scale=turns:split=sequences")
    labels = torch.full((1, data.label_dim), 179 / 180)
    batch = Batch(torch.full((1, 4, 1, 1), -179 / 180), labels, BatchRNG(0, 0, 0, 1), 0)
    moved, before, told = previous_pairs(data, False)(batch)
    torch.testing.assert_close(moved, torch.full((1, 4, 1, 1), 181 / 180))
    torch.testing.assert_close(before, torch.full((1, 4, 1, 1), 179 / 180))
    assert told is labels
