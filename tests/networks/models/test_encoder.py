"""Velocity networks, coupling encoders, their published configurations and checkpoints, small networks for points."""

import json

import numpy as np
import pytest
import torch
from golden_cases import cases
from mac_golden import entry, expect, fill, inputs

import networks
from networks.models.encoder import CouplingEncoder
from networks.models.velocity import VelocityNetwork
from networks.published.flow_configs import PRESETS, read_config, to_kwargs
from networks.trunks.mlp import MLP, FourierMLP


def velocity_net(config, train=False):
    return networks.build(**to_kwargs(config)).train(train)


def encoder_net(config, train=False):
    return networks.build(**to_kwargs(config, encoder=True)).train(train)


def points_net(params):
    if params["arch"] == "mlp":
        return MLP(1, params["input_dim"], params["output_dim"], hidden=params["hidden"])
    sizes = {"channels": params["channels"], "num_layers": params["num_layers"]}
    return FourierMLP(1, params["input_dim"], params["output_dim"], **sizes)


@pytest.mark.parametrize("which", ["config", "resolved"])
@pytest.mark.parametrize("case", cases("curvature", "velocity_network"))
def test_velocity_network(case, which):
    params, given = case.spec["params"], inputs(case)
    net = velocity_net(params[which], params["train"])
    fill(net.model, case.spec["state_dict"], case, area="curvature")
    assert sum(p.numel() for p in net.parameters()) == entry(case.spec["state_dict"], "curvature")["num_params"]
    with torch.no_grad():
        expect(case, "v", net(given["x"], given["t"]))


@pytest.mark.parametrize("case", cases("curvature", "encoder_network"))
def test_encoder_network(case):
    params, given = case.spec["params"], inputs(case)
    net = encoder_net(params["config"], params.get("train", False))
    fill(net, case.spec["state_dict"], case, area="curvature")
    with torch.no_grad():
        out = net(given["x"], given["eps"], given["t"])
    for role in case.spec["expect"]:
        expect(case, role, getattr(out, role))


@pytest.mark.parametrize("case", cases("curvature", "net_2d"))
def test_net_2d(case):
    given = inputs(case)
    net = fill(points_net(case.spec["params"]), case.spec["state_dict"], case, area="curvature")
    with torch.no_grad():
        expect(case, "out", net(given["x"], given["t"]))


@pytest.mark.parametrize("case", cases("curvature", "state_dict"))
def test_state_dict_is_used_by_a_network(case):
    assert case.spec["shapes"]
    counted = sum(int(np.prod(s)) for k, s in case.spec["shapes"].items() if k not in case.spec["buffers"])
    assert case.spec.get("num_params") in (None, counted)


# Parameters, state-dict entries and buffers of the published configurations.
SHIPPED = {
    ("mnist", "de"): (2_155_201, 262, 8), ("mnist", "en"): (2_155_778, 262, 8),
    ("cifar10", "de"): (55_732_739, 424, 8), ("cifar10", "en"): (2_208_966, 280, 8),
    ("ffhq", "de"): (61_804_419, 552, 12), ("ffhq", "en"): (2_475_654, 364, 12),
    ("afhq", "de"): (61_804_419, 552, 12), ("afhq", "en"): (2_475_654, 364, 12),
    ("celebahq256", "de"): (60_486_019, 522, 12), ("celebahq256", "en"): (2_425_350, 346, 12),
}  # fmt: skip


@pytest.mark.parametrize(("name", "role"), SHIPPED)
def test_sizes_of_the_presets(name, role):
    with torch.device("meta"):
        net = networks.build(**to_kwargs(PRESETS[name][role], role == "en"))
    trunk = net.encoder if role == "en" else net.model
    sizes = sum(p.numel() for p in net.parameters()), len(trunk.state_dict()), len(list(trunk.buffers()))
    assert sizes == SHIPPED[name, role]


def test_size_of_the_adm_network():
    config = {"unet_type": "adm", "image_size": 32, "in_channels": 3, "out_channels": 3, "model_channels": 32}
    with torch.device("meta"):
        net = velocity_net(config)
    assert (sum(p.numel() for p in net.parameters()), len(net.model.state_dict())) == (7_593_763, 450)


