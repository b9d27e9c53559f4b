"""`train_trajectory.py` on cached latents: of our own denoisers and published ones, and what does not go together."""

import shlex

import numpy as np
import pytest
import torch
from cli_results import ok, refused
from click.testing import CliRunner
from latent_runs import decoded, encode, images_of, latents_in, run_train, without_autoencoder
from PIL import Image
from published_files import ldm

import networks
import train_trajectory
from networks.adversary.backbones import build_backbone
from training.methods import trajectory_judge

COEFFICIENTS = (
    "--coef-channels=8 --coef-mult=1 --coef-blocks=1 --basis-num=2 --num-steps=3 --batch=50 --batch-edm=4 "
    "--batch-disc=4 --kimg=0.1 --tick=0.1 --seed=1 --nosubdir --device=cpu"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return latents_in(tmp_path_factory.mktemp("latents"))


def optimise(root, network, out, more):
    text = f"--network={network} --data={root}/latents.zip --outdir={out} {COEFFICIENTS} {more}"
    return CliRunner().invoke(train_trajectory.main, shlex.split(text))


@pytest.fixture(scope="module")
def denoiser(made, tmp_path_factory):
    """A denoiser of the latents by train.py edm."""
    out = tmp_path_factory.mktemp("v")
    ok(run_train(made, out, "edm", "--nosubdir --duration=0.001 --batch=50"))
    return max(out.glob("network-snapshot-*.pkl"))


@pytest.mark.parametrize("backbones", ["light", "light,tf_efficientnet_lite0"])
def test_trajectories_of_latents(backbones, made, denoiser, tmp_path, monkeypatch):
    """D sees latents through `light`, and through features of images what is decoded of them."""
    monkeypatch.chdir(tmp_path)
    seen = set()

    def stand_in(name, *, weights, **shape):
        seen.add((shape["img_channels"], shape["img_resolution"]))
        backbone = build_backbone("light", **shape)
        backbone.name = name
        return backbone

    monkeypatch.setattr(trajectory_judge, "build_backbone", stand_in)
    ok(optimise(made, denoiser, "runs", f"--cond=1 --backbones={backbones}"))
    assert seen == {(4, 8) if backbones == "light" else (3, 16)}
    snapshot = "runs/network-snapshot-000000.pkl"
    moved = networks.load_network(snapshot)
    before = networks.load_network(denoiser)
    assert any(not torch.equal(a, b) for a, b in zip(moved.V.parameters(), before.parameters(), strict=True))
    for name in ("samples", "plain"):
        assert np.asarray(Image.open(f"runs/{name}-000000.png")).shape[2] == 3
    images, latents, _ = images_of(snapshot)
    assert np.abs(images - decoded(made, latents)).max() <= 1


def test_trajectories_of_published_latent_models(made, tmp_path, monkeypatch):
    """A latent model of others on latents of its own autoencoder: its U-Net learns, and nothing else of it."""
    monkeypatch.chdir(tmp_path)
    found = ldm(tmp_path)
    networks.save_network("ldm.safetensors", networks.load_network(found.path, config=found.config))
    ok(encode(made, tmp_path / "latents.zip", "ldm.safetensors"))
    refused(optimise(made, "ldm.safetensors", "a", "--backbones=light"), "latents of another autoencoder")
    ok(optimise(tmp_path, "ldm.safetensors", "b", "--backbones=light --level-draw=uniform --kimg=0.05 --tick=0.05"))
    before, after = networks.load_network("ldm.safetensors"), networks.load_network("b/network-snapshot-000000.pkl").V
    changed = {k for k, v in before.state_dict().items() if not torch.equal(v, after.state_dict()[k])}
    assert changed
    assert all(name.startswith("model.") for name in changed)
    images, latents, _ = images_of("b/network-snapshot-000000.pkl")
    shown = (before.decode(latents) * 127.5 + 128).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy().astype(int)
    assert np.abs(images - shown).max() <= 1


def test_what_trajectories_refuse(made, denoiser, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    without_autoencoder(made / "latents.zip", "latents.zip")
    refused(optimise(tmp_path, denoiser, "a", "--cond=1"), "are features of images, and the autoencoder", "--decoder")
    pixels = networks.build("EDMPrecond", img_resolution=8, img_channels=4, model_type="SongUNet", model_channels=8,
                            channel_mult=[1], num_blocks=1, attn_resolutions=[])  # fmt: skip
    networks.save_network("pixels.pkl", pixels)
    refused(
        optimise(made, "pixels.pkl", "a", "--backbones=light"), "--network=pixels.pkl makes images, and the data set"
    )
    assert not list(tmp_path.glob("a/*"))
