"""Sharing: a dill file in an interpreter without our code, safetensors, and the hub by a stand-in."""

import json
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from published_files import adm

import networks
from networks import share
from torch_utils import hub

TINY = {"model_channels": 32, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}


@pytest.fixture
def net(tmp_path):
    torch.manual_seed(0)
    made = networks.build("EDMPrecond", img_resolution=8, img_channels=3, label_dim=2, model_type="SongUNet", **TINY)
    networks.save_network(tmp_path / "net.pkl", made)
    return networks.load_network(tmp_path / "net.pkl")


OPEN = """
import sys, dill, torch
net = dill.load(open(sys.argv[1], "rb"))
ours = [m for m in sys.modules if m.split(".")[0] in ("networks", "samplers", "torch_utils", "training")]
assert not ours, ours
x = torch.load(sys.argv[2], weights_only=True)
label = torch.eye(net.label_dim)[:1] if net.label_dim else None
levels = [5.0, 1.0, 0.2]
out = {"D": net(x, 1.0, label), "class": type(net).__name__}
state = x * levels[0]
for now, then in zip(levels, levels[1:]):
    state = state + (then - now) * (state - net(state, torch.tensor(now), label)) / now
out["sample"] = state
torch.save(out, sys.argv[3])
"""


def opened_elsewhere(path, tmp_path, x):
    """What a fresh interpreter without this project makes of a dill file."""
    folder = tmp_path / "elsewhere"
    folder.mkdir(exist_ok=True)
    torch.save(x, folder / "x.pt")
    command = [sys.executable, "-I", "-c", OPEN, str(path), "x.pt", "out.pt"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "out.pt", weights_only=True)


def test_a_dill_file_needs_none_of_our_code(net, tmp_path):
    out = CliRunner().invoke(
        share.main, ["export", str(tmp_path / "net.pkl"), str(tmp_path / "x.dill"), "--format=dill"]
    )
    assert out.exit_code == 0, out.output
    x = torch.randn(2, 3, 8, 8)
    found = opened_elsewhere(tmp_path / "x.dill", tmp_path, x)
    assert found["class"] == "EDMPrecond"
    torch.testing.assert_close(found["D"], net(x, 1.0, torch.eye(2)[:1]))
    assert torch.isfinite(found["sample"]).all()


def test_so_does_one_with_nested_parts(tmp_path):
    made = adm(tmp_path)
    net = networks.load_network(made.path, config=made.config, classifier=made.classifier)
    networks.save_network(tmp_path / "adm.safetensors", net)
    share.export(tmp_path / "adm.safetensors", tmp_path / "x.dill", "dill")
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(opened_elsewhere(tmp_path / "x.dill", tmp_path, x)["D"], net(x, 1.0, torch.eye(10)[:1]))


def test_our_loaders_refuse_it(net, tmp_path):
    share.export(tmp_path / "net.pkl", tmp_path / "x.pkl", "dill")
    with pytest.raises(ValueError, match=r"x\.pkl is refused.*harmless"):
        networks.load_network(tmp_path / "x.pkl")


def test_generate_opens_it_where_told_to(net, tmp_path, monkeypatch):
    import generate

    monkeypatch.chdir(tmp_path)
    share.export("net.pkl", "x.dill", "dill")
    common = ["--seeds=0,1", "--solver=euler", "--num-steps=3"]
    refused = CliRunner().invoke(generate.main, ["--network=x.dill", "--npz=x.npz", *common])
    assert refused.exit_code == 1
    done = CliRunner().invoke(generate.main, ["--network=x.dill", "--unsafe-pickle", "--npz=x.npz", *common])
    assert done.exit_code == 0, done.output
    assert "runs the code" in done.output
    assert CliRunner().invoke(generate.main, ["--network=net.pkl", "--npz=y.npz", *common]).exit_code == 0
    with np.load("x.npz") as x, np.load("y.npz") as y:
        assert np.array_equal(x["images"], y["images"])
    torch.save([1], "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt cannot be opened|not a network"):
        share.load_unsafe("list.pt")


@pytest.mark.parametrize("out", ["net", "net.safetensors"])
def test_no_export_takes_the_place_of_its_source(net, tmp_path, out):
    networks.save_network(tmp_path / "net.safetensors", net)
    before = (tmp_path / "net.safetensors").read_bytes()
    result = CliRunner().invoke(share.main, ["export", str(tmp_path / "net.safetensors"), str(tmp_path / out)])
    assert result.exit_code == 1
    assert "would be replaced" in result.output
    assert (tmp_path / "net.safetensors").read_bytes() == before


def test_safetensors(net, tmp_path):
    path = share.export(tmp_path / "net.pkl", tmp_path / "x", "safetensors")
    assert path.name == "x.safetensors"
    again = networks.load_network(path)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items())


# The hub.


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("hf:a/b", ("a/b", "model.safetensors", None)),
        ("hf:a/b/c/d.pkl", ("a/b", "c/d.pkl", None)),
        ("hf:a/b@v1", ("a/b", "model.safetensors", "v1")),
        ("hf:a/b/x.json@refs/pr/1", ("a/b", "x.json", "refs/pr/1")),
    ],
)
def test_names(name, parts):
    assert hub.parse_hub(name) == parts


@pytest.mark.parametrize("name", ["hf:a", "hf:a/../b", "hf:a/b/../../c", "a/b", "hf:a b/c"])
def test_names_that_are_none(name):
    with pytest.raises(ValueError, match="names nothing on the hub"):
        hub.parse_hub(name)


@pytest.fixture
def place(monkeypatch, tmp_path):
    """A hub in a folder."""
    import shutil

    huggingface_hub = pytest.importorskip("huggingface_hub")
    folder = tmp_path / "hub"

    class Api:
        def create_repo(self, repo, private, exist_ok):
            (folder / repo).mkdir(parents=True, exist_ok=True)

        def upload_folder(self, repo_id, folder_path, revision, commit_message):
            shutil.copytree(folder_path, folder / repo_id, dirs_exist_ok=True)

    def fetch(repo_id, filename, revision, local_files_only):
        path = folder / repo_id / filename
        if not path.exists():
            raise FileNotFoundError(f"no {filename}\nthere")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    return folder


def test_push_and_pull(place, net, tmp_path):
    (tmp_path / "s.json").write_text('{"a": 1}')
    arguments = ["push", str(tmp_path / "net.pkl"), "hf:me/net", f"--schedule={tmp_path / 's.json'}"]
    done = CliRunner().invoke(share.main, arguments)
    assert done.exit_code == 0, done.output
    assert {p.name for p in (place / "me/net").iterdir()} == {"README.md", "config.json", "model.safetensors", "s.json"}
    assert json.loads((place / "me/net/config.json").read_text())["class_name"] == "EDMPrecond"
    assert "pytorch_model_hub_mixin" in (place / "me/net/README.md").read_text()
    for source in ("hf:me/net", "hf:me/net@main"):
        again = networks.load_network(source)
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items())
    assert CliRunner().invoke(share.main, ["pull", "hf:me/net/s.json", str(tmp_path / "t.json")]).exit_code == 0
    assert json.loads((tmp_path / "t.json").read_text()) == {"a": 1}
    with pytest.raises(ValueError, match=r"cannot be had from the hub.*no x\.pkl there") as caught:
        networks.load_network("hf:me/net/x.pkl")
    assert "\n" not in str(caught.value)


def test_offline(monkeypatch, net, tmp_path):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))

    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(ValueError, match="cannot be had from the hub"):
        networks.load_network("hf:me/absent")
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE forbids"):
        share.push(tmp_path / "net.pkl", "hf:me/net")
