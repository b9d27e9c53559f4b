"""Every group of attacks in every container that is read: one sentence, no code run, nothing left, nothing large made.

Rows are the groups 1 to 28, columns the containers. A stream lies beside the good tensors where the container lets
anything lie beside them, and is the whole file elsewhere; other content is the file under the container's name. Each
column first proves that its good file makes an image.
"""

import contextlib
import importlib
import io
import itertools
import json
import os
import re
import shutil
import socket
import zipfile
from pathlib import Path

import hostile
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from hostile.containers import MODEL, archive, zip_file
from hostile.groups import GROUPS, Raw
from published_files import cm, edm_pickle, ldm, lightning, yaml_of

import generate
import networks
from networks import describe, share
from networks.published.families import read_tensors

SAMPLER = "--outdir=out --seeds=0 --solver=euler --num-steps=2 --device=cpu"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Good:
    """The good files, made once: what containers hold beside an attack."""

    def __init__(self, folder):
        self.folder = folder
        made, latent = cm(folder), ldm(folder)
        self.config, self.latent_config, self.latent = made.config_file(), latent.config_file(), latent.path
        self.state, self.latent_state = read_tensors(made.path), read_tensors(latent.path)
        torch.save(self.state, folder / "cm.pt")
        lightning(self.latent_state, folder / "ldm.ckpt")
        edm_pickle(folder / "edm.pkl", protocol=2)
        config = {"model_type": "SongUNet", "model_channels": 8, "channel_mult": [1], "num_blocks": 1}
        net = networks.build("EDMPrecond", img_resolution=8, img_channels=3, attn_resolutions=[], **config)
        networks.save_network(folder / "net.pkl", net)
        share.export(folder / "net.pkl", folder / "net.dill", "dill")

    def beside(self, name, stream):
        """A file of torch.save whose dict has one more item."""
        with zipfile.ZipFile(self.folder / name) as file:
            members = [(n, file.read(n)) for n in file.namelist()]
        return zip_file([(n, inside(data, stream) if n.endswith("/data.pkl") else data) for n, data in members])

    def pipeline(self, place):
        """A folder of diffusers."""
        pytest.importorskip("diffusers")
        from pipelines import write

        if not (self.folder / "pipeline").exists():
            write(self.folder / "pipeline", "pixels")
        shutil.copytree(self.folder / "pipeline", place / "x")
        return next((place / "x/unet").glob("*.safetensors"))


def inside(pickled, stream):
    """A pickle of a dict with what `stream` makes as one more item, the first."""
    begin = b"\x80\x02}q\x00("
    assert pickled.startswith(begin)
    return begin + hostile.text("evil") + stream[2:].removesuffix(b".") + pickled[len(begin) :]


def in_zip(good, place, content):
    (place / "x.pt").write_bytes(content if isinstance(content, Raw) else good.beside("cm.pt", content))
    return f"--network=x.pt --config={good.config}"


def in_legacy(good, place, content):
    (place / "x.pth").write_bytes(content if isinstance(content, Raw) else hostile.CONTAINERS["legacy"](content))
    return f"--network=x.pth --config={good.config}"


def in_lightning(good, place, content):
    (place / "x.ckpt").write_bytes(content if isinstance(content, Raw) else good.beside("ldm.ckpt", content))
    return f"--network=x.ckpt --config={good.latent_config}"


def in_archive(good, place, content):
    inner = content if isinstance(content, Raw) else good.beside("ldm.ckpt", content)
    (place / "x.zip").write_bytes(content if content[:2] == b"PK" else archive(**{MODEL: inner}))
    return f"--network=x.zip --config={good.latent_config}"


def in_edm(good, place, content):
    (place / "x.pkl").write_bytes(content)
    return "--network=x.pkl"


def in_safetensors(good, place, content):
    (place / "x.safetensors").write_bytes(content)
    return f"--network=x.safetensors --config={good.config}"


def in_folder(good, place, content):
    weights = good.pipeline(place)
    if not isinstance(content, Raw):
        weights.unlink()
        weights = weights.with_suffix(".bin")
    weights.write_bytes(content)
    return "--network=diffusers:x"


def in_yaml(good, place, content):
    (place / "x.yaml").write_bytes(content)
    return f"--network={good.latent} --config=x.yaml"


