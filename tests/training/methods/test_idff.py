"""`train.py idff`: presets, refusals, couplings in the loss, snapshots."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from golden_cases import cases

import networks
from torch_utils.rng import BatchRNG
from training.data.series import SeriesDataset
from training.data.toys import ToyDataset
from training.method import Batch
from training.methods.idff import build, build_network
from training.methods.idff_options import PRESETS, IDFFOptions

CPU = torch.device("cpu")


def options(data="digits.zip", **more):
    return IDFFOptions(outdir="runs", data=data, **more)


def toy_options(**more):
    return options("toy:moons:size=64", batch=16, **more)


SERIES = ("sst", "md", "lorenz")


class _Maps(SeriesDataset):
    """What a network of maps that are known by their number is made for."""

    def __init__(self, size, frames):
        self.resolution, self.num_channels, self.period = size, 1, frames


class _Images:
    label_kind, label_dim = None, 0

    def __init__(self, size, channels=3):
        self.image_shape, self.num_channels, self.resolution = (channels, size, size), channels, size

    def __len__(self):
        return 8


# --- options ----------------------------------------------------------------------------------------------------------


def test_published_recipes():
    cifar = options(preset="cifar10")
    assert (cifar.batch, cifar.lr, cifar.grad_clip, cifar.score_target, cifar.xflip) == (128, 2e-4, 1.0, "x0", True)
    assert cifar.lr_rampup * 1e6 == 5000 * 128
    assert 0.5 ** (128 / (cifar.ema * 1e6)) == pytest.approx(0.9999, rel=1e-12)
    church = options(preset="lsun_church", batch=32)
    assert (church.time_weight, church.score_target, church.lr_rampup * 1e6) == ("early", "eps", 5000 * 32)
    toys = options("toy:moons")
    assert (toys.flow_weight, toys.batch, toys.lr_rampup, toys.ema, toys.grad_clip) == (5.0, 256, 0, 0, None)
    assert options(preset="cifar10", lr=1.0).lr == 1


@pytest.mark.parametrize("more", [{"preset": name} for name in PRESETS if name != "toys"] + [{}, {"heads": 1}])
def test_filled_options_stay_as_they_are(more):
    data = "series:elnino" if more.get("preset") in SERIES else "digits.zip"
    assert dataclasses.replace(options(data, **more), seed=3) == options(data, **more, seed=3)
    json.dumps(dataclasses.asdict(options(data, **more)), allow_nan=False)


@pytest.mark.parametrize(
    ("data", "more", "words"),
    [
        ("toy:moons", {"dropout": 0.1}, "--dropout belongs to U-Nets"),
        ("a.zip", {"heads": 1, "score_target": "eps"}, "--heads=1 has none"),
        ("a.zip", {"sigma": 0.0}, "leaves the second head nothing"),
        ("a.zip", {"score_target": "log-density"}, "of paths without noise"),
        ("a.zip", {"coupling": "independent", "ot_reg": 1.0}, "--ot-reg belongs to --coupling=ot"),
        ("a.zip", {"coupling": "ot-labels", "ot_replacement": True}, "--ot-replacement belongs to --coupling=ot"),
        ("a.zip", {"ot_reg": 1.0}, "other plans than the exact one"),
        ("a.zip", {"ot_method": "sinkhorn", "ot_reg_m": 1.0}, "belongs to --ot-method=unbalanced"),
        ("a.zip", {"coupling": "ot-labels"}, "add --cond=1"),
        ("a.zip", {"batch_gpu": 1}, "leaves one"),
        ("toy:moons", {"batch": 1}, "leaves one"),
    ],
)
def test_options_that_do_not_fit(data, more, words):
    with pytest.raises(ValueError, match=words):
        options(data, **more)


@pytest.mark.parametrize("case", cases("idff", "network_keys"))
def test_presets_build_the_published_networks(case):
    """Those of images, whatever the files call them: found by size, channels and multipliers."""
    config = case.spec["params"]["config"]
    _, size, _ = config["dim"]
    mult, expected = tuple(config["channel_mult"]), case.spec["expect"]["state_dict"]["value"]
    if config["class_cond"]:  # of maps that are known by their number
        frames = expected["label_emb.weight"][0]
        made, data = options("series:advected", preset="sst", memorise=True), _Maps(size, frames)
    else:
        images = [options(preset=name) for name in PRESETS if name not in SERIES]
        (made, *_), data = [o for o in images if o.cres == mult and o.cbase == 128], _Images(size)
    with torch.device("meta"):
        net = build_network(made, data)
    assert {k: list(v.shape) for k, v in net.model.state_dict().items()} == expected


def test_resolutions_must_be_those_of_the_data():
    with pytest.raises(ValueError, match="--attn-resolutions=16 is no resolution of images of 8 pixels"):
        build(options(), _Images(8), CPU)


# --- loss -------------------------------------------------------------------------------------------------------------


def losses(made, rows=range(16), labels=None, data=None):
    """Of rows of a batch of 16, which every process sees as a whole in order."""
    dataset = ToyDataset(made.data, use_labels=made.cond)
    torch.manual_seed(0)
    method = build(made, dataset, CPU)
    data = dataset.images()[:16] if data is None else data
    labels = torch.zeros(16, 0) if labels is None else labels
    rng = BatchRNG(0, 0, rows.start, rows.stop)
    (phase,) = method.phases
    return method, phase.loss(Batch(data[rows.start : rows.stop], labels[rows.start : rows.stop], rng, 0))


def test_processes_draw_the_same_numbers():
    """Of an independent coupling; transport is over what a process sees."""
    made = toy_options(coupling="independent")
    _, whole = losses(made)
    parts = [losses(made, rows)[1].loss for rows in (range(8), range(8, 16))]
    torch.testing.assert_close(torch.cat(parts), whole.loss)


@pytest.mark.parametrize(
    "more",
    [
        {}, {"heads": 1}, {"heads": 1, "sigma": 0.0, "time_weight": "late"}, {"score_target": "x0"},
        {"score_target": "score"}, {"score_target": "log-density", "sigma": 0.0},
        {"coupling": "ot-labels", "cond": True},
        {"ot_method": "sinkhorn", "ot_reg": 5.0}, {"ot_method": "unbalanced", "ot_reg": 5.0},
        {"ot_method": "partial", "ot_reg": 5.0}, {"ot_replacement": True}, {"coupling": "independent"},
        {"residual": True},
    ],
)  # fmt: skip
def test_every_loss_trains(more):
    made = toy_options(**more)
    labels = torch.nn.functional.one_hot(torch.arange(16) % 2, 2).float() if made.cond else None
    method, out = losses(made, labels=labels)
    assert out.loss.shape == (16,)
    assert out.loss.isfinite().all()
    out.loss.sum().backward()
    net = method.modules["net"]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert net.gaussian_noise == (made.coupling == "independent")
    assert ("Loss/score" in out.terms) == (made.heads == 2)


def test_snapshots_keep_path_and_heads(tmp_path):
    method, _ = losses(toy_options(sigma=0.3, score_target="x0", residual=True))
    method.save(tmp_path / "a.pkl", {"ema": method.modules["net"]}, {})
    net = networks.load_network(tmp_path / "a.pkl")
    assert (net.bridge, net.num_heads, net.score_target, net.gaussian_noise, net.residual) == (
        0.3,
        2,
        "noise",
        False,
        True,
    )


def test_learning_rate_warms_up():
    made = toy_options(lr_rampup=16 * 10 / 1e6)
    method, _ = losses(made)
    (phase,) = method.phases
    assert [phase.lr(16 * i) for i in (0, 5, 10, 20)] == pytest.approx([0, 0.5e-3, 1e-3, 1e-3])
    optimizer = phase.optimizer(list(method.modules["net"].parameters()))
    assert type(optimizer) is torch.optim.Adam
    assert math.isclose(options().lr_rampup, 0.64)


def test_pictures(tmp_path):
    method, _ = losses(toy_options())
    method.preview(tmp_path / "points.png", {"ema": method.modules["net"].eval()})
    assert Path(tmp_path / "points.png").stat().st_size > 1000
    images = _Images(8, 1)
    made = options(preset="digits", num_blocks=1)
    method = build(made, images, CPU)
    method.preview(tmp_path / "grid.png", {"ema": method.modules["net"].eval()})
    assert Path(tmp_path / "grid.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_published_cifar10_network_takes_a_step():
    """At full size, of two images."""
    made = options(preset="cifar10", batch=2)
    torch.manual_seed(0)
    method = build(made, _Images(32), CPU)
    (phase,), net = method.phases, method.modules["net"]
    assert sum(p.numel() for p in net.parameters()) > 60e6
    optimizer = phase.optimizer(list(net.parameters()))
    before = [p.detach().clone() for p in net.parameters()]
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    phase.loss(Batch(images, torch.zeros(2, 0), BatchRNG(0, 0, 0, 2), 0)).loss.sum().backward()
    optimizer.step()
    assert all(p.isfinite().all() for p in net.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
