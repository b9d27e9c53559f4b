"""Commands that use a network say when it comes from the middle of a training run."""

import shlex

import numpy as np
import pytest
from click.testing import CliRunner

import analyze
import fid
import generate
import networks

KWARGS = {
    "img_resolution": 8, "img_channels": 1, "label_dim": 0, "model_type": "SongUNet", "model_channels": 8,
    "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [],
}  # fmt: skip
COMMANDS = [
    (generate.main, "--network=net.pkl --seeds=0-1 --steps=2 --npz=a.npz"),
    (fid.main, "calc --network=net.pkl --num=2 --steps=2 --ref=ref.npz --features=pixels"),
    (analyze.main, "curvature net.pkl --N=2 --num=2 --outdir=out"),
    (analyze.main, "compare --network=net.pkl --num=2 --nfe=3 --solvers=euler --teacher-steps=3 --outdir=out"),
]


@pytest.mark.parametrize(("facts", "said"), [
    ({"nimg": 32_000, "total_nimg": 90_000}, True), ({"nimg": 90_000, "total_nimg": 90_000}, False), ({}, False),
])  # fmt: skip
@pytest.mark.parametrize(("main", "text"), COMMANDS, ids=[text.split()[0] for _, text in COMMANDS])
def test_a_network_from_the_middle_of_a_run(tmp_path, monkeypatch, main, text, facts, said):
    monkeypatch.chdir(tmp_path)
    networks.save_network("net.pkl", networks.build("EDMPrecond", **KWARGS), facts)
    np.savez("ref.npz", mu=np.zeros(64), sigma=np.eye(64))
    result = CliRunner().invoke(main, shlex.split(text))
    assert result.exit_code == 0, result.output
    assert result.stderr.count("saved after 32 of 90 kimg") == said
    assert "kimg" not in result.stdout
