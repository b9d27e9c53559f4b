"""Networks from files: published pickles, our snapshots, .safetensors, and files that ask for too much."""

import math
import subprocess
import sys
from pathlib import Path

import hostile
import pytest
import torch
from golden_cases import cases, fill_weights

import networks
from networks.load import load_network, save_network
from networks.published.edm import read_edm_pickle, to_network_spec
from networks.published.table import DATASETS, PUBLISHED, Checkpoint
from networks.table import build
from torch_utils import checkpoint

TINY = {
    "img_resolution": 8, "img_channels": 3, "model_type": "SongUNet", "model_channels": 16, "channel_mult": [1],
    "num_blocks": 1, "attn_resolutions": [8],
}  # fmt: skip


@pytest.fixture
def net():
    return fill_weights(build("EDMPrecond", **TINY, label_dim=2)).eval()


def same(a, b):
    x, y = a.state_dict(), b.state_dict()
    return list(x) == list(y) and all(torch.equal(x[k], y[k]) for k in x)


# Files in the published layout


@pytest.mark.filterwarnings("ignore:no attention")
@pytest.mark.parametrize("case", cases("edm", "snapshot"))
def test_published_layout(case, tmp_path):
    spec = case.spec
    state = torch.get_rng_state()
    net = load_network(case.path.parent / spec["file"])
    assert torch.equal(state, torch.get_rng_state()), "loading draws no random numbers"
    assert type(net).__name__ == spec["ema_class"]
    assert {name: getattr(net, name) for name in spec["ema_attributes"]} == spec["ema_attributes"]
    assert len(net.state_dict()) == spec["num_tensors"]
    labels = case.tensor("class_labels") if spec["has_class_labels"] else None
    case.expect("D", net(case.tensor("x"), case.tensor("sigma"), labels))
    assert net.info["dataset_kwargs"] == spec["dataset_kwargs"]
    assert (net.info["loss_fn"] or {}).get("class_name") == (spec["loss_fn"] or {}).get("class_name")
    assert not any(p.requires_grad or p.is_meta for p in net.parameters())

    for name in ("copy.pkl", "copy.safetensors"):  # exported as data, a network is the same network
        save_network(tmp_path / name, net, {"nimg": 123})
        copy = load_network(tmp_path / name)
        assert same(net, copy)
        assert copy.info["nimg"] == 123
        assert {name: getattr(copy, name) for name in spec["ema_attributes"]} == spec["ema_attributes"]
        case.expect("D", copy(case.tensor("x"), case.tensor("sigma"), labels))


@pytest.mark.filterwarnings("ignore:no attention")
@pytest.mark.parametrize("case", cases("edm", "snapshot"))
def test_training_goes_on_from_a_published_file(case):
    """Its own tensors, writable, with gradients once asked for."""
    net = load_network(case.path.parent / case.spec["file"]).requires_grad_(True)
    assert len({p.untyped_storage().data_ptr() for p in net.parameters()}) == len(list(net.parameters()))
    labels = case.tensor("class_labels") if case.spec["has_class_labels"] else None
    net(case.tensor("x"), case.tensor("sigma"), labels).square().sum().backward()
    with torch.no_grad():
        for p in net.parameters():
            p.sub_(1.0)


# Our own files


@pytest.mark.parametrize("name", ["network-snapshot-000001.pkl", "net.safetensors"])
def test_round_trip(net, tmp_path, name):
    net.train()
    sha256 = save_network(tmp_path / name, net, {"method": "edm", "nimg": 1000})
    loaded = load_network(tmp_path / name)
    assert same(net, loaded)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert loaded.config == net.config
    assert loaded.info["config"] == net.config
    assert (loaded.info["method"], loaded.info["path"], loaded.info["predicts"]) == ("edm", "ve", "data")
    assert loaded.sigma_max == math.inf
    assert len(sha256) == 64


def test_a_changed_range_survives(net, tmp_path):
    net.sigma_min, net.sigma_max = 0.002, 80.0
    save_network(tmp_path / "x.pkl", net)
    loaded = load_network(tmp_path / "x.pkl")
    assert (loaded.sigma_min, loaded.sigma_max) == (0.002, 80.0)


