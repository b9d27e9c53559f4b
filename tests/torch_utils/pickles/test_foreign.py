"""The restricted reader: golden files of the original writer, pickles of Python itself, and a corpus of attacks."""

import collections
import os
import pickle
import sys
from contextlib import suppress

import hostile
import numpy as np
import pytest
import torch
from golden_cases import cases, fill_weights
from live_pickles import module_dict

from networks.describe import describe
from networks.published.edm import EDM, read_edm_pickle, read_training_state, to_network_spec
from torch_utils import checkpoint
from torch_utils.pickles import foreign
from torch_utils.pickles.foreign import module_classes, named_tensors
from torch_utils.pickles.machine import Record


def read_foreign(path):
    return foreign.read_foreign(path, EDM)


def attributes(record):
    plain = {k: v for k, v in record.state.items() if k[:1] != "_" and isinstance(v, bool | int | float)}
    return {"class_name": record.class_name, "attributes": plain}


# Golden files


@pytest.mark.parametrize("case", cases("edm", "snapshot"))
def test_snapshot(case):
    path, spec = case.path.parent / case.spec["file"], case.spec
    content = read_edm_pickle(path)
    assert list(content) == spec["top_keys"]
    assert list(read_foreign(path).globals) == spec["globals"]
    ema = content["ema"]
    class_name, kwargs, state = to_network_spec(ema)
    assert class_name == ema.class_name == spec["ema_class"]
    assert ema.state["_init_kwargs"] == spec["init_kwargs"]
    assert spec["init_kwargs"].items() <= kwargs.items()
    assert {key: ema.state[key] for key in spec["ema_attributes"]} == spec["ema_attributes"]
    assert module_classes(ema) == spec["modules"]
    assert len(state) == spec["num_tensors"]
    assert content["dataset_kwargs"] == spec["dataset_kwargs"]
    for part in ("loss_fn", "augment_pipe"):
        assert (content[part] and attributes(content[part])) == spec[part]


@pytest.mark.parametrize("case", cases("edm", "snapshot"))
def test_snapshot_weights_follow_the_fill_rule(case):
    state = named_tensors(read_edm_pickle(case.path.parent / case.spec["file"])["ema"])

    class Holder(torch.nn.Module):
        def state_dict(self):
            return {name: value.clone() for name, value in state.items()}

        def load_state_dict(self, filled):
            for name, value in filled.items():
                assert torch.equal(value, state[name]), name

    fill_weights(Holder(), case.spec["constant_keys"])


@pytest.mark.parametrize("case", cases("edm", "training_state"))
def test_training_state(case):
    path, spec = case.path.parent / case.spec["file"], case.spec
    content = read_training_state(path)
    assert list(content) == spec["top_keys"]
    net, optimizer = content["net"], content["optimizer_state"]
    assert net.class_name == spec["net_class"]
    assert net.state["_init_kwargs"] == spec["init_kwargs"]
    parameters = named_tensors(net, buffers=False)
    assert list(parameters) == spec["param_order"]
    norms = [p.double().norm().item() for p in parameters.values()]
    np.testing.assert_allclose(norms, spec["param_norms"], rtol=spec["tolerance"]["param_norms"]["rtol"])
    (group,) = optimizer["param_groups"]
    assert group["params"] == list(range(len(parameters)))
    expected = {k: tuple(v) if isinstance(v, list) else v for k, v in spec["optimizer_param_group"].items()}
    assert {k: v for k, v in group.items() if k in expected} == expected
    for i, norm in enumerate(spec["exp_avg_norms"]):
        assert (i in optimizer["state"]) == (norm is not None)
        if norm is not None:
            entry = optimizer["state"][i]
            assert float(entry["step"]) == spec["adam_steps"]
            assert entry["exp_avg"].double().norm().item() == pytest.approx(
                norm, rel=spec["tolerance"]["exp_avg_norms"]["rtol"]
            )


@pytest.mark.parametrize("case", cases("edm", "training_state"))
def test_adam_accepts_the_training_state(case):
    content = read_training_state(case.path.parent / case.spec["file"])
    parameters = [torch.nn.Parameter(p.clone()) for p in named_tensors(content["net"], buffers=False).values()]
    optimizer = torch.optim.Adam(parameters)
    optimizer.load_state_dict(content["optimizer_state"])
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer.step()


