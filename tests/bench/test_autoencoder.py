"""The small autoencoder of photographs learns, and is read as those of pipelines are."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

from networks.load import load_autoencoder

pytest.importorskip("diffusers")


@pytest.mark.slow
def test_a_short_training(tmp_path):
    from bench.autoencoder import main

    psnr = []
    for iterations in (40, 200):
        outdir = tmp_path / str(iterations)
        result = CliRunner().invoke(main, [f"--outdir={outdir}", f"--iterations={iterations}"])
        assert result.exit_code == 0, result.output
        psnr.append(float(result.output.split("PSNR ")[1].split(" dB")[0]))
        found = load_autoencoder(f"diffusers:{outdir / 'vae'}")
        with torch.inference_mode():
            assert found.stage.moments(torch.zeros(1, 3, 64, 64)).shape == (1, 8, 16, 16)
    assert psnr[1] > psnr[0] + 2
    assert (outdir / "reconstructions.png").exists()
