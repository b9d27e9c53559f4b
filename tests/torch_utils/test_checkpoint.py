"""Our own format: round trips, damage, atomic writes, retention, .safetensors, `show`, downloads."""

import collections
import json
import os
import resource
from contextlib import contextmanager

import hostile
import numpy as np
import pytest
import safetensors.torch
import torch

from networks.describe import describe
from torch_utils import checkpoint
from torch_utils.checkpoint import (
    load,
    load_safetensors,
    newest,
    save,
    save_safetensors,
)

INFO = {"method": "edm", "sigma_max": float("inf"), "nested": {"list": [1, 2.5, None, True, "π"]}}


def payload():
    torch.manual_seed(0)
    weight = torch.randn(8, 3, 3, 3)
    return {
        "ema": collections.OrderedDict(weight=torch.nn.Parameter(weight), bias=torch.randn(8).bfloat16()),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": weight[2:4]}}, "lr": [1e-3, (0.9, 0.999)]},
        "transposed": weight.permute(1, 0, 2, 3),
        "flags": torch.tensor([True, False]),
        "empty": torch.zeros(0, 4),
        "rng": torch.get_rng_state(),
        "words": [2**100, -7, None, True, "text\n", float("inf"), np.float64(0.5), np.int64(3)],
    }


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and type(b) is torch.Tensor and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "training-state-000001.pt"
    save(path, "state", INFO, payload())
    return path


# Round trips


def test_round_trip(saved):
    contents = load(saved, "state")
    assert contents.info == INFO
    assert contents.kind == "state"
    assert contents.libraries["torch"] == torch.__version__
    assert equal(payload(), contents.payload)
    assert type(contents.payload["words"][-1]) is int
    assert type(contents.payload["optimizer"]["lr"][1]) is tuple
    assert [p.name for p in saved.parent.iterdir()] == [saved.name], "no temporary file is left"


def test_pytorch_reads_it_with_weights_only(saved):
    content = torch.load(saved, weights_only=True)
    assert (content["format"], content["version"], content["kind"]) == ("fewstep", 1, "state")
    assert json.loads(content["info"]) == INFO
    assert equal(payload(), content["payload"])


def test_a_slice_is_stored_without_its_storage(tmp_path):
    save(tmp_path / "x.pt", "state", {}, {"a": torch.randn(1000, 1000)[0]})
    assert (tmp_path / "x.pt").stat().st_size < 10_000


def test_tied_tensors_stay_tied(tmp_path):
    a = torch.randn(1000)
    save(tmp_path / "x.pt", "state", {}, {"a": a, "b": a})
    assert (tmp_path / "x.pt").stat().st_size < 6000
    found = load(tmp_path / "x.pt").payload
    assert found["a"].data_ptr() == found["b"].data_ptr()


def test_hash_depends_on_names_types_shapes_and_bytes_only(tmp_path):
    a = {"x": torch.arange(6.0), "y": torch.ones(2, dtype=torch.int64)}
    reference = checkpoint.tensor_hash(a)
    assert checkpoint.tensor_hash(dict(reversed(a.items()))) == reference
    assert checkpoint.tensor_hash({**a, "x": torch.arange(12.0)[:6]}) == reference
    for changed in (
        {**a, "x": a["x"] + 1e-6}, {**a, "x": a["x"].reshape(2, 3)}, {"z": a["x"], "y": a["y"]},
        {**a, "y": a["y"].double()},
    ):  # fmt: skip
        assert checkpoint.tensor_hash(changed) != reference
    assert save(tmp_path / "a.pt", "state", {}, a) == save(tmp_path / "b.pt", "state", {"other": 1}, a)


def test_map_location(saved):
    moved = load(saved, map_location="meta").payload
    assert moved["optimizer"]["state"][0]["exp_avg"].is_meta
    assert moved["words"][1] == -7


# What cannot be saved


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": [torch.nn.Linear(1, 1)]}, r"payload\['a'\]\[0\] is a Linear"),
        ({"a": np.zeros(3)}, r"payload\['a'\] is a ndarray"),
        ({"a": lambda: 0}, "function"),
        ({"a": {1, 2}}, "set"),
        ({(1, 2): 0}, "key"),
        ({"k" * 2000: 0}, "key"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "complex64"),
        ({"a": torch.zeros(2).to_sparse()}, "sparse"),
        ({"a": torch.zeros(2, device="meta")}, "meta"),
        ({"a": 1 << 3000}, "too large"),
        ({"a": "x" * (5 << 20)}, "too large"),
        ({"a": [0] * 600_000}, "too many"),
        ({"a": [[]] * 300_000}, "too many"),
    ],
)
def test_only_data_is_saved(tmp_path, value, place):
    with pytest.raises(ValueError, match=place):
        save(tmp_path / "x.pt", "state", {}, value)
    assert not list(tmp_path.iterdir())