def in_hub(good, place, content):
    """The cache of huggingface_hub as that leaves it: a snapshot of links to blobs."""
    pytest.importorskip("huggingface_hub")
    root = place / "hub/models--me--net"
    blob, link = root / "blobs/b10b", root / f"snapshots/{COMMIT}/x.ckpt"
    for path in (blob, link, root / "refs/main"):
        path.parent.mkdir(parents=True, exist_ok=True)
    (root / "refs/main").write_text(COMMIT)
    blob.write_bytes(content if isinstance(content, Raw) else good.beside("cm.pt", content))
    link.symlink_to(os.path.relpath(blob, link.parent))
    return f"--network=hf:me/net/x.ckpt --config={good.config}"


def in_dill(good, place, content):
    (place / "x.dill").write_bytes(content)
    return "--network=x.dill"


CONTAINERS = {
    "zip": in_zip, "legacy": in_legacy, "lightning": in_lightning, "archive": in_archive, "edm": in_edm,
    "safetensors": in_safetensors, "folder": in_folder, "yaml": in_yaml, "hub": in_hub, "dill": in_dill,
}  # fmt: skip


def saved(state, legacy=False):
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=not legacy)
    return Raw(buffer.getvalue())


def wrong_states(state, key):
    """Group 28: tensors that are not those of the network, and names that are none."""
    value = state[key]
    rest = {k: v for k, v in state.items() if k != key}
    some = list(state.items())
    return {
        "a tensor more": {**state, "evil.weight": torch.zeros(2)},
        "another shape": {**state, key: value[..., None].repeat(*[1] * value.ndim, 3)},
        "a tensor less": rest,
        "whole numbers": {**state, key: torch.zeros_like(value, dtype=torch.int64)},
        "numbers as names": {**state, 7: value},
        "a name of 1 MB": {**rest, "x" * 1_000_000: value},
        "a path as a name": {**rest, "../../x": value},
        "two prefixes": {**{f"module.{k}": v for k, v in some[::2]}, **dict(some[1::2])},
        "no tensors": dict.fromkeys(state, 1),
        "empty": {},
    }


CYCLIC = hostile.BODIES["cyclic dict"][0]


def group_28(name, good):
    """What group 28 is in a container, and a sentence about what cannot be in it."""
    if name == "edm":
        return [*hostile.networks().values(), CYCLIC]
    if name == "yaml":
        return map(yaml_with, WRONG_YAML)
    if name == "dill":
        return "whatever it holds, a file of dill is refused as one that holds code"
    if name == "folder":
        weights = next((good.folder / "pipeline/unet").glob("*.safetensors"))
        state, key = safetensors.torch.load_file(weights), "conv_out.weight"
    elif name in ("lightning", "archive"):
        state, key = good.latent_state, "first_stage_model.decoder.conv_out.weight"
    else:
        state, key = good.state, "out.2.weight"
    wrong = wrong_states(state, key)
    if name in ("folder", "safetensors"):  # names are text there and values are tensors, by the format
        plain = (v for k, v in wrong.items() if k not in ("numbers as names", "no tensors", "empty"))
        return (Raw(safetensors.torch.save(v, {"format": "pt"})) for v in plain)
    if name == "archive":
        files = (Raw(archive(**{MODEL: saved({"state_dict": v})})) for v in wrong.values())
    else:
        files = (saved({"state_dict": v} if name == "lightning" else v, name == "legacy") for v in wrong.values())
    return itertools.chain(files, [CYCLIC])


WRONG_YAML = [
    ("unet_config", {"num_heds": 1}), ("unet_config", {"model_channels": 1 << 40}), ("unet_config", {1: 2}),
    ("unet_config", {"channel_mult": [1] * 5000}), ("first_stage_config", {"ddconfig": {"resolution": "x"}}),
    ("first_stage_config", {"ddconfig": {"resolution": 16, "attn_resolutions": [1 << 40]}}),
]  # fmt: skip


def yaml_with(change):
    part, options = change
    value = yaml_of()
    value["model"]["params"][part]["params"] |= options
    return Raw(json.dumps(value).encode())


