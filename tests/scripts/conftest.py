"""Fixtures of the tests of generate.py: two networks, and the command line in an empty folder."""

import shlex

import pytest
import torch
from click.testing import CliRunner

import generate
import networks


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    """A conditional colour network and an unconditional grey one, 8x8, with weights that make varied images."""
    folder = tmp_path_factory.mktemp("snapshots")
    torch.manual_seed(0)
    for name, label_dim, channels in (("cond", 4, 3), ("grey", 0, 1)):
        net = networks.build(
            "EDMPrecond", img_resolution=8, img_channels=channels, label_dim=label_dim, model_type="SongUNet",
            model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[4], dropout=0.0, label_dropout=0.1,
        )  # fmt: skip
        for p in net.parameters():
            if p.ndim > 1:
                torch.nn.init.normal_(p, std=p[0].numel() ** -0.5)
        networks.save_network(folder / f"{name}.pkl", net)
    return folder


@pytest.fixture
def run(snapshots, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def invoke(text, network="cond"):
        args = ["--device=cpu", *([f"--network={snapshots / network}.pkl"] if network else []), *shlex.split(text)]
        return CliRunner().invoke(generate.main, args)

    return invoke
