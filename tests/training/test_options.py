"""Every option that a training command accepts is read, or refused: enumerated from the options of every method.

A tiny run of each kind notes which options some code asks for. Copying a whole record (`dataclasses.asdict`), and
filling defaults in `__post_init__`, is not reading. A new option that nothing reads fails here by itself.
"""

import dataclasses
import json
import shlex
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import networks
import train
import train_trajectory
from training.methods.table import METHODS, STAGES, method_entry

COMMON = "--outdir={o} --nosubdir --seed=0 --tick=0.1"  # a run has at least 1000 images
FID = "--fid-every=1 --fid-features=pixels --fid-num=2"
UNET = "--cbase=8 --cres=1 --num-blocks=1 --attn-resolutions=4 --batch=334 --duration=0.001"
UNET_IDFF = "--cbase=32 --cres=1 --num-blocks=1 --head-channels=32 --attn-resolutions=8 --batch=334 --duration=0.001"
COEFFICIENTS = "--coef-channels=8 --coef-mult=1 --coef-blocks=1 --basis-num=2 --num-steps=2 --kimg=0.012"
STEPS = "--batch=334 --iterations=3"
TRANSFORMER = "--width=16 --depth=1 --num-heads=2 --batch=334 --duration=0.001"

# Runs that together are every kind of a method's: of images and points, of each branch that has options of its own.
RUNS = {
    "edm": [
        f"{UNET} {FID} --fid-steps=2 --data={{images}}",
        f"{UNET} --data={{images}} --precond=edm_gamma",
        "--data=toy:moons:size=32 --batch=334 --duration=0.001 --cbase=8",
    ],
    "curvature": [
        f"{STEPS} {FID} --data={{images}} --preset=digits --N=2 --num-samples=2",
        f"{STEPS} --data=toy:moons:size=32 --dataset=two_gaussians --independent --coupling=ot --ema=0.1 --lr-rampup=1",
    ],
    "combostoc": [
        f"{TRANSFORMER} {FID} --fid-steps=2 --data={{images}} --cond=1 --model=ComboStoc-S/4",
        f"{TRANSFORMER} --data={{images}} --model=ComboStoc-S/4 --prediction=noise --combostoc-type=UNSYNC_VEC",
        f"{TRANSFORMER} --data=shapes:boxes:size=32 --split=att_part",
    ],
    "sit": [f"{TRANSFORMER} {FID} --fid-steps=2 --data={{images}} --cond=1 --model=SiT-S/4 --prediction=score"],
    "idff": [
        f"{UNET_IDFF} {FID} --fid-steps=2 --data={{images}} --cond=1 --coupling=ot-labels",
        "--data=toy:moons:size=32 --batch=334 --duration=0.001 --ot-method=unbalanced --ot-reg=5 --lr-rampup=1",
        "--data=toy:moons:size=32 --batch=334 --duration=0.001 --heads=1 --sigma=0 --time-weight=late",
    ],
    "distill": [f"{FID} --batch=334 --duration=0.001 --data={{pairs}} --network={{flow}} --test-data={{pairs}}"],
    "trajectory": [
        f"{COEFFICIENTS} {FID} --data={{images}} --network={{denoiser}} --backbones=light --batch=4 --batch-edm=4 "
        "--batch-disc=4 --s-churn=1",
        "--coef-channels=8 --coef-blocks=1 --num-steps=2 --kimg=0.012 --data=toy:moons:size=32 --network={points} "
        "--batch=4 --batch-edm=4 --batch-disc=4",
    ],
}