def test_extra_payload(net, tmp_path):
    save_network(tmp_path / "x.pkl", net, extra={"encoder": {"w": torch.ones(2)}})
    assert torch.equal(checkpoint.load(tmp_path / "x.pkl").payload["encoder"]["w"], torch.ones(2))
    with pytest.raises(ValueError, match="holds the network alone"):
        save_network(tmp_path / "x.safetensors", net, extra={"encoder": {}})


def test_only_networks_of_the_project_are_saved(tmp_path):
    with pytest.raises(ValueError, match=r"Linear cannot be saved.*networks\.build"):
        save_network(tmp_path / "x.pkl", torch.nn.Linear(2, 2))


def test_half_precision_weights_are_cast(net, tmp_path):
    info = {"config": net.config}
    save_half = {k: v.half() for k, v in net.state_dict().items()}
    checkpoint.save_safetensors(tmp_path / "x.safetensors", info, save_half)
    loaded = load_network(tmp_path / "x.safetensors")
    assert all(p.dtype == torch.float32 for p in loaded.parameters())


def snapshot(path, net, config=None, state=None):
    checkpoint.save(path, "snapshot", {"config": config or net.config}, {"ema": state or net.state_dict()})
    return path


def changed(state, **changes):
    state = {**state, **changes}
    return {k: v for k, v in state.items() if v is not None}


def test_loading_is_strict(net, tmp_path):
    state, path, key = net.state_dict(), tmp_path / "x.pkl", "model.map_layer0.weight"
    for broken, reason in (
        (changed(state, **{key: None}), f"lacks the tensor {key}"),
        (changed(state, **{"model.extra": torch.ones(1)}), "unknown tensor model.extra"),
        (changed(state, **{key: torch.ones(2, 2)}), rf"{key} has shape \[2, 2\], the network needs"),
        (changed(state, **{key: torch.ones_like(state[key]).long()}), "element type torch.int64"),
        ({"model." + k: v for k, v in state.items()}, "further differences"),
    ):
        with pytest.raises(ValueError, match=reason):
            load_network(snapshot(path, net, state=broken))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"class_name": "os.system"}, "class os.system, which is not part of this project"),
        ({"class_name": "MyNet"}, "would execute code"),
        ({"class_name": ["EDMPrecond"]}, "not part of this project"),
        ({"model_channels": 1 << 40}, "impossible argument"),
        ({"model_channels": 1 << 20}, "shape"),
        ({"num_blocks": 1 << 20}, "many more than"),
        ({"channel_mult": [1] * 200}, "many more than|cannot be built|resolution"),
        ({"channel_mult": [1] * 2000}, "impossible argument"),
        ({"model_channels": "many"}, "cannot be built|model_channels"),
        ({"model_channels": -16}, "x.pkl is refused"),
        ({"model_channels": 0}, "x.pkl is refused"),
        ({"evil": 1}, "evil"),
        ({"img_resolution": None}, "x.pkl is refused"),
    ],
)
def test_configurations_that_do_not_fit(net, tmp_path, change, reason):
    path = snapshot(tmp_path / "x.pkl", net, {**net.config, **change})
    with hostile.bounded(5), pytest.raises(ValueError, match=reason) as caught:
        load_network(path)
    assert "x.pkl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_snapshot_without_configuration(net, tmp_path):
    checkpoint.save(tmp_path / "x.pkl", "snapshot", {}, {"ema": net.state_dict()})
    with pytest.raises(ValueError, match="does not say how to rebuild"):
        load_network(tmp_path / "x.pkl")
    checkpoint.save(tmp_path / "x.pkl", "snapshot", {"config": net.config}, {"ema": {"a": 1}})
    with pytest.raises(ValueError, match="does not say how to rebuild"):
        load_network(tmp_path / "x.pkl")
    checkpoint.save(tmp_path / "x.pkl", "state", {"config": net.config}, {"ema": net.state_dict()})
    with pytest.raises(ValueError, match="a snapshot is needed"):
        load_network(tmp_path / "x.pkl")


def test_values_that_are_not_finite_are_reported(net, tmp_path):
    next(net.parameters()).data[0] = math.nan
    save_network(tmp_path / "x.pkl", net)
    with pytest.warns(UserWarning, match="not finite"):
        load_network(tmp_path / "x.pkl")


# Names


