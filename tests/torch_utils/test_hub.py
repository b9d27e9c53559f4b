"""What a repository on the hub can hold that it should not: links, names, code, configurations, other bytes."""

import importlib
import json
import os
import socket
import sys

import hostile
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from golden_cases import fill_weights

import networks
from networks import share
from torch_utils.hub import hub_file, parse_hub

pytest.importorskip("huggingface_hub")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TINY = {"model_type": "SongUNet", "model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The cache of huggingface_hub, offline; put(name, bytes) adds a file of the repository me/net as that does."""

    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(importlib.import_module("huggingface_hub.constants"), "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "hub/models--me--net"
    for folder in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (root / folder).mkdir(parents=True)
    (root / "refs/main").write_text(COMMIT)

    def put(name, content):
        blob, link = root / f"blobs/{len(list((root / 'blobs').iterdir()))}", root / f"snapshots/{COMMIT}/{name}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        if isinstance(content, bytes):
            blob.write_bytes(content)
            link.symlink_to(os.path.relpath(blob, link.parent))
        else:
            link.symlink_to(content)
        return link

    return put


@pytest.fixture
def weights(tmp_path):
    """A file of ours, as `networks.share push` writes it."""
    net = fill_weights(networks.build("EDMPrecond", img_resolution=8, img_channels=3, **TINY))
    networks.save_network(tmp_path / "net.safetensors", net)
    return (tmp_path / "net.safetensors").read_bytes()


def refused(source, *pieces):
    with hostile.bounded(5), pytest.raises(ValueError, match=r"\S") as caught:
        networks.load_network(source)
    message = str(caught.value)
    assert message.isprintable()
    for piece in pieces:
        assert piece in message, message
    assert not os.path.exists(hostile.MARKER)


@pytest.mark.parametrize(
    "name",
    [
        "hf:../net", "hf:me/..", "hf:./net", "hf:me/net/../../x", "hf:me/net//etc/passwd", "hf:me/net/a//b",
        "hf:me/net/.", "hf:me/net/a/..", "hf:me/net@..", "hf:me/net@../../x", "hf:me/net@a/../b", "hf:me/net@",
        "hf:me/net/x@/etc", "hf:me/net/a%2f..", "hf:me/net/a\\b", "hf:me/net/\x00", "hf:me/net/a\n", "hf:",
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere(name):
    with pytest.raises(ValueError, match="names nothing on the hub"):
        parse_hub(name)


def test_dots_inside_of_names_are_fine():
    assert parse_hub("hf:me/net.v1/a..b/.x@refs/pr/1") == ("me/net.v1", "a..b/.x", "refs/pr/1")


def test_files_are_found_where_the_hub_keeps_them(hub, weights):
    link = hub("model.safetensors", weights)
    assert hub_file("hf:me/net") == link
    assert networks.load_network("hf:me/net").img_resolution == 8
    deep = hub("a/b/net.safetensors", weights)
    assert hub_file("hf:me/net/a/b/net.safetensors@main") == deep


@pytest.mark.parametrize("name", ["model.safetensors", "a/net.safetensors"])
def test_links_out_of_the_cache(name, hub, weights, tmp_path):
    hub(name, tmp_path / "net.safetensors")
    source = "hf:me/net" if name == "model.safetensors" else f"hf:me/net/{name}"
    refused(source, "is a link out of", str(tmp_path / "net.safetensors"))
    done = CliRunner().invoke(share.main, ["pull", source, "copy.safetensors"])
    assert done.exit_code == 1
    assert not (tmp_path / "copy.safetensors").exists()
    other = tmp_path / "hub/models--you--net/blobs/0"
    other.parent.mkdir(parents=True)
    other.write_bytes(weights)
    hub(name, other)
    refused(source, "is a link out of", "models--you--net")


def with_info(weights, change):
    """The file with another description of itself."""
    tensors = safetensors.torch.load(weights)
    length = int.from_bytes(weights[:8], "little")
    header = json.loads(json.loads(weights[8 : 8 + length])["__metadata__"]["fewstep"])
    change(header["info"])
    return safetensors.torch.save(tensors, {"format": "pt", "fewstep": json.dumps(header)})


CHANGES = {
    "class": (lambda info: info["config"].update(class_name="os.system"), "class os.system, which is not part of this"),
    "no class": (lambda info: info["config"].pop("class_name"), "not part of this project"),
    "part": (lambda info: info["config"].update(model_type="os.system"), "os.system"),
    "wide": (lambda info: info["config"].update(model_channels=1 << 40), "impossible argument"),
    "code": (lambda info: info["config"].update(auto_map={"AutoModel": "evil.X"}), "auto_map"),
    "trust": (lambda info: info["config"].update(trust_remote_code=True), "trust_remote_code"),
    "no configuration": (lambda info: info.pop("config"), "does not say how to rebuild"),
    "path": (lambda info: info.update(path="os.system"), ""),
}


@pytest.mark.parametrize("name", CHANGES)
def test_descriptions_of_something_else(name, hub, weights):
    change, piece = CHANGES[name]
    hub("model.safetensors", with_info(weights, change))
    if piece:
        refused("hf:me/net", piece)
    else:  # known paths alone are believed, whoever asks
        from samplers.field import Field

        with pytest.raises((ValueError, KeyError), match=r"os\.system"):
            Field(networks.load_network("hf:me/net"))


def test_other_bytes(hub, weights):
    hub("model.safetensors", weights[:-1] + b"\x7f")
    refused("hf:me/net", "do not have the SHA-256 written beside them")
    for part in (0, 4, 8, 100, len(weights) - 4):
        hub("model.safetensors", weights[:part])
        refused("hf:me/net", "model.safetensors")
    hub("net.pkl", hostile.BODIES["os system"][0])
    refused("hf:me/net/net.pkl", "os.system")


def test_code_of_a_repository_is_not_run(hub, weights, tmp_path):
    """Modules, remote code and custom pipelines lie there unread; a description beside the weights is not believed."""
    hub("model.safetensors", weights)
    for name in ("modeling.py", "pipeline.py", "__init__.py", "networks.py", "conftest.py"):
        hub(name, hostile.CODE.encode())
    code = {"auto_map": {"AutoModel": "modeling.X"}, "trust_remote_code": True, "custom_pipeline": "pipeline.py"}
    hub("config.json", json.dumps({"class_name": "os.system", "architectures": ["X"], **code}).encode())
    hub("model_index.json", json.dumps({"_class_name": ["pipeline", "X"], "unet": ["modeling", "X"]}).encode())
    hub("pytorch_model.bin", hostile.BODIES["os system"][0])
    before = set(sys.modules)
    with hostile.watched():
        net = networks.load_network("hf:me/net")
    assert type(net).__name__ == "EDMPrecond"
    assert not {"modeling", "pipeline"} & (set(sys.modules) - before)
    assert not (tmp_path / hostile.MARKER).exists()


def test_shards_are_not_followed(hub, tmp_path):
    """An index that names files elsewhere, and no weights: there is nothing to load."""
    torch.save({"a": torch.zeros(2)}, tmp_path / "secret.bin")
    index = {"weight_map": {"a": "../../../../secret.bin", "b": "/etc/passwd"}}
    hub("model.safetensors.index.json", json.dumps(index).encode())
    refused("hf:me/net", "cannot be had from the hub")
