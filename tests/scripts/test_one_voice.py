"""Two processes and a mistake: one sentence of one of them, nothing of the other, no status 0, no waiting."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from exact_runs import TESTS, make_data

import networks

TINY = "--cbase=8 --cres=1 --num-blocks=1 --attn-resolutions=4 --augment=0 --dropout=0 --batch=16 --bench=0"
TRAIN = f"train --outdir=out {TINY} --duration=0.1"
# Each a command line and words of the sentence.
ROWS = {
    f"{TRAIN} --data=nowhere": "nowhere",
    f"{TRAIN} --data=broken --cache=0": "21.png",  # an image of the second process in the first step, or of the first
    f"{TRAIN} --data=toy --batch=7": "divisible by the 2 processes",
    f"{TRAIN} --data=toy --batch=0": "--batch",
    f"{TRAIN} --data=toy --device=tpu": "tpu",
    f"{TRAIN} --data=toy --outdir=notes.txt/out": "notes.txt",
    f"{TRAIN} --data=toy --resume=nowhere": "nowhere",
    f"{TRAIN} --data=toy --transfer=junk.pkl": "junk.pkl",
    "generate --network=nowhere.pkl --seeds=0-3 --outdir=out": "nowhere.pkl",
    "generate --network=junk.pkl --seeds=0-3 --outdir=out": "junk.pkl",
    "generate --network=net.pkl --seeds=0-3 --steps=2 --outdir=notes.txt/out": "notes.txt",
    "generate --network=net.pkl --seeds=0-3 --steps=2 --npz=toy": "toy",
    "generate --network=net.pkl --seeds=0-3 --class=2": "unconditional",
    "fid calc --images=toy --num=24 --ref=nowhere.npz --features=pixels": "nowhere.npz",
    "fid calc --images=broken --num=24 --ref=ref.npz --features=pixels": "21.png",  # of the second process
    "fid calc --images=toy --num=24 --ref=ref.npz --features=pixels --json=toy": "toy",
    "fid ref --data=toy --dest=notes.txt/x.npz --features=pixels": "notes.txt",
    "analyze curvature junk.pkl --outdir=out": "junk.pkl",
    "analyze compare --network=net.pkl --solvers=magic --outdir=out": "magic",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    here = tmp_path_factory.mktemp("two")
    for name in ("toy", "broken"):
        make_data(here / name)
    image = here / "broken" / "21.png"
    image.write_bytes(image.read_bytes()[:60])
    (here / "notes.txt").write_text("notes")
    (here / "junk.pkl").write_bytes(bytes(range(200)))
    np.savez(here / "ref.npz", mu=np.zeros(64), sigma=np.eye(64))
    kwargs = {"model_type": "SongUNet", "model_channels": 8, "channel_mult": [1], "num_blocks": 1}
    net = networks.build("EDMPrecond", img_resolution=8, img_channels=1, label_dim=0, attn_resolutions=[], **kwargs)
    networks.save_network(here / "net.pkl", net)
    done = subprocess.run(
        [sys.executable, str(TESTS / "two_processes.py"), json.dumps([row.split() for row in ROWS])],
        cwd=here, env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(ROWS, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize(("row", "words"), ROWS.items(), ids=[row.replace(f" {TINY}", "") for row in ROWS])
def test_one_sentence(results, row, words):
    statuses, text = results[row]
    assert set(statuses) <= {1, 2}, (statuses, text)
    assert text.count("Error: ") == 1, text
    assert words in text.partition("Error: ")[2]
    assert "Traceback" not in text
