"""Bits per dimension of a data set from the command line."""

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import analyze
import networks
from training.likelihood import image_likelihood


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    pixels = np.random.default_rng(0).normal(128, 25, (6, 4, 4)).clip(0, 255).astype(np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


class Gaussian(torch.nn.Module):
    """The exact velocity for pixels of deviation 0.2 around 0."""

    img_channels, img_resolution, label_dim, path, predicts, start = 1, 4, 0, "linear", "velocity", "exact"

    def forward(self, x, t, labels=None):
        t = torch.as_tensor(t).double().reshape(-1, 1, 1, 1)
        variance = (1 - t) ** 2 * 0.04 + t**2
        return x * (t - (1 - t) * 0.04) / variance


def test_normal_pixels_need_what_their_density_says(data):
    """The divergence of independent pixels is the same for all signs, so the figure is exact but for the solver."""
    found = image_likelihood(Gaussian(), str(data), rtol=1e-7, atol=1e-7)
    pixels = np.stack([np.asarray(Image.open(data / f"{i}.png")) for i in range(6)]) / 127.5 - 1
    # grey values spread over a step of 2 / 255: their mean square grows by a twelfth of its square, at most
    nats = 0.5 * (pixels**2).mean() / 0.04 + 0.5 * math.log(2 * math.pi * 0.04)
    assert found["bpd"] == pytest.approx(nats / math.log(2) + math.log2(127.5), abs=0.01)
    assert found["num"] == 6
    assert found["evaluations"] > 6


def test_neither_batch_nor_choice_matters(data):
    whole = image_likelihood(Gaussian(), str(data), solver="heun2", steps=20)
    split = image_likelihood(Gaussian(), str(data), solver="heun2", steps=20, batch=4)
    assert whole["bpd"] == pytest.approx(split["bpd"], abs=1e-12)
    few = image_likelihood(Gaussian(), str(data), solver="euler", steps=20, num=1)
    assert (few["num"], few["bpd_se"]) == (1, None)


def command(*args):
    return CliRunner().invoke(analyze.main, ["likelihood", "--device=cpu", *map(str, args)])


def test_the_command(data, tmp_path):
    net = networks.build(
        "EDMPrecond", img_resolution=4, img_channels=1, model_type="SongUNet", model_channels=8, channel_mult=[1],
        num_blocks=1, attn_resolutions=[],
    )  # fmt: skip
    networks.save_network(tmp_path / "net.pkl", net)
    out = command(
        f"--network={tmp_path / 'net.pkl'}", f"--data={data}", "--solver=euler", "--steps=4", f"--outdir={tmp_path}"
    )
    assert out.exit_code == 0, out.output
    result = json.loads((tmp_path / "likelihood.json").read_text())
    assert f"{result['bpd']:.4f} +- " in out.output
    assert math.isfinite(result["bpd"])
    for wrong, message in (
        (["--solver=dopri5", "--steps=4"], "chooses its steps itself"), (["--solver=ab", "--steps=4"], "cannot follow"),
    ):  # fmt: skip
        result = command(f"--network={tmp_path / 'net.pkl'}", f"--data={data}", *wrong)
        assert result.exit_code in (1, 2)
        assert message in result.output


def test_other_images_are_refused(data):
    net = Gaussian()
    net.img_resolution = 8
    with pytest.raises(ValueError, match=r"are 1x4x4 .* samples of this network 1x8x8"):
        image_likelihood(net, str(data))
    net = Gaussian()
    net.label_dim = 3
    with pytest.raises(ValueError, match="the network has 3 classes"):
        image_likelihood(net, str(data))