# Files that Python and PyTorch write themselves


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_same_tensors_as_were_put_in(tmp_path, persistence, protocol):
    weight = torch.nn.Parameter(torch.randn(3, 4))
    values = {
        "half": torch.randn(5).half(),
        "bfloat": torch.randn(2, 2).bfloat16(),
        "flags": torch.tensor([True, False, True]),
        "long": torch.arange(7),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "transposed": torch.randn(4, 6).t(),
        "slice": torch.arange(20.0)[3:9:2],
    }
    inner = persistence("Linear", module_dict({"weight": weight, "bias": None}))
    enc = torch.nn.ModuleDict({"plain": torch.nn.Linear(2, 2), "deep": torch.nn.Sequential(torch.nn.Identity())})
    state = module_dict(
        buffers={**values, "hidden": torch.ones(2), "none": None}, modules={"inner": inner, "enc": enc, "gone": None}
    )
    state["_init_kwargs"] = {"dropout": np.float64(0.25), "n": np.int32(7), "flag": np.bool_(True)}
    path = tmp_path / "net.pkl"
    path.write_bytes(pickle.dumps({"ema": persistence("EDMPrecond", state), "size": weight.shape}, protocol))
    content = read_edm_pickle(path)
    found = named_tensors(content["ema"])
    assert list(found) == [*values, "inner.weight", "enc.plain.weight", "enc.plain.bias"]
    for name, value in values.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
    assert torch.equal(found["inner.weight"], weight.detach())
    assert type(found["inner.weight"]) is torch.Tensor
    assert torch.equal(found["enc.plain.bias"], enc["plain"].bias.detach())
    assert list(named_tensors(content["ema"], buffers=False)) == ["inner.weight", "enc.plain.weight", "enc.plain.bias"]
    assert module_classes(content["ema"])["enc"] == "ModuleDict"
    kwargs = content["ema"].state["_init_kwargs"]
    assert kwargs == {"dropout": 0.25, "n": 7, "flag": True}
    assert [type(v) for v in kwargs.values()] == [float, int, bool]
    assert content["size"] == (3, 4)


def test_older_numpy_spelling_and_easydict(tmp_path, persistence, monkeypatch):
    raw = pickle.dumps({"ema": persistence("EDMPrecond", module_dict(scale=np.float64(0.5)))}, 2)
    old = raw.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")
    dnnlib = hostile.glob("dnnlib.util EasyDict") + b")\x81(" + hostile.text("a") + b"K\x01u"
    path = tmp_path / "old.pkl"
    path.write_bytes(old)
    assert read_edm_pickle(path)["ema"].state["scale"] == 0.5
    path.write_bytes(hostile.p2(hostile.items(ema=hostile.persistent(), data=dnnlib)))
    assert read_edm_pickle(path)["data"] == {"a": 1}


def test_embedded_source_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    body = hostile.persistent(module_src=hostile.text(hostile.CODE), class_name="EDMPrecond")
    (tmp_path / "net.pkl").write_bytes(hostile.p2(hostile.items(ema=body)))
    with hostile.watched():
        record = read_edm_pickle("net.pkl")["ema"]
    assert isinstance(record, Record)
    assert record.state == {}
    assert not os.path.exists(hostile.MARKER)


@pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "legacy"])
def test_torch_files_equal_torch_load(tmp_path, zip_format):
    shared = torch.randn(6, 5)
    value = collections.OrderedDict(a=shared, b=shared[1:3], c=shared.t(), n=[1, 2.5, None, "x", (True, 2**70)])
    value["state"] = torch.nn.Conv2d(2, 3, 3).state_dict()
    path = tmp_path / "file.pt"
    torch.save(value, path, _use_new_zipfile_serialization=zip_format)
    ours, theirs = read_foreign(path).value, torch.load(path, weights_only=True)
    assert ours["n"] == theirs["n"]
    for name in "abc":
        assert torch.equal(ours[name], theirs[name])
        assert ours[name].stride() == theirs[name].stride()
    assert ours["a"].untyped_storage().data_ptr() == ours["b"].untyped_storage().data_ptr()
    assert all(torch.equal(ours["state"][k], v) for k, v in theirs["state"].items())