def invoke(method, arguments):
    main, first = (train.main, [method]) if method in METHODS else (train_trajectory.main, [])
    return CliRunner().invoke(main, [*first, *shlex.split(arguments)])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Images, pairs and networks that the runs name."""
    root = tmp_path_factory.mktemp("inputs")
    random = np.random.RandomState(0)
    for folder in ("images", "pairs/samples", "pairs/zs"):
        (root / folder).mkdir(parents=True)
    for i in range(8):
        Image.fromarray(random.randint(0, 256, (8, 8), dtype=np.uint8)).save(root / "images" / f"{i}.png")
        Image.fromarray(random.randint(0, 256, (4, 4), dtype=np.uint8)).save(root / "pairs/samples" / f"{i}.png")
        np.save(root / "pairs/zs" / f"{i}.npy", random.standard_normal((1, 4, 4)).astype(np.float32))
    labels = [[f"{i}.png", i % 2] for i in range(8)]
    (root / "images" / "dataset.json").write_text(json.dumps({"labels": labels}))
    flow = networks.build("VelocityNetwork", img_resolution=4, img_channels=1, model_type="MLP", hidden=8)
    networks.save_network(root / "flow.pkl", flow)
    made = {"images": root / "images", "pairs": root / "pairs", "flow": root / "flow.pkl"}
    for name, run in (("denoiser", RUNS["edm"][0]), ("points", RUNS["edm"][2])):
        result = invoke("edm", f"{COMMON} {run}".format(o=root / name, **made))
        assert result.exit_code == 0, result.output
        made[name] = next((root / name).glob("network-snapshot-*.pkl"))
    return made


def noted(monkeypatch, cls):
    """The set that collects the names of the options of `cls` that are read."""
    names, read = {f.name for f in dataclasses.fields(cls)}, set()

    def get(self, name):
        if name in names and name not in read and not _copying(sys._getframe(1)):
            read.add(name)
        return object.__getattribute__(self, name)

    monkeypatch.setattr(cls, "__getattribute__", get)
    return read


def _copying(frame):
    if frame.f_code.co_filename == dataclasses.__file__:
        return True
    while frame is not None:
        if frame.f_code.co_name == "__post_init__":
            return True
        frame = frame.f_back
    return False


def accepted(cls):
    return {f.name for f in dataclasses.fields(cls) if f.metadata}


def absorbed(cls, name):
    """Whether this option becomes others before anything reads it, as --iterations becomes --duration."""
    presets = next(f for f in dataclasses.fields(cls) if f.name == name).metadata["presets"]
    if presets:  # by the command line; tests/scripts/test_reproduce.py has the values
        return all(set(values) <= accepted(cls) for values in presets.values())
    try:
        plain, given = (dataclasses.asdict(cls(outdir="x", data="y", **more)) for more in ({}, {name: 7}))
    except ValueError:  # refused
        return False
    return {k for k in plain if plain[k] != given[k]} > {name}


@pytest.mark.parametrize("method", [*METHODS, *STAGES])
def test_every_option_is_read(method, inputs, tmp_path, monkeypatch):
    cls = method_entry(method).options
    read = noted(monkeypatch, cls)
    for i, run in enumerate(RUNS[method]):
        result = invoke(method, f"{COMMON} {run}".format(o=tmp_path / str(i), **inputs))
        assert result.exit_code == 0, result.output
    assert {name for name in accepted(cls) - read if not absorbed(cls, name)} == set()


VALUES = {"config_en": "x.json", "fid_ref": "x.npz", "dataset": "mnist", "ema_decay": "0.5"}


def another(cls, name):
    """A value that the option does not have of itself, as it is written."""
    f = next(f for f in dataclasses.fields(cls) if f.name == name)
    if f.metadata["choices"]:
        return next(c for c in f.metadata["choices"] if c != f.default)
    return VALUES.get(name, "3")


@pytest.mark.slow
@pytest.mark.parametrize(("method", "run"), [(m, r) for m, runs in RUNS.items() for r in runs])
def test_what_one_run_does_not_read_it_refuses(method, run, inputs, tmp_path, monkeypatch):
    cls = method_entry(method).options
    read = noted(monkeypatch, cls)
    command = f"{COMMON} {run}".format(o=tmp_path / "run", **inputs)
    assert invoke(method, command).exit_code == 0
    for name in sorted(n for n in accepted(cls) - read if not absorbed(cls, n)):
        option = "--" + name.replace("_", "-")
        result = invoke(method, f"{command} {option}={another(cls, name)}")
        assert result.exit_code in (1, 2), f"{option} is ignored"
        assert option in result.output.splitlines()[-1]


def test_copying_is_not_reading(monkeypatch):
    cls = METHODS["curvature"].options
    read = noted(monkeypatch, cls)
    options = cls(outdir="x", data="y")
    dataclasses.asdict(options)
    json.dumps(dataclasses.asdict(dataclasses.replace(options, seed=1)))
    assert read == set()
    assert options.lr
    assert read == {"lr"}
