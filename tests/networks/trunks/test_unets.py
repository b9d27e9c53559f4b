"""SongUNet and DhariwalUNet: published layouts, order of random draws, modes of computation, errors."""

import math

import pytest
import torch
from golden_cases import cases
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from networks.table import build
from networks.trunks.dhariwal_unet import DhariwalUNet
from networks.trunks.layers import Conv2d, GroupNorm, Init, Linear
from networks.trunks.song_unet import SongUNet
from networks.trunks.unet_block import UNetBlock

DDPMPP = {"model_channels": 32, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
NCSNPP = DDPMPP | {
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
}
ADM = {"model_channels": 64, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}


def make(name, **kwargs):
    presets = {"ddpmpp": (SongUNet, DDPMPP), "ncsnpp": (SongUNet, NCSNPP), "adm": (DhariwalUNet, ADM)}
    cls, preset = presets[name]
    torch.manual_seed(0)
    return cls(**({"img_resolution": 8, "in_channels": 3, "out_channels": 3} | preset | kwargs)).eval()


def awaken(net):
    """Unit-gain weights everywhere, so that no branch is hidden behind a zero initialisation."""
    torch.manual_seed(1)
    for p in net.parameters():
        p.data = torch.randn_like(p) / math.sqrt(p[0].numel()) if p.ndim > 1 else 1 + 0.1 * torch.randn_like(p)
    return net


@pytest.mark.parametrize("case", cases("edm", "state_dict_shapes"))
def test_published_layout(case):
    with torch.device("meta"):
        net = build(case.spec["precond"], **case.spec["kwargs"])
    state = net.state_dict()
    assert [[key, list(value.shape)] for key, value in state.items()] == case.spec["state_dict"]
    assert len(state) == case.spec["num_tensors"]
    assert sum(p.numel() for p in net.parameters()) == case.spec["num_params"]
    assert {str(value.dtype) for value in state.values()} == {f"torch.{case.spec['dtype']}"}


def test_cifar10_network_runs():
    net = build(
        "EDMPrecond", img_resolution=32, img_channels=3, label_dim=10, augment_dim=9, model_type="SongUNet",
        channel_mult=[2, 2, 2], dropout=0.13,
    ).eval()  # fmt: skip
    x = torch.randn(2, 3, 32, 32)
    sigma = torch.tensor([0.01, 5.0])
    with torch.no_grad():
        data = net(x, sigma, torch.eye(10)[:2])
    # the output convolution starts near zero: D is c_skip * x up to about 1e-5
    torch.testing.assert_close(data, 0.25 / (sigma.square() + 0.25).reshape(2, 1, 1, 1) * x, rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("cls", "settings", "zero", "attn"),
    [
        (
            SongUNet,
            {"num_heads": 1, "adaptive_scale": False, "resample_proj": True, "init": Init("xavier_uniform")},
            Init("xavier_uniform", 1e-5),
            Init("xavier_uniform", math.sqrt(0.2)),
        ),
        (
            DhariwalUNet,
            {"init": Init("kaiming_uniform", math.sqrt(1 / 3), math.sqrt(1 / 3))},
            Init("kaiming_uniform", 0, 0),
            None,
        ),
    ],
)
def test_construction_draws_in_state_dict_order(cls, settings, zero, attn):
    """A network equals its parts built one after the other from the same seed: labels, mapping, encoder, decoder."""
    sizes = {"model_channels": 64, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [4]}
    torch.manual_seed(5)
    net = cls(4, 3, 3, label_dim=6, augment_dim=2, **sizes)
    torch.manual_seed(5)
    init = settings["init"]
    block = {"emb_channels": 256, "init_zero": zero, "init_attn": attn} | settings
    if cls is SongUNet:
        head = [Linear(6, 64, init=init), Linear(2, 64, bias=False, init=init)]
        head += [Linear(64, 256, init=init), Linear(256, 256, init=init)]
    else:
        head = [Linear(2, 64, bias=False, init=zero), Linear(64, 256, init=init), Linear(256, 256, init=init)]
        head += [Linear(6, 256, bias=False, init=Init("kaiming_normal", math.sqrt(6)))]
    parts = [
        *head,
        Conv2d(3, 64, 3, init=init),
        UNetBlock(64, 64, attention=True, **block),
        UNetBlock(64, 64, attention=True, **block),
        UNetBlock(64, 64, **block),
        UNetBlock(128, 64, attention=cls is DhariwalUNet, **block),
        UNetBlock(128, 64, attention=True, **block),
        Conv2d(64, 3, 3, init=zero),
    ]
    own = [p for name, p in net.named_parameters() if "aux_norm" not in name and "out_norm" not in name]
    expected = [p for part in parts for p in part.parameters()]
    assert [p.shape for p in own] == [p.shape for p in expected]
    assert all(torch.equal(a, b) for a, b in zip(own, expected, strict=True))


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp", "adm"])
def test_labels_reach_the_output(name):
    net = awaken(make(name, label_dim=4, augment_dim=2)).double()  # the same function in two ways: in float64
    x, c_noise = torch.randn(2, 3, 8, 8).double(), torch.tensor([0.3, -0.2]).double()
    labels, augment = torch.eye(4)[:2].double(), torch.tensor([[1.0, 0.0], [0.0, 2.0]]).double()
    full = net(x, c_noise, labels, augment)
    assert full.shape == x.shape
    for other in (
        net(x, c_noise, labels, None),
        net(x, c_noise, labels.flip(0), augment),
        net(x, c_noise, None, augment),
    ):
        assert (full - other).abs().amax() > 1e-3
    torch.testing.assert_close(net(x, c_noise, labels, torch.zeros(2, 2).double()), net(x, c_noise, labels))
    torch.testing.assert_close(net(x, c_noise), net(x, c_noise, torch.zeros(2, 4).double()))
    torch.testing.assert_close(net(x, c_noise[:1]), net(x, c_noise[:1].expand(2)))


@pytest.mark.parametrize("name", ["ddpmpp", "adm"])
def test_label_dropout_drops_whole_labels_in_training_only(name):
    net = awaken(make(name, label_dim=4, label_dropout=0.5, dropout=0))
    n = 32
    x, labels = torch.randn(1, 3, 8, 8).expand(n, -1, -1, -1), torch.eye(4)[[2]].expand(n, -1)
    c_noise = torch.zeros(1)
    labelled, unlabelled = (net(x[:1], c_noise, lab) for lab in (labels[:1], None))
    torch.testing.assert_close(net(x, c_noise, labels), labelled.expand(n, -1, -1, -1), rtol=0, atol=1e-4)
    out = net.train()(x, c_noise, labels)
    kept = [bool(torch.allclose(o, labelled[0], atol=1e-4)) for o in out]
    dropped = [bool(torch.allclose(o, unlabelled[0], atol=1e-4)) for o in out]
    assert all(a != b for a, b in zip(kept, dropped, strict=True))
    assert 4 < sum(kept) < 28


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp", "adm"])
def test_dropout_acts_in_training_only(name):
    net = awaken(make(name, dropout=0.5))
    x, c_noise = torch.randn(1, 3, 8, 8), torch.zeros(1)
    assert torch.equal(net(x, c_noise), net(x, c_noise))
    net.train()
    assert not torch.equal(net(x, c_noise), net(x, c_noise))


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp", "adm"])
def test_channels_last_gives_the_same_image(name):
    net = awaken(make(name))
    x, c_noise = torch.randn(2, 3, 8, 8), torch.tensor([0.1, 0.7])
    expected = net(x, c_noise)
    net.to(memory_format=torch.channels_last)
    out = net(x.to(memory_format=torch.channels_last), c_noise)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp", "adm"])
def test_no_block_turns_the_layout(name, layout):
    net = awaken(make(name)).to(memory_format=layout)
    turned = []

    def check(module, inputs, output):
        if not (output.is_contiguous(memory_format=layout) and inputs[0].is_contiguous(memory_format=layout)):
            turned.append(module)

    blocks = [m for m in net.modules() if isinstance(m, (UNetBlock, GroupNorm)) or getattr(m, "weight_pad", 0)]
    for block in blocks:
        block.register_forward_hook(check)
    net(torch.randn(2, 3, 8, 8).to(memory_format=layout), torch.tensor([0.1, 0.7]))
    assert len(blocks) > 20
    assert turned == []


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp", "adm"])
def test_trunk_follows_the_dtype_of_x_and_the_embedding_stays_float32(name):
    net = awaken(make(name, label_dim=4))
    seen = {}
    for key, module in net.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _m, _i, out, key=key: seen.update({key: out.dtype}))
    x, c_noise, labels = torch.randn(2, 3, 8, 8), torch.zeros(2), torch.eye(4)[:2]
    expected = net(x, c_noise, labels)
    out = net(x.to(torch.bfloat16), c_noise, labels)
    embedding = {key for key in seen if key.startswith("map_") or key.endswith("affine")}
    assert embedding
    assert {seen[key] for key in embedding} == {torch.float32}
    assert {dtype for key, dtype in seen.items() if key not in embedding} == {torch.bfloat16}
    assert (out.float() - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp", "adm"])
@sdpa_kernel(SDPBackend.MATH)
def test_second_derivatives(name):
    net = awaken(make(name)).double()
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    c_noise = torch.zeros(1, dtype=torch.float64)
    direction = torch.randn_like(x)

    def slope(x):
        (grad,) = torch.autograd.grad(net(x, c_noise).square().mean(), x, create_graph=True)
        return (grad * direction).sum()

    (second,) = torch.autograd.grad(slope(x), x)
    eps = 1e-5
    step = torch.randn_like(x) / x.numel() ** 0.5
    expected = (slope(x + eps * step) - slope(x - eps * step)) / (2 * eps)
    torch.testing.assert_close((second * step).sum(), expected.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp", "adm"])
@pytest.mark.parametrize("training", [False, True])
def test_compiles_without_graph_breaks(name, training):
    net = awaken(make(name, label_dim=4, label_dropout=0.1, dropout=0)).train(training)
    net.label_dropout = 0.1 if training else 0
    x, c_noise, labels = torch.randn(2, 3, 8, 8), torch.zeros(2), torch.eye(4)[:2]
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.manual_seed(0)
    expected = net(x, c_noise, labels)
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(x, c_noise, labels), expected)


def test_narrow_adm_says_once_where_attention_is_missing():
    with pytest.warns(
        UserWarning, match=r"no attention in enc\.8x8_block0, dec\.8x8_block0, dec\.8x8_block1"
    ) as caught:
        net = make("adm", model_channels=32, attn_resolutions=[8, 4])
    assert len(caught) == 1
    assert not any("qkv" in key for key in net.state_dict() if "8x8" in key)
    assert any("enc.4x4_block0.qkv" in key for key in net.state_dict())


@pytest.mark.filterwarnings("error")
def test_wide_networks_do_not_warn():
    make("adm")
    make("ddpmpp")


@pytest.mark.parametrize("make_decoder", ["standard", "skip"])
@pytest.mark.parametrize("make_encoder", ["standard", "skip", "residual"])
def test_every_encoder_and_decoder_combines(make_encoder, make_decoder):
    net = awaken(make("ddpmpp", channel_mult=[1, 2, 2], encoder_type=make_encoder, decoder_type=make_decoder))
    x = torch.randn(2, 3, 8, 16, requires_grad=True)
    out = net(x, torch.zeros(1))
    assert out.shape == x.shape
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("ddpmpp", {"img_resolution": 10, "channel_mult": [1, 1, 1]}, "resolution 10 cannot be halved 2 times"),
        ("adm", {"img_resolution": 9}, "resolution 9 cannot be halved 1 times"),
        ("ddpmpp", {"channel_mult": []}, "channel_mult is empty"),
        ("ddpmpp", {"embedding_type": "sine"}, "embedding_type 'sine' is unknown: choose one of positional, fourier"),
        ("ddpmpp", {"encoder_type": "full"}, "encoder_type 'full' is unknown"),
        ("ddpmpp", {"decoder_type": "residual"}, "decoder_type 'residual' is unknown"),
        ("ddpmpp", {"resample_filter": [1, 2, 1]}, "resample_filter has 3 taps"),
        ("ddpmpp", {"model_channels": 144}, "cannot split 144 channels"),
        ("adm", {"model_channels": 112, "channel_mult": [2, 2]}, "cannot be shared equally by 3 attention heads"),
    ],
)
def test_sizes_that_do_not_fit(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(name, **kwargs)


def test_block_without_change_has_no_skip_layer():
    assert UNetBlock(32, 32, 8).skip is None
    assert list(UNetBlock(32, 32, 8, down=True).skip.state_dict()) == ["resample_filter"]
    assert UNetBlock(32, 32, 8, down=True, resample_proj=True).skip.weight.shape == (32, 32, 1, 1)
    assert isinstance(UNetBlock(32, 64, 8).skip, nn.Module)
