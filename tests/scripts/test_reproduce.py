"""docs/reproduce.md: presets are the published recipes, and training commands build what they say."""

import json
import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from dataset_files import pixels, write_zip
from golden_cases import cases
from run_locks import release_locks

import train
from training.methods.table import METHODS

PAGE = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text()
COMMANDS = [
    shlex.split(text)
    for text in re.findall(r"^torchrun .*?train\.py (.*)$", PAGE.replace("\\\n", ""), re.MULTILINE)
]  # fmt: skip
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


@pytest.mark.slow
@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda a: " ".join(a[:2]))
def test_training_commands_build_the_published_sizes(arguments, tmp_path, monkeypatch):
    (data,) = (a.split("=")[1] for a in arguments if a.startswith("--data="))
    if "latents" in data:
        pytest.skip("latents are made by a published autoencoder")
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
