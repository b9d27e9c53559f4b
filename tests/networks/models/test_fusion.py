"""The networks of IDFF: golden numbers of their trunks, published shapes, two heads."""

import pytest
import torch
from golden_cases import cases, fill_weights

import networks
from networks.trunks.adm_unet import ADMUNet
from networks.trunks.mlp import SELUMLP


def trunk(spec):
    """The trunk of a golden definition; its inputs are those of the trunk."""
    config = spec["config"]
    if spec["type"] in ("mlp", "mlp_embedding"):
        return SELUMLP(
            1, config["dim"], config["out_dim"], config["w"], config.get("time_embed", 0), config["time_varying"]
        )
    channels, size, _ = config["dim"]
    return ADMUNet(
        size, channels, channels * (1 + config["learn_sigma"]), config["num_channels"],
        num_res_blocks=config["num_res_blocks"], channel_mult=config["channel_mult"], dropout=config["dropout"],
        attention_resolutions=[size // int(r) for r in config["attention_resolutions"].split(",")],
        num_heads=config["num_heads"], num_head_channels=config["num_head_channels"],
        use_scale_shift_norm=config["use_scale_shift_norm"], resblock_updown=config["resblock_updown"],
        use_new_attention_order=config["use_new_attention_order"],
        label_dim=config.get("num_classes", 1000) if config["class_cond"] else 0,
    )  # fmt: skip


def shapes(module):
    return {k: list(v.shape) for k, v in module.state_dict().items()}


@pytest.mark.parametrize("case", cases("idff", "network_forward"))
def test_forward(case):
    spec = case.networks[case.spec["params"]["network"]]
    net = trunk(spec)
    assert shapes(net) == spec["state_dict"]
    fill_weights(net, spec["fill"]["keep_computed"])
    net.eval()
    x = case.input("x")
    if spec["type"] == "unet":
        t, label = case.input("t"), case.input("label")
        own = net(x, t.reshape(-1), *(() if label is None else (label.long(),)))
    elif spec["config"]["time_varying"]:  # the time is the last column
        index = case.input("index")
        labels = None if index is None else torch.nn.functional.one_hot(index.long().flatten(), net.label_dim)
        own = net(x[:, :-1], x[:, -1], labels)
    else:
        own = net(x, torch.zeros(1))
    case.check("out", own)


@pytest.mark.parametrize("case", cases("idff", "network_keys"))
def test_published_shapes(case):
    with torch.device("meta"):
        net = trunk(case.spec["params"])
    expect = case.spec["expect"]
    assert shapes(net) == expect["state_dict"]["value"]
    assert sum(p.numel() for p in net.parameters()) == expect["n_params"]["value"]


def small(**kwargs):
    torch.manual_seed(0)
    return networks.build(
        "FusionNetwork", img_resolution=8, img_channels=2, model_channels=32, num_res_blocks=1, channel_mult=[1, 2],
        attention_resolutions=[2], use_scale_shift_norm=False, num_head_channels=32, **kwargs,
    )  # fmt: skip


def test_heads():
    net = fill_weights(small(label_dim=3)).eval()
    x, labels = torch.randn(4, 2, 8, 8), torch.eye(3)[[0, 1, 2, 0]]
    estimate, second = net.heads(x, torch.tensor(0.3), labels)
    assert estimate.shape == second.shape == x.shape
    assert torch.equal(net(x, 0.3, labels), estimate)
    assert not torch.equal(net(x, 0.4, labels), estimate)
    assert not torch.equal(net(x, 0.3, labels.flip(0)), estimate)
    own = net.model(torch.cat([x, x], 1), torch.full([4], 0.7), labels)
    torch.testing.assert_close(torch.cat([estimate, second], 1), own)


def test_one_head():
    estimate, second = small(heads=1).eval().heads(torch.randn(2, 2, 8, 8), 0.5)
    assert second is None
    assert estimate.shape == (2, 2, 8, 8)


@pytest.mark.parametrize("heads", [1, 2])
def test_residual(heads):
    """The trunk says what is added to a state, in units of the root mean square of the way left: none at the data."""
    net = fill_weights(small(heads=heads, sigma=0.5, residual=True)).eval()
    x, t = torch.randn(3, 2, 8, 8), torch.tensor([0.0, 0.3, 1.0])
    out = net.model(torch.cat([x] * heads, 1), 1 - t)
    left = (t**2 + 0.25 * t * (1 - t)).sqrt()[:, None, None, None]
    estimate, second = net.heads(x, t)
    torch.testing.assert_close(estimate, x + left * out[:, :2])
    torch.testing.assert_close(estimate[0], x[0], rtol=0, atol=0)
    assert (second is None) == (heads == 1)
    if heads == 2:
        torch.testing.assert_close(second, out[:, 2:])


def test_points_with_labels_need_them():
    net = networks.build("FusionNetwork", img_resolution=1, img_channels=2, label_dim=4, model_type="SELUMLP", width=16)
    x = torch.randn(1, 2, 1, 1)
    assert net(x, 0.5, torch.eye(4)[:1]).shape == x.shape  # a batch of one keeps its axis
    with pytest.raises(ValueError, match="trained with labels"):
        net(x, 0.5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"heads": 3}, "heads=3"), ({"score_target": "x"}, "score target 'x'"), ({"sigma": -1.0}, "0 or more"),
        ({"model_type": "MLP"}, "is unknown"), ({"bridge_type": "target", "residual": True}, "of Brownian bridges"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        small(**given)
