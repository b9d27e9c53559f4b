"""FID during training: the reference is cached, the number is that of fid.py, and a run reports it."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from run_locks import release_locks

import fid
import train
from torch_utils.reference_file import load_moments
from training.data.image_dataset import ImageDataset
from training.methods.edm import EDMOptions
from training.runs.fid_meter import FidMeter

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
    return FidMeter(
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
