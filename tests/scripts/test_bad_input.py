"""What a user can get wrong, on every command line: one sentence that names it, no traceback, nothing left behind.

Each row is a script, its arguments and words the sentence must hold. In the folder where they run: `toy` and `toy.zip`
(24 gray 8x8 images in three classes), `bare` (the same without labels), `run` (a finished run of them), `net.pkl`
(unconditional, gray 8x8), `cond.pkl` (three classes), `ref.npz` (pixel statistics of `toy`), and damaged things.
"""

import os
import pickle
import shlex
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from exact_runs import make_data
from PIL import Image
from run_locks import release_locks

import dataset_tool
import fid
import generate
import networks
import train
from training.runs import phema

SCRIPTS = {
    "train": train.main, "generate": generate.main, "fid": fid.main, "data": dataset_tool.main, "phema": phema.main,
}  # fmt: skip
TINY = "--cbase=8 --cres=1 --num-blocks=1 --attn-resolutions=4 --augment=0 --dropout=0 --batch=16 --bench=0"
SMALL = f"--outdir=out --data=toy {TINY} --duration=0.001"
SEEDS = "--outdir=out --seeds=0-1 --steps=2"

ROWS = [
    # train: data
    ("train", f"--outdir=out --data=nowhere {TINY}", "nowhere"),
    ("train", f"--outdir=out --data=notes.txt {TINY}", "neither a folder nor a .zip"),
    ("train", f"--outdir=out --data=empty {TINY}", "no images"),
    ("train", f"--outdir=out --data=broken.zip {TINY}", "not a complete zip file"),
    ("train", f"--outdir=out --data=mixed {TINY}", "all images of a data set must be alike"),
    ("train", f"--outdir=out --data=wide {TINY}", "square"),
    ("train", f"--outdir=out --data=truncated {TINY}", "not a readable image"),
    ("train", f"--outdir=out --data=bare --cond=1 {TINY}", "labels"),
    ("train", f"--outdir=out --data=badlabels --cond=1 {TINY}", "dataset.json"),
    ("train", f"--outdir=out --data=halflabels --cond=1 {TINY}", "has no label for"),
    # train: options
    ("train", "--outdir=out", "--data"),
    ("train", f"--data=toy {TINY}", "--outdir"),
    ("train", f"{SMALL} --batch=0", "--batch"),
    ("train", f"{SMALL} --batch=16.5", "--batch"),
    ("train", f"{SMALL} --batch-gpu=5", "choose a divisor"),
    ("train", f"{SMALL} --lr=fast", "--lr"),
    ("train", f"{SMALL} --lr=0", "--lr"),
    ("train", f"{SMALL} --duration=-1", "--duration"),
    ("train", f"{SMALL} --arch=unet", "ncsnpp"),
    ("train", f"{SMALL} --cres=1,x", "list of integers"),
    ("train", f"{SMALL} --dropout=2", "--dropout"),
    ("train", f"{SMALL} --seed=-1", "--seed"),
    ("train", f"{SMALL} --seed={10**23}", "--seed"),
    ("train", f"{SMALL} --label-dropout=0.1", "add --cond=1"),
    ("train", f"{SMALL} --lr=nan", "--lr"),
    ("train", f"{SMALL} --duration=inf", "--duration"),
    ("train", f"{SMALL} --lr=nan --dry-run", "--lr"),
    ("train", f"{SMALL} --dry-run --resume=nowhere", "no such file"),
    ("train", f"{SMALL} --dry-run --transfer=half.pkl", "half.pkl"),
    ("train", f"{SMALL} --dry-run --outdir=notes.txt/runs", "notes.txt"),
    ("train", f"{SMALL} --resume=state.pt --data=mirrored", "other data"),
    ("train", f"{SMALL} --tick=0", "--tick"),
    ("train", f"{SMALL} --keep=0", "--keep"),
    ("train", f"{SMALL} --workers=0", "--workers"),
    ("train", f"{SMALL} --device=tpu", "tpu"),
    ("train", f"{SMALL} --fp16=1 --precision=bf16", "contradict"),
    ("train", f"{SMALL} --precond=vp --p-mean=0", "--precond=edm"),
    ("train", f"{SMALL} --lerning-rate=1", "--lerning-rate"),
    ("train", f"{SMALL} extra", "extra"),
    ("train", f"nonsense {SMALL}", "nonsense"),
    ("train", f"{SMALL} --phema=0.5", "0.2886"),
    ("train", f"{SMALL} --phema=x", "list of numbers"),
    ("train", f"{SMALL} --fid-every=0", "--fid-every"),
    ("train", f"{SMALL} --fid-every=1 --fid-features=pixels --fid-num=1", "--fid-num"),
    ("train", f"{SMALL} --fid-every=1 --fid-features=pixels --fid-ref=nowhere.npz", "nowhere.npz"),
    ("train", f"{SMALL} --fid-every=1 --fid-features=pixels --fid-ref=small.npz", "3 features"),
    ("train", f"{SMALL} --fid-every=1 --fid-ref=notes.txt", "not a file of PyTorch weights"),
    # train: files
    ("train", f"--outdir=notes.txt --data=toy {TINY}", "notes.txt"),
    ("train", f"--outdir=notes.txt/runs --data=toy {TINY}", "notes.txt"),
    ("train", f"{SMALL} --nosubdir --outdir=run", "already holds a run"),
    ("train", f"{SMALL} --transfer=nowhere.pkl", "nowhere.pkl"),
    ("train", f"{SMALL} --transfer=notes.txt", "notes.txt"),
    ("train", f"{SMALL} --transfer=half.pkl", "half.pkl"),
    ("train", f"{SMALL} --transfer=evil.pkl", "evil.pkl"),
    ("train", f"{SMALL} --resume=nowhere", "no such file"),
    ("train", f"{SMALL} --resume=toy", "no complete training state"),
    ("train", f"{SMALL} --resume=notes.txt", "notes.txt"),
    ("train", f"{SMALL} --resume=net.pkl", "net.pkl"),
    ("train", f"{SMALL} --resume=half.pt", "half.pt"),
    ("train", f"{SMALL} --resume=evil.pkl", "evil.pkl"),
    ("train", f"{SMALL} --resume=state.pt --cbase=16", "another network"),
    ("train", f"{SMALL} --resume=state.pt --phema=0.1", "the averages"),
    ("train", f"{SMALL} --resume=state.pt --xflip=1", "same --xflip"),
    ("train", f"{SMALL} --resume=state.pt --data=bare --cond=0 --batch=24 --batch-gpu=7", "choose a divisor"),
    # generate
    ("generate", SEEDS, "--network"),
    ("generate", f"{SEEDS} --network=nowhere.pkl", "nowhere.pkl"),
    ("generate", f"{SEEDS} --network=notes.txt", "notes.txt"),
    ("generate", f"{SEEDS} --network=half.pkl", "half.pkl"),
    ("generate", f"{SEEDS} --network=evil.pkl", "evil.pkl"),
    ("generate", f"{SEEDS} --network=state.pt", "snapshot"),
    ("generate", f"{SEEDS} --network=toy", "toy"),
    ("generate", f"{SEEDS} --network=ftp://example.org/net.pkl", "ftp://"),
    ("generate", f"{SEEDS} --network=net.pkl --class=1", "unconditional"),
    ("generate", f"{SEEDS} --network=cond.pkl --class=3", "classes 0 to 2"),
    ("generate", f"{SEEDS} --network=net.pkl --seeds=1-x", "list of integers"),
    ("generate", f"{SEEDS} --network=net.pkl --steps=0", "steps"),
    ("generate", f"{SEEDS} --network=net.pkl --num-steps=4", "give one of them"),
    ("generate", f"{SEEDS} --network=net.pkl --solver=magic", "magic"),
    ("generate", f"{SEEDS} --network=net.pkl --sigma-min=-1", "--sigma-min"),
    ("generate", f"{SEEDS} --network=net.pkl --sigma-min=2 --sigma-max=1", "sigma"),
    ("generate", f"{SEEDS} --network=net.pkl --batch=0", "--batch"),
    ("generate", f"{SEEDS} --network=net.pkl --outdir=notes.txt", "notes.txt"),
    # fid
    ("fid", "", "calc"),
    ("fid", "calc --ref=ref.npz --features=pixels", "neither is given"),
    ("fid", "calc --images=toy --features=pixels", "--ref"),
    ("fid", "calc --images=nowhere --ref=ref.npz --features=pixels", "nowhere"),
    ("fid", "calc --images=empty --ref=ref.npz --features=pixels", "no images"),
    ("fid", "calc --images=toy --ref=ref.npz --features=pixels", "lower --num"),
    ("fid", "calc --images=toy --num=24 --ref=notes.txt --features=pixels", "notes.txt"),
    ("fid", "calc --images=toy --num=24 --ref=broken.npz --features=pixels", "broken.npz"),
    ("fid", "calc --images=toy --num=24 --ref=small.npz --features=pixels", "3 features"),
    ("fid", "calc --images=mixed --num=2 --ref=ref.npz --features=pixels", "alike"),
    ("fid", "calc --network=net.pkl --num=4 --class=0 --ref=ref.npz --features=pixels", "unconditional"),
    ("fid", "calc --network=half.pkl --num=4 --ref=ref.npz --features=pixels", "half.pkl"),
    ("fid", "calc --images=toy --num=24 --ref=ref.npz --features=colour", "colour"),
    ("fid", "calc --images=toy --num=24 --ref=ref.npz --weights=notes.txt", "notes.txt"),
    ("fid", "ref --data=toy --dest=notes.txt/x.npz --features=pixels", "notes.txt"),
    # dataset_tool
    ("data", "--dest=out.zip", "--source"),
    ("data", "--source=nowhere --dest=out.zip", "nowhere"),
    ("data", "--source=notes.txt --dest=out.zip", "notes.txt"),
    ("data", "--source=empty --dest=out.zip", "empty"),
    ("data", "--source=broken.zip --dest=out.zip", "broken.zip"),
    ("data", "--source=truncated --dest=out.zip", "not a readable image"),
    ("data", "--source=wide --dest=out.zip", "square"),
    ("data", "--source=mixed --dest=out.zip", "1.png"),
    ("data", "--source=toy --dest=toy", "toy"),
    ("data", "--source=toy --dest=out.zip --labels=maybe", "maybe"),
    ("data", "--source=shapes:boxes --dest=out.npz --exif=apply", "--exif belongs to images, not to shapes"),
    ("data", "--source=shapes:boxes --dest=out.npz --layout=digits", "--layout is for files"),
    ("data", "--source=toy.nc --dest=out.npz --max-images=3", "--max-images belongs to images, not to --layout=box"),
    ("data", "--source=toy --dest=out.zip --resolution=8", "--resolution"),
    ("data", "--source=toy --dest=out.zip --resolution=3x3", "powers of two"),
    ("data", "--source=toy --dest=out.zip --transform=center-crop", "--resolution"),
    ("data", "--source=toy --dest=notes.txt/out.zip", "notes.txt"),
    ("data", "--source=toy --dest=out.zip --max-images=0", "--max-images"),
    # phema
    ("phema", "run --std=0.07 --out=out.pkl", "--phema"),
    ("phema", "nowhere --std=0.07 --out=out.pkl", "nowhere"),
    ("phema", "run --std=9 --out=out.pkl", "0.2886"),
]


