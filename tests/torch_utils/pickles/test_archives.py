"""Training checkpoints and archives around them: what is read past, and hostile ones of every kind."""

import os

import hostile
import pytest
import torch
from hostile.assemble import call, items, p2, stack_global, text
from hostile.containers import MODEL, archive, torch_zip
from published_files import lightning

import networks
from networks.describe import describe
from torch_utils.pickles.archives import opened, read_archive


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEWSTEP_CACHE_DIR", str(tmp_path / "cache"))


def refused(read, path, reason="", seconds=2.0):
    with hostile.bounded(seconds), pytest.raises(ValueError, match=r"\S") as caught:
        read(path)
    message = str(caught.value)
    assert message.isprintable()
    assert reason in message, message
    assert not os.path.exists(hostile.MARKER)


# Objects that a program would have made of these are empty here; nothing of numpy is called.
EMPTY = {"numpy.core.multiarray _reconstruct", "numpy ndarray"}


@pytest.mark.parametrize(
    ("name", "container"), [*((n, "zip") for n in hostile.BODIES), *((n, "legacy") for n in [*hostile.BODIES][::4])]
)
def test_hostile_training_checkpoints(name, container):
    with open("x.ckpt", "wb") as file:
        file.write(hostile.CONTAINERS[container](hostile.BODIES[name][0]))
    with hostile.watched():
        if name in EMPTY:
            assert read_archive("x.ckpt").state == {}
        else:
            refused(read_archive, "x.ckpt")
        refused(networks.load_network, "x.ckpt", "x.ckpt", seconds=4.0)


INERT = {
    "a call": call("omegaconf.dictconfig DictConfig", text("touch marker")),
    "a name with dots": None,
    "items of a list": call("builtins list") + b"(" + text("x") + text("y") + b"e",
    "items of a dict": call("collections defaultdict") + b"(" + text("x") + text("y") + b"u",
    "a state": call("pytorch_lightning.callbacks X") + b"}(" + text("__class__") + text("os.system") + b"ub",
    "a state of two": call("ldm.models X") + b"}}(" + text("a") + text("b") + b"u\x86b",
}


@pytest.mark.parametrize("name", [n for n in INERT if INERT[n]])
def test_objects_of_a_training_program_stay_empty(name):
    with open("x.ckpt", "wb") as file:
        file.write(torch_zip(p2(items(a=INERT[name]))))
    with hostile.watched(), hostile.bounded():
        value = read_archive("x.ckpt")["a"]
    assert value.state == {}
    assert value.inert


@pytest.mark.parametrize(
    "name", ["os.system", "pytorch_lightning.x os.system", "pytorch_lightning_evil.x A", "ldm A.b", "numpy.load x"]
)
def test_only_plain_names_of_known_packages_are_read_past(name):
    module, _, attribute = name.rpartition(" ") if " " in name else name.rpartition(".")
    with open("x.ckpt", "wb") as file:
        file.write(torch_zip(b"\x80\x04" + stack_global(f"{module} {attribute}") + b")R."))
    refused(read_archive, "x.ckpt", "not on the list of harmless names")


@pytest.mark.parametrize("name", hostile.ARCHIVES)
def test_hostile_archives(name):
    content, reason = hostile.ARCHIVES[name]
    with open("x.zip", "wb") as file:
        file.write(content)
    refused(networks.load_network, "x.zip", reason, seconds=4.0)
    refused(describe, "x.zip", seconds=4.0)
    assert not [p for _, _, found in os.walk("cache") for p in found]


@pytest.mark.parametrize("name", list(hostile.BODIES)[::5])
def test_hostile_checkpoints_inside_an_archive(name):
    with open("x.zip", "wb") as file:
        file.write(archive(**{MODEL: torch_zip(hostile.BODIES[name][0])}))
    refused(networks.load_network, "x.zip", seconds=4.0)


def test_truncated_archives(tmp_path):
    inner = lightning({"a": torch.ones(100)}, tmp_path / "inner.ckpt").read_bytes()
    raw = archive(**{MODEL: inner})
    for i in range(1, 50):
        (tmp_path / "x.zip").write_bytes(raw[: len(raw) * i // 50])
        refused(read_archive, tmp_path / "x.zip")
        (tmp_path / "y.ckpt").write_bytes(inner[: len(inner) * i // 50])
        refused(read_archive, tmp_path / "y.ckpt")


def test_describe_shows_training_checkpoints_and_archives(tmp_path):
    lightning({"a.weight": torch.ones(3, 4)}, tmp_path / "x.ckpt")
    page = describe(tmp_path / "x.ckpt")
    assert "a.weight" in page
    assert "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint" in page
    (tmp_path / "x.zip").write_bytes(archive(**{MODEL: (tmp_path / "x.ckpt").read_bytes()}))
    page = describe(tmp_path / "x.zip")
    assert "inside a zip archive" in page
    assert "[3, 4]" in page
    with opened(tmp_path / "x.zip") as file:
        assert torch.equal(read_archive(file)["state_dict"]["a.weight"], torch.ones(3, 4))
        assert file.parent == tmp_path / "cache" / "extracted"
    assert not file.exists()