ADM = {"img_resolution": 8, "in_channels": 2, "out_channels": 2, "model_channels": 32, "channel_mult": [1, 2],
       "num_res_blocks": 1, "attention_resolutions": [1], "num_heads": 2}  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"resblock_updown": True},
        {"conv_resample": False},
        {"use_scale_shift_norm": False},
        {"num_head_channels": 16},
    ],
)
def test_adm_variants_run_and_learn(options):
    net = networks.models.velocity.TRUNKS["ADMUNet"](**(ADM | options))
    out = net(torch.randn(2, 2, 8, 8), torch.tensor([0.3, 0.7]))
    assert out.shape == (2, 2, 8, 8)
    assert (out == 0).all()  # the last convolution starts at 0
    (out - 1).square().sum().backward()
    assert net.out[2].weight.grad.abs().sum() > 0


def test_adm_attention_orders_are_permutations_of_each_other():
    old = networks.models.velocity.TRUNKS["ADMUNet"](**ADM).eval()
    new = networks.models.velocity.TRUNKS["ADMUNet"](**(ADM | {"use_new_attention_order": True})).eval()
    for p in old.parameters():
        torch.nn.init.normal_(p, std=0.1)
    state = old.state_dict()
    for key, value in state.items():
        if ".qkv." in key:
            heads = value.reshape(2, 3, value.shape[0] // 6, *value.shape[1:])
            state[key] = heads.transpose(0, 1).reshape(value.shape)
    new.load_state_dict(state)
    x, t = torch.randn(2, 2, 8, 8), torch.tensor([0.5])
    torch.testing.assert_close(old(x, t), new(x, t))


def test_a_fresh_model_is_the_independent_coupling():
    """Up to the tiny initial weights, v = 0, mu = 0, logvar = 0."""
    x, eps = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    encoder = encoder_net(PRESETS["digits"]["en"])
    torch.testing.assert_close(encoder(x, eps).z, eps, atol=1e-2, rtol=0)
    assert velocity_net(PRESETS["digits"]["de"])(x, torch.tensor(0.5)).abs().max() < 1e-2


def test_time_scale_and_levels():
    net = VelocityNetwork(1, 2, model_type="MLP", time_scale=10.0)
    x = torch.randn(3, 2, 1, 1)
    want = net.model(x, torch.tensor([5.0]))
    torch.testing.assert_close(net(x, 0.5), want)
    torch.testing.assert_close(net(x, torch.full((3,), 0.5, dtype=torch.float64)), want)
    torch.testing.assert_close(net(x, torch.full((3, 2, 1, 1), 0.5)), want)


def test_points_may_be_flat():
    net = CouplingEncoder(1, 2, model_type="FourierMLP", channels=8)
    x, eps = torch.randn(4, 2), torch.randn(4, 2)
    flat, image = net(x, eps), net(x[:, :, None, None], eps[:, :, None, None])
    for a, b in zip(flat, image, strict=True):
        assert a.shape == (4, 2)
        torch.testing.assert_close(a, b[:, :, 0, 0])


def test_standard_prior_scales_channels():
    net = VelocityNetwork(1, 2, model_type="MLP", prior_std=[6, 1])
    noise = torch.randn(5, 2, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(net.start_noise(noise), noise * torch.tensor([6.0, 1.0]).reshape(2, 1, 1).double())
    with pytest.raises(ValueError, match="matched"):
        net.start_noise(noise, "matched")


def test_matched_prior_has_its_moments():
    net = VelocityNetwork(1, 4, model_type="MLP", prior_rank=1)
    u = torch.tensor([[0.5, -0.5, 0.5, 0.5]])  # of length 1 also in float32, the dtype of the buffers
    net.prior.directions.copy_(u)
    net.prior.gains.fill_(3.0)
    net.prior.rest.fill_(0.5)
    net.prior.std.copy_(torch.tensor([1.0, 2.0, 4.0, 1.0]).reshape(4, 1, 1))
    z = net.start_noise(torch.eye(4, dtype=torch.float64).reshape(4, 4, 1, 1)).flatten(1)  # rows: images of e_i
    std = torch.diag(torch.tensor([1.0, 2.0, 4.0, 1.0])).double()
    want = std @ (0.25 * torch.eye(4) + 8.75 * u.T @ u).double() @ std
    torch.testing.assert_close(z.T @ z, want)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"unet_type": "vit"}, "songunet, adm"),
        ({"model_chanels": 3}, "model_chanels"),
        ({"in_channels": None}, "in_channels"),
        ({"out_channels": 2}, "2 output channels"),
    ],
)
def test_bad_configuration(change, words):
    config = {k: v for k, v in (PRESETS["mnist"]["de"] | change).items() if v is not None}
    with pytest.raises(ValueError, match=words):
        to_kwargs(config)