def test_cycles_kinds_and_info(tmp_path):
    cyclic = {}
    cyclic["self"] = cyclic
    with pytest.raises(ValueError, match="nested deeper"):
        save(tmp_path / "x.pt", "state", {}, cyclic)
    with pytest.raises(ValueError, match="snapshot or a state"):
        save(tmp_path / "x.pt", "weights", {}, {})
    with pytest.raises(ValueError, match="must be JSON"):
        save(tmp_path / "x.pt", "state", {"net": torch.nn.Linear(1, 1)}, {})


def test_what_is_saved_is_accepted_at_the_limits(tmp_path):
    deep = 0
    for _ in range(49):
        deep = {"a": deep}
    many = {"deep": deep, "numbers": list(range(400_000)), 2**60: "x" * (4 << 20), "big": 2**1999}
    save(tmp_path / "x.pt", "state", {}, many)
    assert load(tmp_path / "x.pt").payload == many


# Damage


def rejected(path, *, reason="", read=load):
    with hostile.watched(), hostile.bounded(), pytest.raises(ValueError, match=r"\S") as caught:
        read(path)
    message = str(caught.value)
    assert os.fspath(path) in message
    assert message.isprintable()
    assert reason in message
    return message


def test_truncated(saved):
    raw = saved.read_bytes()
    for size in {*np.linspace(0, len(raw) - 1, 60, dtype=int).tolist(), len(raw) - 1, len(raw) - 22}:
        saved.write_bytes(raw[:size])
        rejected(saved)


def test_flipped_bits(saved):
    """Every flip is noticed, unless it lies where the archive carries nothing (padding, dates)."""
    raw, good = saved.read_bytes(), load(saved)
    random = np.random.RandomState(1)
    noticed = 0
    for position in random.randint(len(raw), size=250).tolist():
        flipped = bytearray(raw)
        flipped[position] ^= 1 << random.randint(8)
        saved.write_bytes(flipped)
        try:
            contents = load(saved)
        except ValueError:
            rejected(saved)
            noticed += 1
        else:
            assert contents.info == good.info
            assert equal(good.payload, contents.payload)
    assert noticed > 60


