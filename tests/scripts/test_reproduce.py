"""docs/reproduce.md: presets are those of its tables, training commands build what they say, sampling commands make a
plan whose cost is that of the table."""

import functools
import io
import json
import re
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from dataset_files import pixels, write_zip
from golden_cases import cases
from page_commands import ROOT, commands, table_of
from PIL import Image
from run_locks import release_locks
from stand_ins import MODELS, Table

import fid
import generate
import networks
import train
import train_trajectory
from samplers.planning import elementwise, levels
from samplers.planning.plan import SamplerOptions, build_plan
from training.methods.curvature_options import HYPER
from training.methods.edm import ARCHITECTURES, EMA_RAMPUP
from training.methods.edm import PRESETS as OF_EDM
from training.methods.idff_options import PRESETS as OF_IDFF
from training.methods.table import METHODS

PAGE = (ROOT / "docs" / "reproduce.md").read_text()
COMMANDS = list(commands(PAGE))
TRAINING = [c for c in COMMANDS if c.module in ("train", "train_trajectory")]
SAMPLING = [c for c in COMMANDS if c.module in ("fid", "generate") and any("--network=" in a for a in c.arguments)]
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


OURS = {"digits", "two_gaussians", "toys"}  # presets that no paper has
OF_TABLES = {"edm": (OF_EDM, {}), "curvature": (HYPER, {"beta": "weight_prior"}), "idff": (OF_IDFF, {})}


def said(value):
    """A value as the tables write it."""
    return (
        ",".join(map(str, value))
        if isinstance(value, tuple | list)
        else f"{value:g}"
        if type(value) is float
        else str(value)
    )


def values_of(method, preset):
    """What a preset comes to, by the names of the columns."""
    data = {"sst": "series:elnino", "md": "series:peptide", "lorenz": "series:lorenz"}.get(preset, "y")
    options = options_of_command([method, "--outdir=x", f"--data={data}", f"--preset={preset}"])
    found = vars(options) | {"iterations": round(options.duration * 1e6 / options.batch)}
    if method == "edm":
        found["ema_rampup"] = EMA_RAMPUP if options.ema_rampup is None else options.ema_rampup
        found["cres"] = options.cres or ARCHITECTURES[options.architecture]["channel_mult"]
    if method == "idff" and data == "y":
        found |= options.unet_values()
    return found


@pytest.mark.parametrize("method", OF_TABLES)
def test_presets_are_those_of_the_tables(method):
    presets, spelled = OF_TABLES[method]
    seen = set()
    for row in table_of(PAGE, f"preset of `train.py {method}`"):
        names, *cells = row.items()
        for name in re.findall(r"`(.*?)`", names[1]):
            seen.add(name)
            found = values_of(method, name)
            differ = {k: (v, said(found[spelled.get(k, k).replace("-", "_")])) for k, v in cells if v not in ("", "–")}
            assert not {k: v for k, v in differ.items() if v[0] != v[1]}, name
    assert seen == presets.keys() - OURS


def test_what_is_given_wins_over_a_preset():
    options = options_of_command(["edm", "--outdir=x", "--data=y", "--preset=imagenet64", "--lr=0.5", "--batch", "64"])
    assert (options.lr, options.batch, options.ema, options.precision) == (0.5, 64, 50, "fp16")
    plain = options_of_command(["edm", "--outdir=x", "--data=y"])
    assert (plain.lr, plain.batch, plain.preset) == (1e-3, 512, None)


def write_images(path, resolution, channels, classes):
    """Two images at the size of the real data set, of its last classes."""
    labels = [[f"{i}.png", classes - 1 - i] for i in range(2)] if classes else None
    images = {f"{i}.png": pixels(resolution, channels) for i in range(2)}
    write_zip(path, {**images, "dataset.json": json.dumps({"labels": labels}).encode()})


