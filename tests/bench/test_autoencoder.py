"""The small autoencoder of photographs is read as those of pipelines are, and its latents have a deviation of 1."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

from networks.load import load_autoencoder
from torch_utils.images import from_uint8
from training.data.image_dataset import ImageDataset, decoded

pytest.importorskip("diffusers")


@pytest.mark.slow
def test_a_short_training(tmp_path):
    from bench.autoencoder import main

    result = CliRunner().invoke(main, [f"--outdir={tmp_path}", "--iterations=40"])
    assert result.exit_code == 0, result.output
    assert "128 unseen crops: PSNR" in result.output
    assert (tmp_path / "reconstructions.png").exists()
    found = load_autoencoder(f"diffusers:{tmp_path / 'vae'}")
    dataset = ImageDataset(str(tmp_path / "photos64-train.zip"))
    (crops,) = decoded(dataset, range(0, len(dataset), 100), 100)
    with torch.inference_mode():
        mean = found.stage.moments(from_uint8(crops)).chunk(2, dim=1)[0]
    assert mean.shape == (len(crops), 4, 16, 16)
    assert (found.scale_factor * mean).std().item() == pytest.approx(1, abs=0.2)  # of other crops than those measured