def test_unknown_source_names_what_is_near():
    with pytest.raises(ValueError, match="edm-cifar10-32x32-cond-vp"):
        load_network("edm-cifar10-32x32-cond")
    with pytest.raises(ValueError, match="names as cifar10"):
        load_network("xyzzy")


def test_published_addresses():
    edm = {alias: found for alias, found in PUBLISHED.items() if found.family == "edm"}
    assert len(edm) == 12
    for alias, found in edm.items():
        (url,) = found.urls
        assert url.startswith("https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/")
        assert url.endswith(f"/{alias}.pkl")
    assert set(DATASETS.values()) <= set(PUBLISHED)
    assert all(url.startswith("https://") for found in PUBLISHED.values() for url in found.urls)


def test_alias_offline(monkeypatch, tmp_path):
    monkeypatch.setenv("FEWSTEP_CACHE_DIR", str(tmp_path))
    offline = Checkpoint(urls=("http://127.0.0.1:9/a.pkl", "http://127.0.0.1:9/b.pkl"), family="edm", licence="none")
    monkeypatch.setitem(PUBLISHED, "offline", offline)
    tried = pytest.warns(UserWarning, match=r"a\.pkl cannot be downloaded.*trying the next address")
    with (
        tried,
        pytest.raises(
            ValueError, match=r"none of 2 addresses .*a\.pkl cannot be downloaded.*b\.pkl cannot be downloaded"
        ),
    ):
        load_network("offline")


def test_cached_alias_needs_no_connection(net, monkeypatch, tmp_path, capsys):
    from torch_utils import downloads

    monkeypatch.setenv("FEWSTEP_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(downloads, "_fetch", lambda url, part, _: part.write_bytes((tmp_path / "x.pkl").read_bytes()))
    save_network(tmp_path / "x.pkl", net)
    assert same(net, load_network("edm-cifar10-32x32-cond-vp", verbose=True))
    monkeypatch.setattr(downloads, "_fetch", None)
    assert same(net, load_network("edm-cifar10-32x32-cond-vp"))
    assert "Loading network from" in capsys.readouterr().out


def test_package_exports():
    assert networks.load_network is load_network


# Attacks


@pytest.mark.parametrize("name", hostile.networks())
def test_hostile_networks(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pkl"
    path.write_bytes(hostile.networks()[name])
    with hostile.watched(), hostile.bounded(5), pytest.raises(ValueError, match=r"x\.pkl") as caught:
        load_network(path)
    assert str(caught.value).isprintable()
    assert not (tmp_path / hostile.MARKER).exists()


@pytest.mark.parametrize("name", [*hostile.BODIES][::7])
def test_hostile_pickles_reach_no_network(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for container, wrap in hostile.CONTAINERS.items():
        path = tmp_path / f"{container}.pkl"
        path.write_bytes(wrap(hostile.BODIES[name][0]))
        with hostile.watched(), hostile.bounded(5), pytest.raises(ValueError, match=r"\.pkl"):
            load_network(path)
    assert not (tmp_path / hostile.MARKER).exists()


def test_hostile_source_text_is_ignored(tmp_path, monkeypatch):
    """A well-formed file whose embedded source is an attack loads as far as its data goes, and runs nothing."""
    monkeypatch.chdir(tmp_path)
    record = hostile.persistent(module_src=hostile.text(hostile.CODE), state=hostile.module_state())
    (tmp_path / "x.pkl").write_bytes(hostile.p2(hostile.items(ema=record)))
    with hostile.watched():
        assert to_network_spec(read_edm_pickle("x.pkl")["ema"]) == ("EDMPrecond", {}, {})
    assert not (tmp_path / hostile.MARKER).exists()


def test_rebuilding_a_network_does_not_import_the_compiler():
    code = """
import sys, torch, networks
small = {"img_resolution": 8, "img_channels": 1, "model_channels": 64, "num_blocks": 1, "channel_mult": [1, 2]}
with torch.device("meta"):
    networks.build("EDMPrecond", **small)
    networks.build("VEPrecond", **small, embedding_type="fourier", resample_filter=[1, 3, 3, 1])
    networks.build("EDMPrecond", **small, model_type="DhariwalUNet")
print("torch._dynamo" in sys.modules)
"""
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=root).stdout == b"False\n"
