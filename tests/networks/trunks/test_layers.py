"""Primitive layers: golden numbers, closed forms, agreement of fast and plain forms, errors."""

import math

import numpy as np
import pytest
import torch
from golden_cases import cases, fill_weights
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from networks.trunks.layers import Conv2d, FourierEmbedding, GroupNorm, Init, Linear, PositionalEmbedding, attention


@pytest.mark.parametrize("case", cases("edm", "resample_conv"))
def test_resample_conv(case):
    names = ("in_channels", "out_channels", "kernel", "bias", "up", "down", "resample_filter", "fused_resample")
    conv = Conv2d(**{name: case.spec[name] for name in names})
    fill_weights(conv, case.spec["constant_keys"], case.spec["key_prefix"])
    source = case.spec["input"]
    x = np.random.RandomState(source["randomstate_seed"]).standard_normal(source["shape"]).astype(source["dtype"])
    case.expect("out", conv(torch.from_numpy(x)))


@pytest.mark.parametrize("case", cases("edm", "positional_embedding"))
def test_positional_embedding(case):
    embedding = PositionalEmbedding(*(case.spec[name] for name in ("num_channels", "max_positions", "endpoint")))
    case.expect("out", embedding(case.tensor("c_noise")))
    assert not embedding.state_dict()


def test_box_filter_is_nearest_neighbour_and_mean():
    x = torch.randn(2, 5, 6, 4)
    up = Conv2d(5, 5, kernel=0, up=True)
    down = Conv2d(5, 5, kernel=0, down=True)
    torch.testing.assert_close(up(x), F.interpolate(x, scale_factor=2), rtol=0, atol=0)
    torch.testing.assert_close(down(x), F.avg_pool2d(x, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kernel", [0, 1, 3])
@pytest.mark.parametrize("taps", [[1, 1], [1, 3, 3, 1], [1, 3, 6, 6, 3, 1]])
def test_even_filters_double_and_halve_exactly_and_keep_constants(direction, fused, kernel, taps):
    conv = Conv2d(4, 4, kernel, bias=False, resample_filter=taps, fused_resample=fused, **{direction: True})
    if kernel:
        conv.weight.data = torch.eye(4)[:, :, None, None] * F.pad(torch.ones(1, 1), [kernel // 2] * 4)
    y = conv(torch.full((1, 4, 16, 24), 3.0))
    assert y.shape[2:] == ((32, 48) if direction == "up" else (8, 12))
    torch.testing.assert_close(y[..., 3:-3, 3:-3], torch.full_like(y[..., 3:-3, 3:-3], 3.0))  # away from the border


def test_filter_is_state_only_where_it_is_used():
    assert list(Conv2d(2, 2, 3).state_dict()) == ["weight", "bias"]
    assert list(Conv2d(2, 2, 0, down=True).state_dict()) == ["resample_filter"]
    assert list(Conv2d(2, 2, 3, bias=False, up=True).state_dict()) == ["weight", "resample_filter"]


def test_up_and_down_at_once_is_an_error():
    with pytest.raises(ValueError, match="not both"):
        Conv2d(2, 2, 3, up=True, down=True)


@pytest.mark.parametrize(
    ("mode", "normal", "scale"),
    [
        ("xavier_uniform", False, math.sqrt(6 / (27 + 45))),
        ("xavier_normal", True, math.sqrt(2 / (27 + 45))),
        ("kaiming_uniform", False, math.sqrt(3 / 27)),
        ("kaiming_normal", True, math.sqrt(1 / 27)),
    ],
)
def test_init_draws_weight_then_bias_from_the_global_generator(mode, normal, scale):
    torch.manual_seed(3)
    conv = Conv2d(3, 5, kernel=3, init=Init(mode, weight=0.5, bias=0.25))
    torch.manual_seed(3)
    shapes = ((5, 3, 3, 3), (5,))
    weight, bias = (torch.randn(s) if normal else 2 * torch.rand(s) - 1 for s in shapes)
    torch.testing.assert_close(conv.weight.data, 0.5 * scale * weight)
    torch.testing.assert_close(conv.bias.data, 0.25 * scale * bias)


def test_zero_gain_still_draws():
    states = []
    for gain in (0.0, 1.0):
        torch.manual_seed(0)
        layer = Linear(4, 3, init=Init(weight=gain, bias=gain))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert layer.weight.abs().min() > 0


def test_unknown_init_mode():
    with pytest.raises(ValueError, match="xavier_uniform, xavier_normal, kaiming_uniform, kaiming_normal"):
        Init("orthogonal")


def test_linear():
    layer = Linear(4, 3, init=Init(bias=1))
    x = torch.randn(2, 4)
    torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias)
    assert Linear(4, 3, bias=False).bias is None


def test_fourier_embedding():
    torch.manual_seed(1)
    embedding = FourierEmbedding(8, scale=2)
    torch.manual_seed(1)
    freqs = torch.randn(4) * 2
    assert list(embedding.state_dict()) == ["freqs"]
    x = torch.tensor([-0.3, 0.9])
    phase = 2 * math.pi * x[:, None] * freqs
    torch.testing.assert_close(embedding(x), torch.cat([phase.cos(), phase.sin()], dim=1))


@pytest.mark.parametrize("make", [PositionalEmbedding, FourierEmbedding])
def test_odd_embedding_width(make):
    with pytest.raises(ValueError, match="even number of channels"):
        make(7)


@pytest.mark.parametrize(("channels", "groups"), [(4, 1), (32, 8), (96, 24), (128, 32), (256, 32)])
def test_group_norm_groups(channels, groups):
    x = torch.randn(2, channels, 3, 3)
    norm = GroupNorm(channels, eps=1e-3)
    grouped = x.reshape(2, groups, -1)
    mean, var = grouped.mean(2, keepdim=True), grouped.var(2, unbiased=False, keepdim=True)
    torch.testing.assert_close(norm(x), ((grouped - mean) / (var + 1e-3).sqrt()).reshape(x.shape))


@pytest.mark.parametrize("channels", [3, 30, 144])
def test_group_norm_that_does_not_divide(channels):
    with pytest.raises(ValueError, match=f"cannot split {channels} channels"):
        GroupNorm(channels)


def reference_attention(qkv, heads):
    n, c3, h, w = qkv.shape
    c = c3 // 3 // heads
    out = torch.empty(n, c3 // 3, h * w, dtype=qkv.dtype)
    for head in range(heads):
        base = [(head * c + i) * 3 for i in range(c)]
        q, k, v = (qkv[:, [b + j for b in base]].reshape(n, c, h * w) for j in range(3))
        weights = torch.softmax(torch.einsum("ncq,nck->nqk", q, k) / math.sqrt(c), dim=2)
        out[:, head * c : (head + 1) * c] = torch.einsum("nqk,nck->ncq", weights, v)
    return out.reshape(n, -1, h, w)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
# float32: a logit of size 4 is a sum of 12 products, so it, and with it a weight, is known to 4 * 12 * 2^-24 = 3e-6.
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 3e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_attention(heads, layout, dtype, atol):
    qkv = torch.randn(2, 3 * 12, 4, 2).to(dtype).to(memory_format=layout)
    out = attention(qkv, heads)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), reference_attention(qkv.double(), heads), rtol=0, atol=atol)


def test_attention_has_second_and_forward_derivatives():
    qkv = torch.randn(1, 12, 2, 2, dtype=torch.float64, requires_grad=True)
    tangent = torch.randn_like(qkv)
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(lambda y: attention(y, 2), qkv)
        _, jvp = torch.func.jvp(lambda y: attention(y, 2), (qkv.detach(),), (tangent,))
    eps = 1e-6
    difference = (attention(qkv + eps * tangent, 2) - attention(qkv - eps * tangent, 2)) / (2 * eps)
    torch.testing.assert_close(jvp, difference, rtol=1e-6, atol=1e-8)
