"""Losses over time from the command line, against what they are of a Gaussian."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import analyze
import networks
from networks.models.decoder import LatentFacts
from torch_utils.images import from_uint8
from training.data.image_dataset import ImageDataset
from training.time_losses import losses_over_time

DEVIATION = 0.4


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    pixels = (np.random.default_rng(0).normal(0, DEVIATION, (300, 4, 4)) * 127.5 + 127.5).clip(0, 255).round()
    for i, image in enumerate(pixels.astype(np.uint8)):
        Image.fromarray(image).save(folder / f"{i:03}.png")
    return folder


class Gaussian(torch.nn.Module):
    """The exact velocity, or denoiser, for independent pixels of one deviation."""

    img_channels, img_resolution, label_dim = 1, 4, 0

    def __init__(self, flow=True):
        super().__init__()
        if flow:
            self.path, self.predicts, self.start = "linear", "velocity", "exact"

    def forward(self, x, t, labels=None):
        t = torch.as_tensor(t).double()
        if not hasattr(self, "path"):
            return x * DEVIATION**2 / (DEVIATION**2 + t**2)
        return x * (t - (1 - t) * DEVIATION**2) / ((1 - t) ** 2 * DEVIATION**2 + t**2)


@pytest.mark.parametrize("flow", [True, False])
def test_losses_of_a_gaussian(data, flow):
    """What is left of the velocity, the variance of noise - data given x_t: DEVIATION^2 / variance of x_t."""
    found = losses_over_time(Gaussian(flow), str(data), times=6)
    times, losses = torch.tensor(found.pairs, dtype=torch.float64).T
    assert found.path == "linear"
    assert (times[0], times[-1]) == ((1, 0) if flow else (pytest.approx(80 / 81), pytest.approx(0.002 / 1.002)))
    expected = DEVIATION**2 / ((1 - times) ** 2 * DEVIATION**2 + times**2)
    # five standard errors of a mean square of 4,800 numbers, and 2 % for pixels that are cut off at their ends
    assert ((losses / expected - 1).abs() < 5 * (2 / 4800) ** 0.5 + 0.02).all()
    split = losses_over_time(Gaussian(flow), str(data), times=6, batch=7)
    np.testing.assert_allclose(np.array(split.pairs), np.array(found.pairs), rtol=1e-12)
    assert losses_over_time(Gaussian(flow), str(data), times=6, num=50).pairs != found.pairs


def test_latents_as_images(tmp_path, data):
    """Latents that are the pixels themselves have their losses, also of some of them."""
    images = from_uint8(ImageDataset(data).images())
    facts = LatentFacts("latents", (1, 4, 4), 1.0, 32)
    with zipfile.ZipFile(tmp_path / "latents.zip", "w") as archive:
        for i, image in enumerate(images.numpy()):
            buffer = io.BytesIO()
            np.save(buffer, image)
            archive.writestr(f"{i:03}.npy", buffer.getvalue())
        archive.writestr("dataset.json", json.dumps({"labels": None, "latents": facts.record()}))
    for num in (None, 50):
        of_images, of_latents = (
            losses_over_time(Gaussian(), str(source), times=3, num=num) for source in (data, tmp_path / "latents.zip")
        )
        assert of_latents == of_images


def test_command(tmp_path, data):
    net = networks.build(
        "InterpolantNetwork", img_resolution=4, img_channels=1, width=8, depth=1, num_heads=1, predicts="noise"
    )
    networks.save_network(tmp_path / "net.pkl", net, {})
    arguments = ["losses", f"--network={tmp_path / 'net.pkl'}", f"--outdir={tmp_path / 'out'}", "--times=3"]
    result = CliRunner().invoke(analyze.main, [*arguments, f"--data={data}", "--num=9", "--device=cpu"])
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "out/losses.json").read_text())
    assert (content["path"], content["provenance"]["num"], content["times"][0]) == ("linear", 9, 0.999)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "large.png")
    (tmp_path / "large").mkdir()
    (tmp_path / "large.png").rename(tmp_path / "large/0.png")
    result = CliRunner().invoke(analyze.main, [*arguments, f"--data={tmp_path / 'large'}", "--device=cpu"])
    assert result.exit_code == 1
    assert "give its own kind of data" in result.output
