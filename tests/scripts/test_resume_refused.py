"""A command that is refused, or interrupted while it starts, leaves a run as it was: the original continues it.

And what `--dry-run` says: where a run would continue, and whatever the command itself would refuse.
"""

import errno
import os
import shlex
import shutil

import pytest
from click.testing import CliRunner
from exact_runs import make_data
from PIL import Image
from run_locks import release_locks

import train
from training.loop.loop import Loop
from training.runs import placement

TINY = "--cbase=8 --cres=1 --num-blocks=1 --attn-resolutions=4 --augment=0 --dropout=0 --batch=64 --bench=0"
ORIGINAL = f"edm --outdir=out --data=toy {TINY} --seed=1 --tick=0.128 --dump=1 --snap=0 --duration=0.001"


def run(text):
    result = CliRunner().invoke(train.main, shlex.split(text))
    release_locks()
    return result


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A folder with data and a run that was interrupted after its second state."""
    here = tmp_path_factory.mktemp("stopped")
    make_data(here / "toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        step, count = Loop.step, [0]

        def interrupted(self, stop=False):
            count[0] += 1
            if count[0] == 6:
                raise KeyboardInterrupt
            return step(self, stop)

        patch.setattr(Loop, "step", interrupted)
        assert run(ORIGINAL).exit_code == 130
    return here


@pytest.fixture
def folder(stopped, tmp_path, monkeypatch):
    shutil.copytree(stopped, tmp_path / "x", dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path / "x")
    return tmp_path / "x"


def contents(folder):
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != ".lock" and "toy" not in p.parts]
    return {p.relative_to(folder): p.read_bytes() for p in files}


def resume(folder, more=""):
    (run_dir,) = (folder / "out").iterdir()
    return f"{ORIGINAL} --resume={run_dir} {more}"


def replaced_image(folder, _):
    Image.new("L", (8, 8), 77).save(folder / "toy" / "05.png")


def replaced_label(folder, _):
    path = folder / "toy" / "dataset.json"
    path.write_text(path.read_text().replace('["05.png", 2]', '["05.png", 1]'))


def full_disk(_, patch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(os, "fsync", full)


def ctrl_c_in(owner, name):
    def prepare(_, patch):
        original = getattr(owner, name)

        def interrupted(*args):
            original(*args)
            raise KeyboardInterrupt

        patch.setattr(owner, name, interrupted)

    return prepare


def nothing(*_):
    pass


REFUSED = {
    "another width": ("--cbase=16", nothing, "another network"),
    "another depth": ("--num-blocks=2", nothing, "another network"),
    "another average": ("--phema=0.1", nothing, "averages"),
    "mirrored data": ("--xflip=1", nothing, "--xflip"),
    "another preconditioning": ("--precond=edm_gamma", nothing, ""),
    "a replaced image": ("", replaced_image, "other data"),
    "a batch that cannot be cut": ("--batch-gpu=5", nothing, "divisor"),
    "no reference for FID": ("--fid-every=1 --fid-features=pixels --fid-ref=nowhere.npz", nothing, "nowhere.npz"),
    "a full disk": ("", full_disk, "No space left"),
    "Ctrl-C while the place is looked for": ("", ctrl_c_in(placement, "_continued"), "Ctrl-C"),
    "Ctrl-C while the state is read": ("", ctrl_c_in(Loop, "load_state_dict"), "Ctrl-C"),
}


@pytest.mark.parametrize("how", ["resume", "dry run", "same command"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_command_changes_nothing(folder, monkeypatch, name, how):
    more, prepare, words = REFUSED[name]
    if how == "same command" and more:
        pytest.skip("another command is another run")
    if how == "dry run" and name == "a full disk":
        pytest.skip("a dry run writes nothing")
    command = f"{ORIGINAL} {more}" if how == "same command" else resume(folder, more)
    before = contents(folder)
    with monkeypatch.context() as patch:
        prepare(folder, patch)
        result = run(command + (" --dry-run" if how == "dry run" else ""))
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code in (1, 2, 130), result.output
    assert words in result.output
    assert contents(folder) == before
    if prepare is replaced_image:
        return
    result = run(ORIGINAL)
    assert result.exit_code == 0, result.output
    assert "Continuing from" in result.output
    assert len(list((folder / "out").iterdir())) == 1


INTERPOLANT = "sit --outdir=sit --nosubdir --data=toy --model=SiT-S/2 --width=8 --depth=1 --num-heads=2 --batch=64"
INTERPOLANT += " --seed=1 --tick=1 --dump=1 --snap=0"


@pytest.fixture(scope="module")
def interpolant(tmp_path_factory):
    """A folder with data and a finished run of a transformer."""
    here = tmp_path_factory.mktemp("interpolant")
    make_data(here / "toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        assert run(f"{INTERPOLANT} --duration=0.001").exit_code == 0
    return here


@pytest.mark.parametrize("more", ["--num-heads=4", "--path-type=GVP", "--prediction=noise"])
def test_another_network_whose_weights_fit_is_refused(interpolant, monkeypatch, more):
    monkeypatch.chdir(interpolant)
    before = contents(interpolant)
    result = run(f"{INTERPOLANT} --duration=0.002 --resume=sit {more}")
    assert result.exit_code == 1, result.output
    assert "another network (other net." in result.output
    assert contents(interpolant) == before


def test_the_same_data_elsewhere_continue_a_run(folder):
    shutil.copytree(folder / "toy", folder / "copy")
    shutil.make_archive("zipped", "zip", "toy")
    for path in (folder / "copy").iterdir():
        os.utime(path, (1, 1))
    result = run(resume(folder, "--data=copy"))
    assert result.exit_code == 0, result.output
    assert "Continuing from" in result.output


def test_labels_count_where_they_are_used(folder):
    replaced_label(folder, None)
    assert run(resume(folder)).exit_code == 0
    shutil.rmtree("out")
    conditional = f"{ORIGINAL} --cond=1"
    assert run(conditional).exit_code == 0
    (folder / "toy" / "dataset.json").write_text((folder / "toy" / "dataset.json").read_text().replace(" 2]", " 0]", 1))
    result = run(resume(folder, "--cond=1 --duration=0.002"))
    assert result.exit_code == 1
    assert "other" in result.output


FORECASTS = {
    "": ("Would continue", "0.320 kimg"),
    "--seed=2": ("Would start a new run", "00001-"),
    "--new-run": ("Would start a new run", "00001-"),
    "--outdir=new/deep --nosubdir": ("Would start a new run", "new/deep"),
    "--outdir=new/deep": ("Would start a new run", "new/deep/00000-"),
}


@pytest.mark.parametrize("more", FORECASTS)
def test_dry_run_says_what_would_be_done(folder, more):
    before = sorted(folder.rglob("*"))
    result = run(f"{ORIGINAL} {more} --dry-run")
    assert result.exit_code == 0, result.output
    line = next(line for line in result.output.splitlines() if line.startswith("Would"))
    assert all(words in line for words in FORECASTS[more]), line
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    "more",
    [
        "--resume=nowhere", "--resume=toy", "--resume=toy/00.png", "--transfer=nowhere.pkl", "--transfer=toy/00.png",
        "--fid-every=1 --fid-features=pixels --fid-ref=nowhere.npz", "--outdir=toy/00.png", "--outdir=toy/00.png/x",
        "--outdir=/proc/nowhere", "--lr=nan", "--nosubdir --outdir=RUN", "--data=nowhere", "--batch=7 --batch-gpu=2",
    ],
)  # fmt: skip
def test_dry_run_refuses_what_the_command_refuses(folder, more):
    (run_dir,) = (folder / "out").iterdir()
    before = sorted(folder.rglob("*"))
    for dry in ("--dry-run", ""):
        result = run(f"{ORIGINAL} --seed=5 {more.replace('RUN', str(run_dir))} {dry}")
        assert result.exit_code in (1, 2), result.output
        assert result.output.count("Error: ") == 1
        assert sorted(folder.rglob("*")) == before