def write_latents(path, size, classes):
    """Moments of two images, as an autoencoder of factor 8 makes them, and of the mirrored images."""
    shape = [8, size // 8, size // 8]
    about = {
        "kind": "moments", "shape": shape, "dtype": "float32", "flips": True, "scale_factor": 0.18215,
        "images": [size, size], "network": "sd-v1-5", "autoencoder": "0" * 64,
    }  # fmt: skip
    moments = io.BytesIO()
    np.save(moments, np.zeros(shape, np.float32))
    names = [f"{i}{flip}.npy" for i in range(2) for flip in ("", "-flip")]
    labels = {"labels": [["0.npy", classes - 1], ["1.npy", 0]], "latents": about}
    write_zip(path, {**dict.fromkeys(names, moments.getvalue()), "dataset.json": json.dumps(labels).encode()})


def write_data(data):
    """What stands for the data of a command in the folder of the test."""
    rng = np.random.default_rng(0)
    size = int(found[1]) if (found := re.search(r"-(\d+)", data)) else 0
    if data == "pairs":
        for folder in ("samples", "zs"):
            (Path(data) / folder).mkdir(parents=True)
        Image.fromarray(pixels(32, 3)).save("pairs/samples/000000.png")
        np.save(Path(data, "zs", "000000.npy"), np.zeros((3, 32, 32), np.float32))
    elif "latents" in data:
        write_latents(data, size, 100 if "imagenet100" in data else 1000)
    elif "box.npz" in data:
        np.savez("datasets/box.npz", data=rng.random((40, 60, 60), np.float32), axes="THW")
    elif "angles.npz" in data:
        np.savez("datasets/angles.npz", data=rng.random((40, 6)) * 90, axes="TD", angles="degrees")
    elif "chairs" in data:
        np.savez(data, parts=rng.random((4, 256, 519), np.float32), groups=np.array([1, 6, 512]))
    elif data.endswith(".zip"):
        classes = 1000 if "imagenet" in data else 10 if "cifar" in data else 0
        write_images(data, size, 1 if "mnist" in data else 3, classes)


def small_start(given):
    """A small network of the kind that a command starts from, for its data."""
    size = 64 if "64x64" in given["--data"] else 32
    about = {
        "img_resolution": size, "img_channels": 3, "model_type": "SongUNet", "model_channels": 16, "channel_mult": [1],
        "num_blocks": 1,
    }  # fmt: skip
    classes = 1000 if "imagenet" in given["--data"] else 10
    name = (
        "VelocityNetwork"
        if "flow" in given["--network"]
        else "EDMGammaPrecond"
        if "gamma" in given["--network"]
        else "EDMPrecond"
    )
    return networks.build(name, **about, label_dim=classes if "--cond" in given else 0)


def once(found):
    """Module and arguments of every command, without where its results go, once."""
    kept = ((c.module, *(a for a in c.arguments if not a.startswith("--outdir="))) for c in found)
    return [[*one, "--outdir=runs"] for one in dict.fromkeys(kept)]


@pytest.mark.parametrize("words", once(TRAINING), ids=" ".join)
def test_training_commands_have_options_that_go_together(words):
    module, *arguments = words
    if module == "train":
        assert options_of_command(arguments).total_kimg >= 1
    else:
        train_trajectory.main.make_context(module, arguments)


def kind(network):
    """The stand-in for a network of the page."""
    kinds = {"flow": "coupled", "idff": "fusion", "sit": "latents", "mac": "mac", "shapes": "shapes"}
    kinds |= {"adm-": "table", "ldm-": "table", "sd-": "text"}
    return next((v for k, v in kinds.items() if network.startswith(k)), "denoiser")


class OfText(Table):
    """The range of levels that lists for Stable Diffusion have."""

    sigma_min, sigma_max = 0.0292, 14.6146


@functools.cache
def stand_in(name):
    return OfText() if name == "text" else MODELS[name]()


def sampler_of(command):
    """The network that a command line of fid.py or generate.py samples, and its options of a sampler."""
    program, arguments = (
        (fid.main.get_command(click.Context(fid.main), "calc"), command.arguments[1:])
        if command.module == "fid"
        else (generate.main, command.arguments)
    )
    given = program.make_context(command.module, list(arguments)).params
    fields = SamplerOptions.__dataclass_fields__
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if k in fields}
    return given["network"], SamplerOptions(**values)


@pytest.fixture
def _small(monkeypatch):
    """Searches and calibrations of few samples."""
    for name, few in (("search_schedule", {}), ("calibrate", {"num_heldout": 2, "iterations": 0})):
        whole = getattr(levels, name)
        how = {"num_warmup": 16, **few}
        monkeypatch.setattr(levels, name, lambda field, *a, _f=whole, _h=how, **k: _f(field, *a, **{**k, **_h}))
    monkeypatch.setattr(elementwise, "coefficient_cost", lambda net: (1.0, 0.1))


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("command", SAMPLING, ids=lambda c: " ".join(c.arguments))
def test_sampling_commands_make_a_plan_of_the_cost_that_the_table_says(command):
    network, options = sampler_of(command)
    plan = build_plan(stand_in(kind(network)), options, batch=2)
    assert command.evaluations in (None, plan.nfe)


@pytest.mark.slow
@pytest.mark.parametrize("words", once(TRAINING), ids=" ".join)
def test_training_commands_build_the_published_sizes(words, tmp_path, monkeypatch):
    """Dry runs; what a command starts from is a small network of the kind."""
    module, *arguments = words
    monkeypatch.chdir(tmp_path)
    Path("datasets").mkdir()
    given = dict(a.split("=", 1) for a in arguments if a.startswith("--") and "=" in a)
    write_data(given["--data"])
    if "--network" in given:
        arguments = [a for a in arguments if not a.startswith("--network=")] + ["--network=net.pkl"]
        networks.save_network("net.pkl", small_start(given))
    if module == "train_trajectory":
        arguments += ["--backbones=light"]
    program = {"train": train.main, "train_trajectory": train_trajectory.main}[module]
    result = CliRunner().invoke(
        program, [*arguments, "--dry-run", "--device=cpu", *["--precision=fp32"] * (module == "train")]
    )
    release_locks()
    assert result.exit_code == 0, result.output
    assert "Dry run" in result.output
