"""Toys: their distributions against golden draws, the data set's interface, and text that is not understood."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from golden_cases import cases
from PIL import Image

import train
from torch_utils.wasserstein import wasserstein
from training.data.batches import Batches
from training.data.toys import TOYS, ToyDataset, draw, is_toy
from training.pictures.preview import shown_part


@pytest.mark.slow
@pytest.mark.parametrize("case", cases("idff", "toy_draws"))
def test_golden_distribution(case):
    """Distance of stored draws to own ones, in units of the distance between two own sets."""
    params, expect = case.spec["params"], case.spec["expect"]
    stored = case.shared(expect["draws"]["array"])
    assert len(stored) == params["n"]
    own = [draw(params["target"], params["n"], seed)[0] for seed in range(params["seeds"])]
    other = [draw(params["target"], params["n"], 100 + seed)[0] for seed in range(params["seeds"])]
    to_stored = np.mean([wasserstein(stored, points) for points in own])
    floor = np.mean([wasserstein(a, b) for a, b in zip(own, other, strict=True)])
    assert to_stored / floor <= expect["draws"]["tolerance"]["w2_ratio_max"]
    if params["centres"]:
        k = torch.arange(params["centres"]["count"]) * (2 * torch.pi / params["centres"]["count"])
        centres = params["centres"]["radius"] * torch.stack([k.cos(), k.sin()], 1)
        rms = torch.cdist(torch.cat(own), centres).min(1).values.square().mean().sqrt()
        want = expect["nearest_centre_rms"]
        assert abs(float(rms) - want["value"]) <= want["tolerance"]["atol"]


@pytest.mark.parametrize("name", TOYS)
def test_draws(name):
    points, labels = draw(name, 1001, seed=3)
    assert points.shape == (1001, 2)
    assert points.dtype == torch.float32
    assert points.isfinite().all()
    assert len(labels) in (0, 1001)
    torch.testing.assert_close(draw(name, 1001, seed=3)[0], points, rtol=0, atol=0)
    assert not torch.equal(draw(name, 1001, seed=4)[0], points)


def test_classes_say_where_a_point_lies():
    points, labels = draw("two_gaussians", 20_000)
    for k, x in ((0, -8.0), (1, 8.0)):
        mode = points[labels == k].double()
        assert len(mode) == 10_000
        torch.testing.assert_close(mode.mean(0), torch.tensor([x, 8.0], dtype=torch.float64), atol=0.1, rtol=0)
        torch.testing.assert_close(mode.var(0), torch.tensor([3.0, 0.1], dtype=torch.float64), atol=0, rtol=0.1)
    points, labels = draw("8gaussians", 4000)
    angle = torch.atan2(points[:, 1], points[:, 0]) / (torch.pi / 4)
    assert (((angle - labels + 4) % 8 - 4).abs() < 0.5).float().mean() > 0.99


def test_data_set():
    dataset = ToyDataset("toy:moons:size=50:seed=7", use_labels=True)
    assert is_toy("toy:moons")
    assert not is_toy("datasets/toy.zip")
    assert (dataset.name, len(dataset), dataset.num_images, dataset.label_dim) == ("moons", 50, 50, 2)
    assert (dataset.num_channels, dataset.resolution, tuple(dataset.image_shape)) == (2, 1, (2, 1, 1))
    torch.testing.assert_close(dataset.images().flatten(1), draw("moons", 50, 7)[0])
    point, label = dataset[49]
    np.testing.assert_array_equal(point, dataset.images()[49])
    np.testing.assert_array_equal(label, [0, 1])
    assert not ToyDataset("toy:moons:size=5").has_labels
    assert not ToyDataset("toy:checkerboard:size=5", use_labels=True).has_labels
    assert len(ToyDataset("toy:moons")) == 100_000


@pytest.mark.parametrize("cache", [True, False])
def test_batches(cache):
    dataset = ToyDataset("toy:pinwheel:size=30", use_labels=True)
    batches = Batches(dataset, 10, cache=cache)
    try:
        seen = [batches.next() for _ in range(3)]
    finally:
        batches.close()
    points, labels = (torch.cat(t) for t in zip(*seen, strict=True))
    assert points.dtype == torch.float32
    assert labels.shape == (30, 5)
    known = dataset.images().flatten(1)
    for point, label in zip(points.flatten(1), labels, strict=True):  # every point is in the data, with its class
        index = int((known == point).all(1).nonzero())
        assert label.argmax() == dataset.targets()[index]


def test_training_on_a_toy(tmp_path):
    """The command opens the toy by name and draws its points."""
    args = [f"--outdir={tmp_path}", "--nosubdir", "--data=toy:moons:size=500", "--device=cpu", "--seed=0"]
    more = ["--iterations=20", "--batch=64", "--num-samples=8", "--N=2"]
    result = CliRunner().invoke(train.main, ["curvature", *args, *more], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "samples-000002.png") as picture:
        assert picture.width > picture.height  # four panels


def test_spread():
    dataset = ToyDataset("toy:two_gaussians:size=20000")
    assert dataset.std == pytest.approx(((64 + 3 + 64 + 0.1) / 2) ** 0.5, rel=0.01)
    assert len(str(dataset.std)) <= 5


def test_a_part_shows_the_whole():
    """Moons come in the order of their arcs: the first points would be one end of one arc."""
    data = ToyDataset("toy:moons:size=5000").images()
    part = shown_part(data, 500)
    assert part.shape == (500, 2, 1, 1)
    torch.testing.assert_close(part.mean(0), data.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(part.std(0), data.std(0), atol=0.1, rtol=0)
    assert len(shown_part(data[:7], 500)) == 7


def test_black_pixels(tmp_path):
    pixels = np.full((11, 21, 3), 255, np.uint8)
    pixels[0, 20] = 0  # top right
    pixels[10, 0] = 0  # bottom left
    pixels[5, 5] = (1, 0, 0)  # dark, not black
    Image.fromarray(pixels).save(tmp_path / "tree.png")
    dataset = ToyDataset(f"toy:{tmp_path}/tree.png:size=40")
    assert {tuple(p) for p in dataset.images().flatten(1).tolist()} == {(1.0, 1.0), (0.0, 0.0)}
    assert dataset.name == "tree"
    Image.fromarray(np.full((4, 4, 3), 9, np.uint8)).save(tmp_path / "grey.png")
    with pytest.raises(ValueError, match="no black pixel"):
        ToyDataset(f"toy:{tmp_path}/grey.png")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("toy:moos", {}, "no toy 'moos': choose from 8gaussians"),
        ("toy:moons:20", {}, "'20' in --data=toy:moons:20 is not understood"),
        ("toy:moons:size=-3", {}, "not understood"),
        ("toy:moons:size=0", {}, "size must be 1 or more"),
        ("toy:nowhere.png", {}, "no picture nowhere.png"),
        ("toy:moons", {"xflip": True}, "leave it out"),
    ],
)
def test_bad_input(text, options, message):
    with pytest.raises(ValueError, match=message):
        ToyDataset(text, **options)