def test_bad_config_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="it is not JSON"):
        read_config(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="object"):
        read_config(path)


def test_bad_arguments():
    with pytest.raises(ValueError, match="no class labels"):
        VelocityNetwork(1, 2, label_dim=3, model_type="MLP")
    with pytest.raises(ValueError, match="prior_std"):
        VelocityNetwork(1, 2, model_type="MLP", prior_std=[1.0])
    with pytest.raises(ValueError, match="prior_rank"):
        VelocityNetwork(1, 2, model_type="MLP", prior_rank=3)
    with pytest.raises(ValueError, match="SongUNet"):
        networks.build("VelocityNetwork", img_resolution=8, img_channels=1, model_type="DhariwalUNet")
    with pytest.raises(ValueError, match="multiples of 32"):
        velocity_net({"unet_type": "adm", **ADM, "model_channels": 48})
    assert json.dumps(PRESETS)  # plain data


def published(net, path, legacy=False):
    """A file as the original program writes it."""
    inner = net.model if isinstance(net, VelocityNetwork) else net
    torch.save(inner.state_dict(), path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize(("preset", "legacy"), [("mnist", False), ("digits", True), ("two_gaussians", False)])
def test_published_files_are_recognised(tmp_path, preset, legacy):
    net = velocity_net(PRESETS[preset]["de"])
    path = published(net, tmp_path / "flow_model_1000_ema.pth", legacy)
    encoder = encoder_net(PRESETS[preset]["en"])
    forward = published(encoder, tmp_path / "forward_model_1000_ema.pth", legacy)
    for config in (None, preset):
        loaded = networks.load_network(path, config=config)
        assert not loaded.training
        assert loaded.info["preset"] == preset
        assert (loaded.path, loaded.predicts, loaded.start, loaded.gaussian_noise) == (
            "linear", "velocity", "exact", False,
        )  # fmt: skip
        for key, value in net.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value)
        again = networks.load_encoder(forward, config=config)
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), encoder.parameters(), strict=True))
    networks.save_network(tmp_path / "net.pkl", loaded, loaded.info)
    assert networks.load_network(tmp_path / "net.pkl").config == loaded.config


def test_published_file_by_configuration(tmp_path):
    config = PRESETS["digits"]["de"] | {"model_channels": 8, "num_params": 1.5}
    path = published(velocity_net(config), tmp_path / "flow_model.pth")
    with pytest.raises(ValueError, match="no known network"):
        networks.load_network(path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    for source in (config, tmp_path / "config.json", str(tmp_path / "config.json")):
        assert networks.load_network(path, config=source).model.map_layer0.weight.shape == (32, 8)
    with pytest.raises(ValueError, match="shape"):
        networks.load_network(path, config="digits")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channel_mult_emb": 0}, "channel_mult_emb is 0: give a whole number of 1 or more"),
        ({"channel_mult": [1, 0]}, r"channel_mult is \[1, 0\]: give a list, each a whole number of 1 or more"),
        ({"num_blocks": "two"}, 'num_blocks is "two": give a whole number'),
        ({"num_blocks": True}, "num_blocks is true"),
        ({"dropout": -0.1}, "dropout is -0.1: give a number of 0 or more"),
        ({"embedding_type": 3}, "embedding_type is 3: give a text"),
    ],
)
def test_configuration_with_wrong_values(change, message):
    with pytest.raises(ValueError, match=message):
        to_kwargs({**PRESETS["digits"]["de"], **change})


def test_published_file_is_strict(tmp_path):
    net = velocity_net(PRESETS["digits"]["de"])
    state = net.model.state_dict()
    state.pop("map_layer0.bias")
    torch.save(state, tmp_path / "flow_model.pth")
    with pytest.raises(ValueError, match="map_layer0"):
        networks.load_network(tmp_path / "flow_model.pth", config="digits")


def test_configuration_of_a_file_that_has_its_own(tmp_path):
    net = velocity_net(PRESETS["digits"]["de"])
    networks.save_network(tmp_path / "net.pkl", net)
    with pytest.raises(ValueError, match="leave out"):
        networks.load_network(tmp_path / "net.pkl", config="digits")
    with pytest.raises(ValueError, match="holds no encoder"):
        networks.load_encoder(tmp_path / "net.pkl")


def test_only_tensors_are_read(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("executed",)

    torch.save({"a": Evil()}, tmp_path / "flow_model.pth")
    with pytest.raises(ValueError, match="refused"):
        networks.load_network(tmp_path / "flow_model.pth")
