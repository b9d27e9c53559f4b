"""Figures during training: the reference is cached, the numbers are those of fid.py, and a run reports them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from run_locks import release_locks

import analyze
import fid
import networks
import train
from samplers.planning.plan import SamplerOptions, build_plan
from samplers.run import generate, prepare
from torch_utils.reference_file import load_moments
from torch_utils.wasserstein import wasserstein
from training.data.image_dataset import ImageDataset, subset_indices
from training.data.toys import ToyDataset
from training.forecast import dataset_of, plan_of, roll_out, score
from training.methods.edm import EDMOptions
from training.runs.meters import Best, Meter

TINY = (
    "--cbase=8 --cres=1 --num-blocks=1 --attn-resolutions=4 --augment=0 --dropout=0 --lr-rampup=0 --batch=64 --bench=0 "
    "--duration=0.001 --tick=0.25 --seed=3 --snap=4 --fid-every=2 --fid-features=pixels --fid-num=70 --fid-steps=3"
)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "toy"
    folder.mkdir()
    for i in range(80):
        Image.fromarray(np.random.RandomState(i).randint(0, 256, (4, 4), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return folder


def options(data, **kwargs):
    given = {"fid_features": "pixels", "fid_num": 20, "fid_steps": 2, **kwargs}
    return EDMOptions(outdir=str(data.parent / "runs"), data=str(data), **given)


def meter(data, **kwargs):
    return Meter(
        options(data, **kwargs), data.parent / "runs" / "fid-refs", ImageDataset(data, xflip=True), torch.device("cpu")
    )


def test_reference_is_cached_until_the_data_changes(data):
    folder = data.parent / "runs" / "fid-refs"
    meter(data)
    (first,) = folder.iterdir()
    pixels = np.stack([np.array(Image.open(p)) for p in sorted(data.iterdir())]).reshape(80, -1) / 127.5 - 1
    moments = load_moments(first)
    assert (moments.num, moments.features) == (80, "pixels")  # mirrored copies do not count
    np.testing.assert_allclose(moments.mu.numpy(), pixels.mean(0), atol=1e-6)
    np.testing.assert_allclose(moments.sigma.numpy(), np.cov(pixels.T), atol=1e-6)
    written = first.stat().st_mtime_ns
    meter(data)
    assert [p.stat().st_mtime_ns for p in folder.iterdir()] == [written]
    Image.new("L", (4, 4)).save(data / "00.png")
    meter(data)
    assert len(list(folder.iterdir())) == 2


def test_a_run_reports_what_fid_py_measures(data, tmp_path):
    result = CliRunner().invoke(train.main, [f"--outdir={tmp_path / 'runs'}", f"--data={data}", *TINY.split()])
    assert result.exit_code == 0, result.output
    run_dir = next((tmp_path / "runs").glob("0*"))
    stats = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    measured = [(s["Progress/tick"]["mean"], s["Metrics/fid"]["mean"]) for s in stats if "Metrics/fid" in s]
    assert [tick for tick, _ in measured] == [2, 4]
    values = [value for _, value in measured]
    assert stats[-1]["Metrics/fid_best"]["mean"] == min(values)
    assert f"fid {values[-1]:.4g} (best {min(values):.4g} at " in result.output
    (ref,) = (tmp_path / "runs" / "fid-refs").iterdir()
    arguments = ["--num=70", "--steps=3", f"--network={run_dir / 'network-snapshot-000001.pkl'}", f"--ref={ref}"]
    again = CliRunner().invoke(fid.main, ["calc", "--features=pixels", *arguments])
    assert again.exit_code == 0, again.output
    assert float(again.stdout.split()[-1]) == pytest.approx(values[-1], rel=1e-3)


def test_best_survives_a_resume(data, tmp_path):
    command = [f"--outdir={tmp_path / 'runs'}", f"--data={data}", *TINY.split(), "--dump=1"]
    assert CliRunner().invoke(train.main, command).exit_code == 0
    run_dir = next((tmp_path / "runs").glob("0*"))
    release_locks()
    longer = CliRunner().invoke(train.main, [*command, f"--resume={run_dir}", "--duration=0.002"])
    assert longer.exit_code == 0, longer.output
    stats = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    measured = [s for s in stats if "Metrics/fid" in s]
    assert [s["Progress/tick"]["mean"] for s in measured] == [2, 4, 6, 8]
    for i, s in enumerate(measured, start=1):
        assert s["Metrics/fid_best"]["mean"] == min(m["Metrics/fid"]["mean"] for m in measured[:i])


def test_a_reference_that_does_not_fit(data, tmp_path):
    np.savez(tmp_path / "ref.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(ValueError, match=r"ref\.npz has 3 features"):
        meter(data, fid_ref=str(tmp_path / "ref.npz"))
    np.savez(tmp_path / "ref.npz", mu=np.zeros(16), sigma=np.eye(16), features="inception")
    with pytest.raises(ValueError, match="inception"):
        meter(data, fid_ref=str(tmp_path / "ref.npz"))
    with pytest.raises(OSError, match=r"nothing\.npz"):
        meter(data, fid_ref=str(tmp_path / "nothing.npz"))


def train_stats(*arguments):
    result = CliRunner().invoke(train.main, [*arguments])
    assert result.exit_code == 0, result.output
    (outdir,) = (a.partition("=")[2] for a in arguments if a.startswith("--outdir="))
    (path,) = Path(outdir).glob("0*/stats.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()], result.output


def test_figures_of_a_run_are_those_of_fid_py(data, tmp_path):
    asked = "--metrics=fd,kid_full,pr --pr-k=2"
    stats, output = train_stats(f"--outdir={tmp_path}/runs", f"--data={data}", *TINY.split(), *asked.split())
    last = {name.partition("/")[2]: s["mean"] for name, s in stats[-1].items() if name.startswith("Metrics/")}
    assert set(last) == {"fd", "fd_best", "kid_full", "precision", "recall"}
    assert f"kid_full {last['kid_full']:.4g}" in output
    (ref,) = (tmp_path / "runs" / "fid-refs").iterdir()
    (net,) = (tmp_path / "runs").glob("0*/network-snapshot-000001.pkl")
    again = CliRunner().invoke(
        fid.main, ["calc", "--features=pixels", "--num=70", "--steps=3", f"--network={net}", f"--ref={ref}",
                   f"--json={tmp_path}/out.json", *asked.split()],
    )  # fmt: skip
    assert again.exit_code == 0, again.output
    found = {name: m["value"] for name, m in json.loads((tmp_path / "out.json").read_text())["metrics"].items()}
    assert found == {name: pytest.approx(last[name], rel=1e-6, abs=1e-9) for name in found}  # a float32 sampler


def test_points_are_measured_by_w2(tmp_path):
    pytest.importorskip("ot")
    small = "--data=toy:moons:size=300 --cbase=8 --batch=64 --duration=0.001 --tick=0.25 --seed=3 --snap=4 --bench=0"
    stats, output = train_stats(
        f"--outdir={tmp_path}", *small.split(), "--fid-every=4", "--fid-num=50", "--fid-steps=3"
    )
    (net_path,) = tmp_path.glob("0*/network-snapshot-000001.pkl")
    net = prepare(networks.load_network(net_path), "cpu")
    (batch,) = generate(net, range(50), build_plan(net, SamplerOptions(steps=3)), batch=50)
    points = ToyDataset("toy:moons:size=300").images()[subset_indices(300, 50)]
    value = stats[-1]["Metrics/w2"]["mean"]
    assert value == pytest.approx(wasserstein(batch.images, points), rel=1e-5)
    assert f"w2 {value:.4g} (best {value:.4g}" in output


@pytest.mark.parametrize(
    ("option", "words"), [("--patience=1", "no better fid in 1 measurements"), ("--stop-when=fid<1e9", "fid ")]
)
def test_a_run_ends_early_where_that_is_asked_for(data, tmp_path, option, words):
    more = [option, "--lr=1e-30"] if "patience" in option else [option]  # weights that stay: never better
    command = [f"--outdir={tmp_path}/runs", f"--data={data}", *TINY.split(), "--fid-every=1", *more]
    stats, output = train_stats(*command)
    assert "ends here: " + words in output
    assert stats[-1]["Progress/tick"]["mean"] == (2 if "patience" in option else 1)
    (run_dir,) = (tmp_path / "runs").glob("0*")
    kimg = stats[-1]["Progress/kimg"]["mean"]
    assert kimg < 1
    assert len(list(run_dir.glob("network-snapshot-*.pkl"))) >= 1
    assert len(list(run_dir.glob("training-state-*.pt"))) >= 1
    release_locks()
    again = CliRunner().invoke(train.main, [*command, "--dry-run"])
    assert "Would start a new run" in again.output  # it is finished


def test_best_knows_which_way_is_better():
    best = Best(2.0, 1.0).after("fid", 3.0, 2.0)
    assert best == (2.0, 1.0, 1)
    assert best.after("fid", 1.0, 3.0) == (1.0, 3.0, 0)
    assert best.after("recall", 3.0, 4.0) == (3.0, 4.0, 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"metrics": "fid"}, "fid is the distance in Inception features: in pixels ask for fd"),
        ({"metrics": "kidney"}, "no metric 'kidney'"),
        ({"metrics": "kid"}, "kid needs 1000 images at least, and --fid-num gives 20"),
        ({"metrics": "kid", "fid_num": 1000, "kid_subset_size": 90}, "and .*toy gives 80"),
        ({"pr_k": 5}, "--pr-k is read by the metric pr"),
        ({"stop_when": "kid<1"}, "--stop-when=kid<1: 'kid' is not measured, only fid"),
        ({"stop_when": "better"}, "is not understood"),
    ],
)
def test_bad_figures(data, arguments, words):
    with pytest.raises(ValueError, match=words):
        meter(data, **arguments)


def test_a_reference_without_features_is_none_for_kid(data, tmp_path):
    np.savez(tmp_path / "ref.npz", mu=np.zeros(16), sigma=np.eye(16))
    with pytest.raises(ValueError, match="holds mean and covariance alone"):
        meter(data, fid_ref=str(tmp_path / "ref.npz"), metrics="kid_full")


def test_hashes_of_weights_tell_runs_apart(data, tmp_path):
    command = [f"--data={data}", *(option for option in TINY.split() if not option.startswith("--fid"))]
    runs = [
        [s["weights"] for s in train_stats(f"--outdir={tmp_path}/{name}", *command, f"--seed={seed}")[0]]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert runs[0] == runs[1]
    assert all(x != y for x, y in zip(runs[0], runs[2], strict=True))
    assert len(set(runs[0])) == len(runs[0]) == 5
    names = [next((tmp_path / name).glob("0*")) for name in "abc"]
    same, other = (CliRunner().invoke(analyze.main, ["diff", str(names[0]), str(n)]) for n in names[1:])
    assert same.exit_code == 0, same.output
    assert same.output.endswith("the same in all 5 ticks that both have\n")
    assert "option seed: 1 | 2" in other.output
    assert re.search(rf"they part at tick 0, .* keys\n  weights: {runs[0][0]} \| {runs[2][0]}\n", other.output)


SERIES = "--data=series:elnino:window=2:horizon=1 --seed=3 --duration=0.001 --tick=0.25 --snap=4 --bench=0"


@pytest.mark.parametrize("method", ["idff --sigma=0.4 --cbase=8 --batch=64", "edm --cbase=8 --batch=64 --fid-steps=3"])
def test_series_are_measured_by_the_crps_of_ensembles(tmp_path, method):
    stats, output = train_stats(
        *method.split(), f"--outdir={tmp_path}", *SERIES.split(), "--fid-every=4", "--fid-num=30"
    )
    (path,) = tmp_path.glob("0*/network-snapshot-000001.pkl")
    net = prepare(networks.load_network(path), "cpu")
    part = dataset_of(net, "series:elnino", "val")
    starts = part.starts_before(1)
    starts = starts[np.linspace(0, len(starts) - 1, 3).astype(int)]
    plan = plan_of(net, SamplerOptions() if "idff" in method else SamplerOptions(steps=3))
    members = roll_out(net, plan, part, starts, leads=1, members=10).members
    value = stats[-1]["Metrics/crps"]["mean"]
    assert value == pytest.approx(score(members, part.windows(starts, 1)[1].numpy())["crps"], rel=1e-6)
    assert f"crps {value:.4g} (best {value:.4g}" in output


def test_too_few_samples_for_an_ensemble(tmp_path):
    arguments = [
        "idff",
        f"--outdir={tmp_path}",
        *SERIES.split(),
        "--cbase=8",
        "--batch=64",
        "--fid-every=4",
        "--fid-num=9",
    ]
    result = CliRunner().invoke(train.main, arguments)
    assert result.exit_code == 1
    assert "takes 10 samples for each window of the validation part: --fid-num is 9" in result.output


def test_shapes_are_measured_by_the_rules_they_keep(tmp_path, monkeypatch):
    """With a rule that shapes of noise keep now and then."""

    def rules(parts):
        return {"valid": parts[:, 0, 1:].sum(1) > 0}

    monkeypatch.setattr("training.runs.meters.rules", rules)
    small = "combostoc --data=shapes:boxes:size=64:seed=1 --width=16 --depth=1 --num-heads=2 --batch=334 --seed=0"
    more = "--duration=0.001 --tick=0.3 --fid-every=1 --fid-num=20 --fid-steps=2 --snap=1"
    stats, output = train_stats(*small.split(), f"--outdir={tmp_path}", *more.split())
    path = max(tmp_path.glob("0*/network-snapshot-*.pkl"))
    net = prepare(networks.load_network(path), "cpu")
    (batch,) = generate(net, range(20), build_plan(net, SamplerOptions(steps=2)), batch=20)
    value = stats[-1]["Metrics/valid"]["mean"]
    assert 0 < value < 1
    assert value == rules(batch.images.float())["valid"].double().mean().item()
    assert f"valid {value:.4g} (best " in output
