"""Files that other programs changed: renamed and converted tensors are loaded and said, damage is refused."""

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

import networks

KWARGS = {
    "img_resolution": 8, "img_channels": 1, "label_dim": 0, "model_type": "SongUNet", "model_channels": 8,
    "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [],
}  # fmt: skip


@pytest.fixture
def net(tmp_path):
    net = networks.build("EDMPrecond", **KWARGS)
    networks.save_network(tmp_path / "net.safetensors", net)
    return net


def rewritten(path, change):
    """The file again, as tools do it that keep the description."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = change(safetensors.torch.load_file(path))
    safetensors.torch.save_file(tensors, path, metadata=metadata)
    return path


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_of_wrappers(net, tmp_path, prefix):
    path = rewritten(tmp_path / "net.safetensors", lambda ts: {prefix + k: v for k, v in ts.items()})
    with pytest.warns(UserWarning, match=f"begin with '{prefix.split('.')[0]}"):
        loaded = networks.load_network(path)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in loaded.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precision(net, tmp_path, dtype):
    path = rewritten(tmp_path / "net.safetensors", lambda ts: {k: v.to(dtype) for k, v in ts.items()})
    with pytest.warns(UserWarning, match=str(dtype).removeprefix("torch.")):
        loaded = networks.load_network(path)
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, net.state_dict()[name].to(dtype).float())


def test_changed_values_are_damage(net, tmp_path):
    path = rewritten(tmp_path / "net.safetensors", lambda ts: {k: v + 1 for k, v in ts.items()})
    with pytest.raises(ValueError, match="SHA-256"):
        networks.load_network(path)
    path = rewritten(path, lambda ts: {("module." if i else "") + k: v for i, (k, v) in enumerate(ts.items())})
    with pytest.raises(ValueError, match="SHA-256"):
        networks.load_network(path)