def test_every_flip_in_tensors_and_description_is_noticed(saved):
    from torch_utils.pickles.zip_directory import read_directory

    raw = saved.read_bytes()
    members = read_directory(memoryview(raw))
    for name, member in members.items():
        if name == "data.pkl" or name.startswith("data/"):
            for offset in range(0, member.size, max(1, member.size // 5)):
                flipped = bytearray(raw)
                flipped[member.start + offset] ^= 4
                saved.write_bytes(flipped)
                rejected(saved)


def test_without_verification_checksums_still_hold(saved):
    raw = bytearray(saved.read_bytes())
    raw[raw.find(torch.get_rng_state().numpy().tobytes()[:64]) + 10] ^= 1
    saved.write_bytes(raw)
    rejected(saved, reason="checksum", read=lambda p: load(p, verify=False))


def test_wrong_kind_version_and_origin(saved, tmp_path):
    with pytest.raises(ValueError, match="is a state, but a snapshot is needed"):
        load(saved, "snapshot")
    content = torch.load(saved, weights_only=True)
    for change, reason in (
        ({"version": 2}, "newer release"), ({"version": "1"}, "newer release"), ({"format": "x"}, "not a checkpoint"),
        ({"sha256": "0" * 64}, "SHA-256"), ({"sha256": 5}, "damaged at sha256"), ({"info": "[1]"}, "description"),
        ({"info": "{"}, "description"), ({"info": '{"a":' * 200 + "1" + "}" * 200}, "nested"), ({"kind": "x"}, "kind"),
        ({"libraries": []}, "damaged at libraries"),
    ):  # fmt: skip
        torch.save({**content, **change}, tmp_path / "x.pt")
        rejected(tmp_path / "x.pt", reason=reason)
    del content["payload"]
    torch.save(content, tmp_path / "x.pt")
    rejected(tmp_path / "x.pt", reason="damaged")
    torch.save([1, 2], tmp_path / "x.pt")
    rejected(tmp_path / "x.pt", reason="not a checkpoint of this project")
    rejected(tmp_path / "missing.pt", reason="No such file")
    rejected(tmp_path, reason="not a file")


def test_a_tensor_repeated_without_end_is_refused(saved):
    content = torch.load(saved, weights_only=True)
    content["payload"] = [torch.zeros(1000)] * 5000
    torch.save(content, saved)
    rejected(saved, reason="same memory")


# Writing


@contextmanager
def full_disk(limit):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("suffix", ["pkl", "safetensors"])
def test_full_disk(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    small, large = {"a": torch.ones(10)}, {"a": torch.ones(100_000)}
    write = save_safetensors if suffix == "safetensors" else lambda p, info, t: save(p, "snapshot", info, t)
    write(path, {}, small)
    before = path.read_bytes()
    with full_disk(50_000), pytest.raises(OSError, match="an earlier file of this name is untouched") as caught:
        write(path, {}, large)
    assert caught.value.filename == os.fspath(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_read_only_directory(tmp_path):
    path = tmp_path / "x.pkl"
    save(path, "snapshot", {}, {})
    before = path.read_bytes()
    tmp_path.chmod(0o555)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)  # permissions do not bind the superuser
        with pytest.raises(OSError, match="cannot write") as caught:
            save(path, "snapshot", {}, {"a": 1})
    finally:
        if root:
            os.seteuid(0)
        tmp_path.chmod(0o755)
    assert caught.value.filename == os.fspath(path)
    assert path.read_bytes() == before
    with pytest.raises(OSError, match="cannot write"):
        save(tmp_path / "missing" / "x.pkl", "snapshot", {}, {})


# Retention


def test_newest_complete(tmp_path):
    assert newest(tmp_path, "state-*.pt") is None
    for n in (1, 2, 3):
        save(tmp_path / f"state-{n:06d}.pt", "state", {"n": n}, {"a": torch.ones(1000)})
    assert newest(tmp_path, "state-*.pt").name == "state-000003.pt"
    damaged = tmp_path / "state-000003.pt"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="state-000003.pt is refused.*trying the one before"):
        assert newest(tmp_path, "state-*.pt").name == "state-000002.pt"


# .safetensors


def test_safetensors_round_trip(tmp_path):
    path = tmp_path / "x.safetensors"
    tied = torch.randn(4)
    tensors = {"a": tied, "b": tied, "t": torch.randn(3, 5).t(), "h": torch.ones(2).half(), "e": torch.zeros(0)}
    sha256 = save_safetensors(path, INFO, tensors)
    contents = load_safetensors(path)
    assert contents.info == INFO
    assert contents.sha256 == sha256 == checkpoint.tensor_hash(tensors)
    assert set(contents.payload) == set(tensors)
    assert all(torch.equal(v, contents.payload[k]) for k, v in tensors.items())
    other = safetensors.torch.load_file(path)
    assert all(torch.equal(v, other[k]) for k, v in tensors.items())


def test_safetensors_of_others(tmp_path):
    safetensors.torch.save_file({"a": torch.ones(3)}, tmp_path / "x.safetensors")
    contents = load_safetensors(tmp_path / "x.safetensors")
    assert contents.info == {}
    assert torch.equal(contents.payload["a"], torch.ones(3))


def test_safetensors_damage(tmp_path):
    path = tmp_path / "x.safetensors"
    save_safetensors(path, INFO, {"a": torch.randn(64)})
    raw = path.read_bytes()
    for size in range(0, len(raw), len(raw) // 30):
        path.write_bytes(raw[:size])
        rejected(path, read=load_safetensors)
    flipped = bytearray(raw)
    flipped[-5] ^= 1
    path.write_bytes(flipped)
    rejected(path, read=load_safetensors, reason="SHA-256")


@pytest.mark.parametrize("name", hostile.SAFETENSORS)
def test_hostile_safetensors(tmp_path, name):
    path = tmp_path / "x.safetensors"
    path.write_bytes(hostile.SAFETENSORS[name])
    rejected(path, read=load_safetensors)
    rejected(path, read=describe)
