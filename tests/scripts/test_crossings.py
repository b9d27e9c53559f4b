"""Every family of published networks, in the container of the original, by every kind of few-step sampling."""

import shlex
import socket

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from pipelines import PIPELINES, TEXT, write
from published_files import FAMILIES, KL, edm_pickle, state_of, tokenizer

import generate
from networks.models.autoencoder import build_autoencoder
from networks.trunks.transformer import Transformer

SEARCH = "--num_warmup=2 --num_steps_tea=7"
CROSSINGS = {
    "ipndm": "--solver=ipndm --num_steps=6",
    "search": f"--solver=ipndm --num_steps=4 --dp {SEARCH}",
    "calibrated": f"--calibrate=3 {SEARCH}",
}
GUIDED = {
    "adm": "--guidance_type=cg --guidance_rate=2", "cin": "--guidance_type=cfg --guidance_rate=2",
    "sd": "--guidance_type=cfg --guidance_rate=3", "xl": "--guidance_type=cfg --guidance_rate=3",
}  # fmt: skip


def edm(folder):
    return f"--network={edm_pickle(folder / 'edm.pkl')}"


def file_of(family):
    """Command line of a family of `published_files`."""

    def make(folder):
        found = FAMILIES[family](folder)
        text = f"--network={found.path} --config={found.config_file()}"
        text += f" --classifier={found.classifier}" if found.classifier else ""
        return text + (f" --prompt='ab c' --tokenizer={tokenizer(folder / 'words')}" if family == "sd" else "")

    return make


def transformer(name, element_times=False, more=None):
    """Command line of a diffusion transformer on latents, with an autoencoder beside it."""

    def make(folder):
        size = {"patch_size": 2, "width": 32, "depth": 1, "num_heads": 2, "learn_sigma": True}
        state = state_of(Transformer(8, 4, 4, 10, element_times=element_times, **size))
        torch.save({"ema": {**state, **(more or {})}, "model": state}, folder / f"{name}-tiny.pt")
        torch.save({"state_dict": state_of(build_autoencoder("KLAutoencoder", **KL))}, folder / "vae.ckpt")
        (folder / "config.json").write_text('{"num_heads": 2}')
        return f"--network={folder}/{name}-tiny.pt --vae={folder}/vae.ckpt --config={folder}/config.json"

    return make


def pipeline(name):
    """Command line of a folder of diffusers."""

    def make(folder):
        pytest.importorskip("diffusers")
        return f"--network=diffusers:{write(folder, name)}" + (" --prompt=ab" if name in TEXT else "")

    return make


MAKERS = {
    "edm": edm,
    **{name: file_of(name) for name in FAMILIES},
    "dit": transformer("DiT"),
    "sit": transformer("SiT"),
    "repa": transformer("last", more={"projectors.0.0.weight": torch.zeros(2, 2)}),
    "combostoc": transformer("elements", element_times=True),
    **{f"diffusers {name}": pipeline(name) for name in PIPELINES if name not in ("learned variance", "sample")},
}
QUICK = {*FAMILIES, "edm", "dit", "diffusers sd3"}  # searched and calibrated in every run of the tests
CASES = [
    pytest.param(family, crossing, marks=[] if family in QUICK or crossing == "ipndm" else [pytest.mark.slow])
    for family in MAKERS
    for crossing in CROSSINGS
]


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    made = {}

    def get(family):
        if family not in made:
            if family == "sd":
                pytest.importorskip("transformers")
            made[family] = MAKERS[family](tmp_path_factory.mktemp("family"))
        return made[family]

    return get


@pytest.mark.parametrize(("family", "crossing"), CASES)
def test_crossings(family, crossing, command, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    network = command(family)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEWSTEP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    guided = GUIDED.get(family.removeprefix("diffusers "), "")
    text = f"{network} --seeds=0-2 --batch=2 --outdir=out {CROSSINGS[crossing]} {guided}"
    done = CliRunner().invoke(generate.main, shlex.split(text))
    assert done.exit_code == 0, done.output
    images = [np.asarray(Image.open(tmp_path / f"out/{seed:06d}.png")) for seed in range(3)]
    side = 8 if family in ("diffusers pixels", "diffusers classes") else 16
    assert all(image.shape == (side, side, 3) for image in images)
    assert all(image.std() > 1 for image in images)
    assert not np.array_equal(images[0], images[1])
    if family == "adm":
        assert "Classifier:" in done.output
    if guided and family != "adm":
        assert "conditional" in done.output