def test_attributes_win_and_positional_arguments_are_named(tmp_path):
    state = {"_init_args": (32, 3), "_init_kwargs": {"sigma_data": 0.5, "model_channels": 8}, "sigma_data": 0.7}
    record = Record("EDMPrecond", {**state, "sigma_min": 0.002, "use_fp16": True})
    name, kwargs, tensors = to_network_spec(record)
    assert (name, tensors) == ("EDMPrecond", {})
    assert kwargs == {
        "img_resolution": 32, "img_channels": 3, "sigma_data": 0.7, "model_channels": 8, "sigma_min": 0.002,
        "use_fp16": True,
    }  # fmt: skip
    record = Record("VPPrecond", {"_init_kwargs": {}, "sigma_min": 0.001, "beta_d": 19.1})
    assert to_network_spec(record)[1] == {"beta_d": 19.1}, "sigma_min of VP follows from its arguments"


def test_other_files_are_named_for_what_they_lack(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="not an EDM-style network pickle"):
        read_edm_pickle(tmp_path / "x.pt")
    with pytest.raises(ValueError, match="not an EDM-style training state"):
        read_training_state(tmp_path / "x.pt")
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_foreign(tmp_path / "missing.pkl")
    with pytest.raises(ValueError, match="not a file"):
        read_foreign(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with hostile.bounded(), pytest.raises(ValueError, match="not a file"):
        read_foreign(tmp_path / "pipe")


# Attacks


def refused(read, path, reason=""):
    """`read(path)` raises one sentence that names the file, within the bounds, and leaves no trace."""
    modules = set(sys.modules)
    with hostile.watched(), hostile.bounded(), pytest.raises(ValueError, match=r"\S") as caught:
        read(path)
    message = str(caught.value)
    assert os.fspath(path) in message
    assert message.isprintable()
    assert len(message) < 500
    assert reason in message, message
    assert not os.path.exists(hostile.MARKER)
    assert not {"this", "antigravity", "dill", "joblib", "code"} & (set(sys.modules) - modules)


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("container", hostile.CONTAINERS)
@pytest.mark.parametrize("name", hostile.BODIES)
def test_hostile_pickle(name, container, tmp_path):
    body, reason = hostile.BODIES[name]
    path = tmp_path / "file.pkl"
    path.write_bytes(hostile.CONTAINERS[container](body))
    if container == "legacy" and reason in ("protocol", "follow"):
        reason = ""  # the first of five streams is met first
    refused(read_foreign, path, reason)
    refused(describe, path)
    refused(checkpoint.load, path)


@pytest.mark.parametrize("name", hostile.ZIPS)
def test_hostile_zip(name, tmp_path):
    content, reason = hostile.ZIPS[name]
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    refused(read_foreign, path, reason)
    refused(describe, path)
    refused(checkpoint.load, path)


@pytest.mark.parametrize("name", hostile.OTHERS)
def test_other_content(name, tmp_path):
    path = tmp_path / "file.pkl"
    path.write_bytes(hostile.OTHERS[name])
    refused(read_foreign, path)
    refused(describe, path)
    refused(checkpoint.load, path)
    refused(checkpoint.load_safetensors, path)


def test_number_of_shapes():
    shapes = [*hostile.BODIES, *hostile.ZIPS, *hostile.OTHERS, *hostile.SAFETENSORS, *hostile.networks()]
    assert len(shapes) >= 200


@pytest.mark.parametrize("case", cases("edm", "snapshot", "training_state"))
def test_truncated(case, tmp_path):
    raw = (case.path.parent / case.spec["file"]).read_bytes()
    for i in range(50):
        path = tmp_path / f"{i}.pkl"
        path.write_bytes(raw[: len(raw) * i // 50])
        refused(read_foreign, path)


@pytest.mark.parametrize("case", cases("edm", "snapshot"))
def test_flipped_bits_give_data_or_a_sentence(case, tmp_path):
    """Anything but a ValueError or inert data fails the test."""
    raw = bytearray((case.path.parent / case.spec["file"]).read_bytes())
    random = np.random.RandomState(0)
    path = tmp_path / "flipped.pkl"
    for position in random.randint(len(raw), size=50):
        raw[position] ^= 1 << random.randint(8)
        path.write_bytes(raw)
        with hostile.watched(), hostile.bounded(), suppress(ValueError):
            to_network_spec(read_edm_pickle(path)["ema"])
        raw[:] = (case.path.parent / case.spec["file"]).read_bytes()
