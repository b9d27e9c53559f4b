"""Tiny training runs whose outcome must not depend on how often they were interrupted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from patience import HUNG
from PIL import Image

from torch_utils import checkpoint

TESTS = Path(__file__).parent
OPTIONS = (
    "--cond=1 --xflip=1 --cbase=8 --cres=1 --num-blocks=1 --attn-resolutions=4 --augment=0.2 --dropout=0.1 --lr=1e-3 "
    "--lr-rampup=0.0001 --ema=0.0005 --phema=0.1 --batch=32 --tick=0.064 --snap=2 --dump=1 --seed=3 --bench=0 "
)


def make_data(folder):
    """A folder of 24 grey 8x8 images in three classes."""
    folder.mkdir()
    rng = np.random.RandomState(0)
    for i in range(24):
        Image.fromarray(rng.randint(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    (folder / "dataset.json").write_text(json.dumps({"labels": [[f"{i:02d}.png", i % 3] for i in range(24)]}))
    return folder


def joint_options(folder):
    """Of a tiny `train.py curvature` run; its two network configurations are written to the folder."""
    config = {"img_resolution": 8, "in_channels": 1, "model_channels": 8, "channel_mult": [1], "num_blocks": 1}
    for role, channels in (("de", 1), ("en", 2)):
        text = json.dumps(config | {"out_channels": channels, "attn_resolutions": [], "dropout": 0.1})
        (folder / f"{role}.json").write_text(text)
    return (
        f"--config_de={folder / 'de.json'} --config_en={folder / 'en.json'} --optimizer=adam --lr=1e-3 "
        "--warmup_steps=4 --ema_decay=0.9 --N=2 --num_samples=4 --batch=32 --tick=0.064 --snap=2 --dump=1 --seed=3 "
    )


def drive(tmp_path, data, outdir, kimg, runs, world=1, method="edm", options=OPTIONS):
    """Exit statuses and events of each process of each run, by `kill_driver.py`."""
    command = [method, f"--outdir={outdir}", f"--data={data}", f"--duration={kimg / 1000}", *options.split()]
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"command": command, "world": world, "runs": runs}))
    done = subprocess.run(
        [sys.executable, str(TESTS / "kill_driver.py"), str(plan)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=HUNG, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(runs)
    return results, done.stderr


def only_run(outdir):
    found = [p for p in outdir.iterdir() if p.name[0] == "0"]
    assert len(found) == 1, found
    return found[0]


def outcome(outdir):
    """Everything a run leaves that must not depend on being killed."""
    run_dir = only_run(outdir)
    assert json.loads((run_dir / "training_options.json").read_text())["finished"]
    assert not list(run_dir.glob(".*.tmp"))
    tensors = {}
    for path in [*run_dir.glob("*.pkl"), *run_dir.glob("*.pt")]:
        contents = checkpoint.load(path)
        tensors |= {f"{path.name}/{name}": value for name, value in checkpoint.named(contents.payload).items()}
        tensors[f"{path.name}/nimg"] = contents.payload.get("loop", contents.info).get("nimg")
    stats = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    keys = ("Loss/loss", "Grad/net_norm", "Progress/kimg", "Progress/tick", "Metrics/fid", "Metrics/fid_best")
    curves = {key: [s[key] for s in stats if key in s] for key in keys}
    return tensors, curves


def assert_same(one, other):
    (tensors, curves), (expected, expected_curves) = one, other
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal(tensors[name], value) if isinstance(value, torch.Tensor) else tensors[name] == value
        assert same, name
    assert curves == expected_curves
