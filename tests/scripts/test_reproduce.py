"""docs/reproduce.md: presets are the published recipes, and training commands build what they say."""

import io
import json
import re
import shlex
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from dataset_files import pixels, write_zip
from golden_cases import cases
from run_locks import release_locks

import train
from training.methods.edm import PRESETS
from training.methods.table import METHODS

PAGE = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text()
COMMANDS = [
    shlex.split(text) for text in re.findall(r"^torchrun .*?train\.py (.*)$", PAGE.replace("\\\n", ""), re.MULTILINE)
]
SETS = {"cifar10": "cifar10", "ffhq": "ffhq64", "afhqv2": "afhqv2-64", "imagenet": "imagenet64"}  # in published names


def options_of_command(arguments):
    """What a command line of train.py fills its options with."""
    name, *rest = arguments
    command = train.main.get_command(click.Context(train.main), name)
    context = command.make_context(name, rest)
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in context.params.items()}
    return METHODS[name].options(**{k: v for k, v in given.items() if not k.startswith("alias_")})


@pytest.mark.parametrize("case", cases("edm", "state_dict_shapes"))
def test_presets_are_the_published_networks(case):
    found = re.match(r"edm-([a-z]+\d*)-\d+x\d+-\w+-(\w+)", case.name)
    if found is None or found[1] not in SETS:
        pytest.skip("a baseline, which has no recipe of its own")
    arch = {"vp": "ddpmpp", "ve": "ncsnpp", "adm": "adm"}[found[2]]
    options = options_of_command(["edm", "--outdir=x", "--data=y", f"--preset={SETS[found[1]]}", f"--arch={arch}"])
    of_data = {"img_resolution", "img_channels", "label_dim", "use_fp16"}
    published = {k: v for k, v in case.spec["kwargs"].items() if k not in of_data}
    assert {"augment_dim": 0} | options.network_kwargs() == published | {"label_dropout": 0}


TABLE = {  # batch, learning rate, images in millions, EMA half-life in millions, dropout, augmentation, precision
    "cifar10": (512, 1e-3, 200, 0.5, 0.13, 0.12, "fp32"),
    "ffhq64": (256, 2e-4, 200, 0.5, 0.05, 0.15, "fp32"),
    "afhqv2-64": (256, 2e-4, 200, 0.5, 0.25, 0.15, "fp32"),
    "imagenet64": (4096, 1e-4, 2500, 50, 0.10, 0, "fp16"),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_the_published_recipes(name):
    o = options_of_command(["edm", "--outdir=x", "--data=y", f"--preset={name}"])
    assert (o.batch, o.lr, o.duration, o.ema, o.dropout, o.augment, o.precision) == TABLE[name]


def test_what_is_given_wins_over_a_preset():
    options = options_of_command(["edm", "--outdir=x", "--data=y", "--preset=imagenet64", "--lr=0.5", "--batch", "64"])
    assert (options.lr, options.batch, options.ema, options.precision) == (0.5, 64, 50, "fp16")
    plain = options_of_command(["edm", "--outdir=x", "--data=y"])
    assert (plain.lr, plain.batch, plain.preset) == (1e-3, 512, None)


def stand_in(path, resolution, channels, classes):
    """Two images at the size of the real data set, of its last classes."""
    labels = [[f"{i}.png", classes - 1 - i] for i in range(2)] if classes else None
    images = {f"{i}.png": pixels(resolution, channels) for i in range(2)}
    write_zip(path, {**images, "dataset.json": json.dumps({"labels": labels}).encode()})


def stand_in_latents(path):
    """Moments of two images of 256 pixels, as an autoencoder of factor 8 makes them."""
    about = {
        "kind": "moments", "shape": [8, 32, 32], "dtype": "float32", "flips": False, "scale_factor": 0.18215,
        "images": [256, 256], "network": "sd-v1-5", "autoencoder": "0" * 64,
    }  # fmt: skip
    moments = io.BytesIO()
    np.save(moments, np.zeros((8, 32, 32), np.float32))
    labels = {"labels": [["0.npy", 999], ["1.npy", 0]], "latents": about}
    files = {"0.npy": moments.getvalue(), "1.npy": moments.getvalue(), "dataset.json": json.dumps(labels).encode()}
    write_zip(path, files)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda a: " ".join(a[:2]))
def test_training_commands_build_the_published_sizes(arguments, tmp_path, monkeypatch):
    (data,) = (a.split("=")[1] for a in arguments if a.startswith("--data="))
    monkeypatch.chdir(tmp_path)
    Path("datasets").mkdir()
    resolution = int(re.search(r"-(\d+)x", data)[1]) if "x" in data else 32
    stand_in(
        data, resolution, 1 if "mnist" in data else 3, 1000 if "imagenet" in data else 10 if "cifar" in data else 0
    )
    result = CliRunner().invoke(train.main, [*arguments, "--dry-run", "--device=cpu", "--precision=fp32"])
    release_locks()
    assert result.exit_code == 0, result.output
    assert "Dry run" in result.output