class Evil:
    def __reduce__(self):
        return os.system, ("touch harmed",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    here = tmp_path_factory.mktemp("bad")
    toy = make_data(here / "toy")
    shutil.make_archive(here / "toy", "zip", toy)
    for name in ("bare", "truncated", "badlabels", "halflabels"):
        shutil.copytree(toy, here / name)
    (here / "bare" / "dataset.json").unlink()
    shutil.copytree(toy, here / "mirrored")
    Image.open(toy / "07.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(here / "mirrored" / "07.png")
    first = here / "truncated" / "00.png"
    first.write_bytes(first.read_bytes()[:40])
    (here / "badlabels" / "dataset.json").write_text('{"labels": [1, 2]}')
    (here / "halflabels" / "dataset.json").write_text('{"labels": [["00.png", 1]]}')
    for name, sizes in (("mixed", [(8, 8), (16, 16)]), ("wide", [(16, 8)]), ("empty", [])):
        (here / name).mkdir()
        for i, size in enumerate(sizes):
            Image.new("L", size).save(here / name / f"{i}.png")
    (here / "notes.txt").write_text("notes")
    (here / "broken.zip").write_bytes((here / "toy.zip").read_bytes()[:500])
    (here / "broken.npz").write_bytes(b"PK\x03\x04 damaged")
    np.savez(here / "small.npz", mu=np.zeros(3), sigma=np.eye(3))
    (here / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    for name, label_dim in (("net", 0), ("cond", 3)):
        net = networks.build(
            "EDMPrecond", img_resolution=8, img_channels=1, label_dim=label_dim, model_type="SongUNet",
            model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[4],
        )  # fmt: skip
        networks.save_network(here / f"{name}.pkl", net)
    (here / "half.pkl").write_bytes((here / "net.pkl").read_bytes()[:-5000])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        for script, text in (
            ("train", SMALL.replace("--outdir=out", "--outdir=run --nosubdir") + " --snap=0"),
            ("fid", "ref --data=toy --dest=ref.npz --features=pixels"),
        ):
            done = CliRunner().invoke(SCRIPTS[script], shlex.split(text))
            assert done.exit_code == 0, done.output
    release_locks()
    shutil.copy(here / "run" / "training-state-000001.pt", here / "state.pt")
    (here / "half.pt").write_bytes((here / "state.pt").read_bytes()[:-5000])
    return here


def files(folder):
    """Every file and when it was changed."""
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


NAMES = [f"{script} {text}".replace(f" {TINY}", "") for script, text, _ in ROWS]


@pytest.mark.parametrize(("script", "text", "words"), ROWS, ids=NAMES)
def test_one_sentence(folder, monkeypatch, script, text, words):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FEWSTEP_CACHE_DIR", str(folder / "cache"))
    monkeypatch.setenv("FEWSTEP_INCEPTION", "notes.txt")
    before = files(folder)
    result = CliRunner().invoke(SCRIPTS[script], shlex.split(text))
    release_locks()
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code in (1, 2), result.output
    assert "Traceback" not in result.output
    assert words in " ".join(result.output.split()), result.output
    if text:
        assert result.output.count("Error:") == 1
        sentence = result.output.partition("Error: ")[2].strip()
        assert len(sentence.splitlines()) <= 3, sentence  # click breaks the lists of choices
        assert 10 < len(sentence) < 700
    assert files(folder) == before


def test_the_table_is_long_enough():
    assert len({(script, text) for script, text, _ in ROWS}) == len(ROWS) >= 100
