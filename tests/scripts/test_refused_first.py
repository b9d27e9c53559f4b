"""An option that makes no sense is refused before anything is fetched for its sake, or for that of the command."""

import shlex

import pytest
import torch
from click.testing import CliRunner
from golden_cases import fill_weights
from published_files import cm, state_of

import fid
import generate
import networks
from networks.trunks.transformer import Transformer
from torch_utils import downloads

OTHER = "http://127.0.0.1:9/other.pt"
CASES = [
    # of a file that is at hand: what it has no use for
    (f"--network=net.pkl --vae={OTHER}", "leave out the configuration, the classifier and the vae"),
    ("--network=net.pkl --vae=sd-v1-5", "leave out the configuration, the classifier and the vae"),
    (f"--network=net.pkl --classifier={OTHER}", "leave out the configuration, the classifier and the vae"),
    (f"--network=edm_tiny_ema.pt --config=edm_tiny_ema.json --vae={OTHER}", "transformers on latents"),
    (f"--network=edm_tiny_ema.pt --config=edm_tiny_ema.json --classifier={OTHER}", "no classifier goes with"),
    (f"--network=dit-pixels.pt --config=heads.json --vae={OTHER}", "makes images, not latents"),
    (f"--network=dit-pixels.pt --config=heads.json --classifier={OTHER}", "a classifier guides models"),
    # of a published name
    ("--network=sd-v1-5 --vae=ffhq_ldm", "needs no autoencoder"),
    (f"--network=cifar10 --classifier={OTHER}", "needs no classifier"),
    ("--network=cifar10 --config=heads.json", "needs no configuration"),
    # of any network
    ("--network=cifar10 --solver=magic", "magic"),
    ("--network=cifar10 --steps=3 --num-steps=4", "give one of them"),
    ("--network=cifar10 --S_min=1", "give --S_churn as well"),
    ("--network=cifar10 --N=3 --coordinates=sigma", "with --coordinates=sigma give --num-steps"),
    ("--network=imagenet64 --class=1 --guidance-type=uncond", "leave --class out"),
    ("--network=imagenet64 --class=1 --labels=a.npy", "leave one of them out"),
    ("--network=imagenet64 --labels=a.npy --guidance-type=uncond", "leave --labels out"),
    ("--network=cifar10 --guidance-network=ffhq", "give --guidance-rate with it"),
    ("--network=cifar10 --guidance-network=ffhq --guidance-rate=2 --guidance-type=cfg", "give --guidance-rate with it"),
    ("--network=net.pkl --unsafe-pickle --vae=sd-v1-5", "leave out --vae"),
]  # fmt: skip
FID = [
    ("", "neither is given"),
    ("--images=a --network=cifar10", "both are given"),
    ("--images=a --vae=sd-v1-5", "it goes with --network only"),
    ("--network=cifar10 --seeds=0-3 --num=9", "leave one of them out"),
    ("--network=cifar10 --solver=magic", "magic"),
    ("--network=imagenet64 --class=1 --guidance-type=uncond", "leave --class out"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    here = tmp_path_factory.mktemp("first")
    config = {"model_type": "SongUNet", "model_channels": 8, "channel_mult": [1], "num_blocks": 1}
    net = networks.build("EDMPrecond", img_resolution=8, img_channels=3, attn_resolutions=[], **config)
    networks.save_network(here / "net.pkl", fill_weights(net))
    cm(here).config_file()
    size = {"patch_size": 2, "width": 32, "depth": 1, "num_heads": 2, "learn_sigma": True}
    torch.save(state_of(Transformer(8, 3, 4, 10, **size)), here / "dit-pixels.pt")
    (here / "heads.json").write_text('{"num_heads": 2}')
    return here


@pytest.fixture(autouse=True)
def _nothing_is_fetched(monkeypatch, folder, tmp_path):
    def refuse(url, *_, **__):
        raise AssertionError(f"{url} was fetched")

    monkeypatch.setattr(downloads, "_fetch", refuse)
    monkeypatch.setenv("FEWSTEP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("FEWSTEP_INCEPTION", raising=False)
    monkeypatch.chdir(folder)


def refused(command, text, words):
    done = CliRunner().invoke(command, shlex.split(text))
    assert isinstance(done.exception, SystemExit), repr(done.exception)
    assert done.exit_code in (1, 2)
    assert done.output.count("Error:") == 1, done.output
    assert words in " ".join(done.output.split()), done.output


@pytest.mark.parametrize(("text", "words"), CASES)
def test_generate(text, words):
    refused(generate.main, f"{text} --seeds=0-1 --outdir=out --device=cpu", words)


@pytest.mark.parametrize(("text", "words"), FID)
def test_fid(text, words):
    refused(fid.main, f"calc {text} --ref=ref.npz --device=cpu", words)
