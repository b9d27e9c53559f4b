"""Options, presets, networks and snapshots of `train.py curvature`."""

import dataclasses
import json

import click
import numpy as np
import pytest
import torch
from torch import nn

import networks
from torch_utils.cli import Command
from torch_utils.options import options_of
from training.methods.curvature import build, optimizer_of, warmup_lr
from training.methods.curvature_options import HYPER, CurvatureOptions


def test_warm_up():
    assert [warmup_lr(i, 1.0, 4) for i in range(6)] == [0, 0.25, 0.5, 0.75, 0.75, 0.75]
    assert [warmup_lr(i, 1.0, 1) for i in range(3)] == [0, 1, 1]
    assert warmup_lr(0, 0.5, 0) == 0.5


def options(**more):
    return CurvatureOptions(outdir="runs", data="digits.zip", **more)


def test_defaults_of_the_original_and_of_presets():
    plain = options()
    assert (plain.batch, plain.lr, plain.weight_prior, plain.optimizer) == (4, 3e-5, 10.0, "adamw")
    assert (plain.warmup_steps, plain.iterations, plain.ema_decay) == (0, 1_000_000, 0.9999)
    assert plain.total_kimg == 4000
    assert options(dataset="cifar10").batch == 4
    cifar = options(preset="cifar10", weight_prior=5.0)
    assert (cifar.batch, cifar.weight_prior, cifar.optimizer, cifar.xflip) == (128, 5.0, "adam", True)
    assert cifar.total_kimg == 64_000
    assert options(preset="ffhq").optimizer == "adamw"
    assert options(preset="cifar10", duration=0.0128).total_kimg == 13


def parsed(*arguments):
    @click.command(cls=Command)
    @options_of(CurvatureOptions)
    def command(options):
        return options

    return command.main(["--outdir=runs", "--data=digits.zip", *arguments], standalone_mode=False)


def test_spellings_of_the_original_command():
    assert parsed("--gpu=1").device == "cuda:1"
    assert parsed("--no-ema", "--preset=cifar10").ema_decay == 0
    assert parsed("--weight-cur=0", "--fp16=1") == options(precision="fp16")
    for argument, words in (("--gpu=0,1", "torchrun"), ("--weight-cur=1", "no effect")):
        with pytest.raises(click.ClickException, match=words):
            parsed(argument)


@pytest.mark.parametrize("name", HYPER)
def test_filled_options_stay_as_they_are(name):
    assert dataclasses.replace(options(preset=name), seed=3) == options(preset=name, seed=3)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"weight_prior": -1.0}, "0 or more"),
        ({"weight_prior": float("nan")}, "0 or more"),
        ({"iterations": 10, "duration": 1.0}, "--iterations and --duration"),
        ({"preset": "mnist", "dataset": "mnist"}, "leave one"),
        ({"independent": True, "config_en": "a.json"}, "no encoder"),
        ({"warmup_steps": 10, "lr_rampup": 1.0}, "warm"),
        ({"ema_decay": 0.5, "ema": 1.0}, "how to average"),
    ],
)
def test_bad_options(more, words):
    with pytest.raises(ValueError, match=words):
        options(**more)


class _Images:
    """The interface of a data set that `build` uses."""

    latents = None

    def __init__(self, shape=(1, 8, 8), n=12):
        self.image_shape, (self.num_channels, _, self.resolution) = list(shape), shape
        self.label_dim = 0
        g = torch.Generator().manual_seed(0)
        self.items = torch.randint(0, 256, [n, *shape], dtype=torch.uint8, generator=g).numpy()

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i], np.zeros(0, np.float32)


SMALL = {"unet_type": "songunet", "img_resolution": 8, "in_channels": 1, "model_channels": 8, "channel_mult": [1],
         "num_blocks": 1, "dropout": 0.0}  # fmt: skip


def write(path, **config):
    path.write_text(json.dumps(config))
    return str(path)


@pytest.fixture
def small(tmp_path):
    de, en = (write(tmp_path / f"{n}.json", **SMALL, out_channels=n) for n in (1, 2))
    return {"config_de": de, "config_en": en, "num_samples": 4, "N": 3}


@pytest.mark.parametrize(
    ("role", "change", "words"),
    [
        ("en", {"img_resolution": 4, "out_channels": 2}, "one size"),
        ("de", {"out_channels": 2}, "2 output channels"),
        ("de", {"out_channels": 1, "depth": 3}, "no field depth"),
    ],
)
def test_networks_that_do_not_fit(tmp_path, small, role, change, words):
    small[f"config_{role}"] = write(tmp_path / "changed.json", **(SMALL | change))
    with pytest.raises(ValueError, match=words):
        build(options(**small), _Images(), torch.device("cpu"))


def test_data_that_do_not_fit(small):
    with pytest.raises(ValueError, match="has 4 and 1: choose"):
        build(options(**small), _Images((1, 4, 4)), torch.device("cpu"))
    with pytest.raises(ValueError, match="--config-de and --config-en"):
        build(options(), _Images((3, 20, 20)), torch.device("cpu"))


def test_method(tmp_path, small):
    """Modules, averages, figures, picture and snapshot of a joint run."""
    method = build(options(**small), _Images(), torch.device("cpu"))
    assert list(method.modules) == ["encoder", "net"]
    averaged = {name: method.modules[a.module].eval() for name, a in method.averages.items()}
    assert set(method.figures(averaged)) == {"Curvature/uncond", "Curvature/reverse"}
    method.preview(tmp_path / "samples.png", averaged)
    assert (tmp_path / "samples.png").stat().st_size > 0
    method.save(tmp_path / "net.pkl", averaged, {"nimg": 0})
    net, encoder = networks.load_network(tmp_path / "net.pkl"), networks.load_encoder(tmp_path / "net.pkl")
    assert set(net.priors) == {"matched", "standard"}
    assert not net.gaussian_noise
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(encoder(x, x).z, averaged["encoder"](x, x).z)
    torch.testing.assert_close(net(x, 0.3), averaged["ema"](x, 0.3))


def test_independent_method(tmp_path, small):
    small.pop("config_en")
    method = build(options(independent=True, **small), _Images(), torch.device("cpu"))
    averaged = {name: method.modules[a.module] for name, a in method.averages.items()}
    assert list(method.modules) == ["net"]
    assert set(method.figures(averaged)) == {"Curvature/uncond"}
    method.save(tmp_path / "net.pkl", averaged, {})
    net = networks.load_network(tmp_path / "net.pkl")
    assert net.gaussian_noise
    assert net.priors == ("standard",)


def test_optimizers():
    p = [nn.Parameter(torch.zeros(1))]
    adam, adamw = optimizer_of("adam", 1e-3)(p), optimizer_of("adamw", 1e-3)(p)
    assert (adam.defaults["betas"], adam.defaults["weight_decay"]) == ((0.9, 0.999), 0)
    assert (adamw.defaults["betas"], adamw.defaults["weight_decay"]) == ((0.9, 0.9999), 0.1)