def truncated(name, good):
    """A good file of the container, cut off."""
    whole = {
        "zip": "cm.pt", "legacy": "edm_tiny_ema.pt", "lightning": "ldm.ckpt", "archive": "ldm.zip", "edm": "edm.pkl",
        "hub": "cm.pt", "dill": "net.dill",
    }  # fmt: skip
    if name == "folder":
        return [Raw(next((good.folder / "pipeline/unet").glob("*.safetensors")).read_bytes()[:-100])]
    if name == "yaml":
        return [Raw(json.dumps(yaml_of()).encode()[:-100])]
    made = name == "safetensors"
    raw = safetensors.torch.save(good.state) if made else (good.folder / whole[name]).read_bytes()
    return [Raw(raw[: len(raw) * i // 4]) for i in range(4)]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return Good(tmp_path_factory.mktemp("good"))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to be in, without a network."""

    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("FEWSTEP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with contextlib.suppress(ImportError):
        monkeypatch.setattr(importlib.import_module("huggingface_hub.constants"), "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def put(good, place, container, content):
    for path in place.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return CONTAINERS[container](good, place, content)


def files(place):
    return {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}


def tried(arguments, place, container):
    """Refused in one sentence by generate.py, and at most shown by describe."""
    before = files(place)
    with hostile.bounded(20, 600):
        done = CliRunner().invoke(generate.main, [*arguments.split(), *SAMPLER.split()])
        source = arguments.split()[0].removeprefix("--network=")
        shown = CliRunner().invoke(describe.main, [source]) if container not in ("yaml", "hub") else None
    assert isinstance(done.exception, SystemExit), repr(done.exception)
    assert done.exit_code in (1, 2), done.output
    assert len(re.findall("^Error:", done.output, re.MULTILINE)) == 1, done.output
    sentence = " ".join(done.output.partition("Error: ")[2].split())
    assert sentence.isprintable()
    assert 10 < len(sentence) < 1200, sentence
    for output in (done.output, shown.output if shown else ""):
        assert "Traceback" not in output
    assert shown is None or isinstance(shown.exception, SystemExit | None), repr(shown.exception)
    assert files(place) == before, "something is left"
    assert not Path(hostile.MARKER).exists(), "code was run"
    return sentence


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_good_file_makes_an_image(container, good, place):
    nothing = hostile.p2(b"N")
    if container in ("zip", "hub"):
        arguments = put(good, place, container, Raw((good.folder / "cm.pt").read_bytes()))
    elif container == "legacy":
        arguments = put(good, place, container, Raw((good.folder / "edm_tiny_ema.pt").read_bytes()))
    elif container == "edm":
        arguments = put(good, place, container, inside((good.folder / "edm.pkl").read_bytes(), nothing))
    elif container == "safetensors":
        arguments = put(good, place, container, safetensors.torch.save(good.state))
    elif container == "folder":
        arguments = put(good, place, container, Raw(good.pipeline(place).read_bytes()))
    elif container == "yaml":
        arguments = put(good, place, container, json.dumps(yaml_of()).encode())
    elif container == "dill":
        arguments = put(good, place, container, (good.folder / "net.dill").read_bytes()) + " --unsafe-pickle"
    else:
        arguments = put(good, place, container, nothing)
    done = CliRunner().invoke(generate.main, [*arguments.split(), *SAMPLER.split()])
    assert done.exit_code == 0, done.output
    assert (place / "out/000000.png").exists()


ALWAYS = {"zip", "lightning", "edm", "folder"}, {1, 6, 9, 18, 22, 24, 25, 26, 27, 28}


def is_quick(group, container, part):
    return part == "first" and (container in ALWAYS[0] or group in ALWAYS[1])


CELLS = [
    pytest.param(group, container, part, marks=[] if is_quick(group, container, part) else [pytest.mark.slow])
    for group in (*GROUPS, 28)
    for container in CONTAINERS
    for part in ("first", "rest")
]


@pytest.mark.parametrize(("group", "container", "part"), CELLS)
def test_attacks(group, container, part, good, place):
    if container == "folder":
        good.pipeline(place)
    shapes = group_28(container, good) if group == 28 else GROUPS[group][1]
    if isinstance(shapes, str):
        assert container == "dill"
        shapes = [Raw((good.folder / "net.dill").read_bytes())]
    shapes = itertools.chain(truncated(container, good) if group == 22 else (), shapes)
    for content in itertools.islice(shapes, *((1,) if part == "first" else (1, None))):
        tried(put(good, place, container, content), place, container)
