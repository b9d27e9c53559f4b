"""Averages of other lengths: rebuilt from the files of a run and compared with ones kept during it."""

import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from run_locks import release_locks

import networks
import train
import training.pictures.preview
from torch_utils import checkpoint
from training.runs import phema

OPTIONS = (
    "--cbase=8 --cres=1 --num-blocks=1 --attn-resolutions=4 --augment=0 --dropout=0 --lr=2e-3 --lr-rampup=0 --batch=64 "
    "--duration=0.012 --tick=1 --snap=1 --dump=0 --seed=3 --bench=0 --phema=0.05,0.07,0.1"
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run that keeps averages of three widths: the middle one is what the others must be able to rebuild."""
    folder = tmp_path_factory.mktemp("phema")
    for i in range(24):
        pixels = np.random.RandomState(i).randint(0, 256, (8, 8), dtype=np.uint8)
        (folder / "toy").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "toy" / f"{i:02d}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.pictures.preview, "sample_grid", lambda net: torch.zeros(1, 8, 8, dtype=torch.uint8))
        arguments = [f"--outdir={folder}/runs", f"--data={folder}/toy", *OPTIONS.split()]
        result = CliRunner().invoke(train.main, arguments)
    release_locks()
    assert result.exit_code == 0, result.output
    found = next((folder / "runs").iterdir())
    (folder / "middle").mkdir()
    for path in found.glob("phema-0.070-*.pkl"):
        shutil.move(path, folder / "middle")
    return found


def flat(net):
    return torch.cat([p.flatten() for p in net.parameters()])


# At 12 the run has 26 stored averages before it, at 8 only 18: its profile is met less well.
@pytest.mark.parametrize(("kimg", "tolerance"), [(12, 0.02), (8, 0.1)])
def test_rebuilt_average_is_the_one_kept_during_the_run(run_dir, kimg, tolerance):
    name = f"{kimg:06d}.pkl"
    middle = run_dir.parents[1] / "middle" / f"phema-0.070-{name}"
    rebuilt = phema.rebuild(run_dir, 0.07, None if kimg == 12 else kimg)
    assert rebuilt.info["nimg"] == checkpoint.load(middle).info["nimg"]
    assert rebuilt.error < 0.02
    kept, short, long = (
        flat(networks.load_network(p))
        for p in (middle, run_dir / f"phema-0.050-{name}", run_dir / f"phema-0.100-{name}")
    )
    error, spread = (flat(rebuilt.net) - kept).norm(), (long - short).norm()
    assert error < tolerance * spread
    assert min((short - kept).norm(), (long - kept).norm()) > 0.3 * spread  # none of the stored ones would do


def test_a_width_that_was_kept_is_found_again(run_dir):
    rebuilt = phema.rebuild(run_dir, 0.1)
    kept = networks.load_network(run_dir / "phema-0.100-000012.pkl")
    torch.testing.assert_close(flat(rebuilt.net), flat(kept), rtol=1e-5, atol=1e-6)


def test_command(run_dir, tmp_path):
    out = tmp_path / "ema.pkl"
    result = CliRunner().invoke(phema.main, [str(run_dir), "--std=0.08", f"--out={out}"])
    assert result.exit_code == 0, result.output
    assert "from 26 stored averages" in result.output
    net = networks.load_network(out)
    assert net.info["sigma_rel"] == 0.08
    assert torch.isfinite(flat(net)).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--std=0.5"], "0.2886"),
        (["--std=0"], "0.2886"),
        (["--std=0.07", "--kimg=99"], "were stored at 12."),
        (["--std=0.07", "--kimg=-1"], "--kimg"),
    ],
)
def test_what_cannot_be_rebuilt(run_dir, tmp_path, arguments, words):
    result = CliRunner().invoke(phema.main, [str(run_dir), f"--out={tmp_path / 'x.pkl'}", *arguments])
    assert result.exit_code in (1, 2)
    assert words in result.output
    assert not (tmp_path / "x.pkl").exists()


def test_a_run_without_phema(tmp_path):
    with pytest.raises(ValueError, match="--phema"):
        phema.rebuild(tmp_path, 0.1)


@pytest.mark.parametrize("widths", [(0.5,), (0.0,), (0.1, 0.1004)])
def test_widths_out_of_range_or_twice(widths):
    with pytest.raises(ValueError, match=r"0\.2886|twice"):
        phema.averages(widths, "net")
