"""Coefficient family, low-pass, coefficient network, preconditioners for element-wise levels."""

import math

import pytest
import torch
from golden_cases import cases
from mac_golden import coefficient_config, entry, expect, fill, inputs, precond_config

import networks
from networks.models.coefficients import (
    CoefficientFamily,
    CoefficientNet,
    filter_sigma,
    filter_size,
    gaussian_kernel,
    low_pass,
    rescale_like,
)
from networks.models.mac import MACNetwork


def family_of(spec, channels=3):
    return CoefficientFamily(channels, spec["M"], spec["rho"], spec["k"], spec["t_max"])


def small_net(**kwargs):
    kwargs = {"img_resolution": 8, "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "M": 2} | kwargs
    return CoefficientNet(**kwargs)


class Root(torch.nn.Module):
    """A module under the name that the golden keys have."""

    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)


@pytest.mark.parametrize("case", cases("mac", "mac_calculator"))
def test_golden_family(case):
    given = inputs(case)
    expect(case, "gamma1", family_of(case.spec["params"]).gamma(given["t"], given["c"]))


@pytest.mark.parametrize("case", cases("mac", "gaussian_kernel_1d"))
def test_golden_kernel(case):
    p = case.spec["params"]
    expect(case, "kernel", gaussian_kernel(p["size"], p["sigma"]))


@pytest.mark.parametrize("case", cases("mac", "gaussian_kernel_2d"))
def test_golden_kernel_is_the_response_to_a_point(case):
    p = case.spec["params"]
    size, sigma = filter_size(p["resolution"]), filter_sigma(p["resolution"], p["gauss_kernel_sigma"])
    point = torch.zeros(1, 1, size, size)
    point[..., size // 2, size // 2] = 1
    expect(case, "kernel", low_pass(point, size, sigma) / CoefficientFamily(M=p["M"]).maps)


@pytest.mark.parametrize("case", cases("mac", "coefficient_network"))
def test_golden_network(case):
    p, given = case.spec["params"], inputs(case)
    net = CoefficientNet(
        p["resolution"], p["unet"]["in_channels"], p["label_dim"], p["M"], **coefficient_config(p)
    ).train(p["train"])
    fill(net, case.spec["state_dict"], case)
    expect(case, "c", net(given["z"], given["labels"]))


@pytest.mark.parametrize("case", cases("mac", "preconditioner"))
def test_golden_preconditioner(case):
    p, given = case.spec["params"], inputs(case)
    net = networks.build(**precond_config(p)).train(p["train"])
    fill(net, case.spec["state_dict"], case)
    extra = {"gamma": given["gamma1"]} if "gamma1" in given else {}
    expect(case, "denoised", net(given["x"], given["sigma"], given["labels"], **extra))


@pytest.mark.parametrize("case", cases("mac", "state_dict_generator"))
def test_golden_keys_at_published_size(case):
    p = case.spec["params"]
    with torch.device("meta"):
        net = MACNetwork(networks.build(**precond_config(p["V"])), coefficient_config(p["C"]), [80.0], M=p["C"]["M"])
    assert {k: list(v.shape) for k, v in net.state_dict().items()} == case.spec["shapes"]


@pytest.mark.parametrize("case", cases("mac", "state_dict"))
def test_golden_keys_name_known_modules(case):
    assert entry(case.name) is case.spec
    assert {k.split(".")[0] for k in case.spec["buffers"]} <= {k.split(".")[0] for k in case.spec["shapes"]}


def test_zero_coefficients_are_the_ordinary_path():
    t = torch.tensor([80.0, 3.0, 0.002], dtype=torch.float64)
    gamma = CoefficientFamily().gamma(t, torch.zeros(3, 30, 4, 4))
    torch.testing.assert_close(gamma, t[:, None, None, None].expand_as(gamma), rtol=1e-14, atol=0)


@pytest.mark.parametrize("k", [-1.5, 0, 2])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_ends_are_fixed_and_channels_are_free(k, channels):
    family = CoefficientFamily(channels, M=4, k=k)
    c = torch.rand(2, family.maps, 3, 3) * 2 - 1
    assert (family.gamma(torch.zeros(1), c) == 0).all()
    assert (family.gamma(torch.full((1,), 80.0), c) == 80).all()
    assert family.gamma(1.0, c).shape == (2, channels, 3, 3)


def test_one_channel_changes_only_that_channel():
    family, c = CoefficientFamily(M=2), torch.zeros(1, 12, 1, 1)
    c[:, 2:4] = 0.3  # f of the second channel
    gamma = family.gamma(1.0, c)[0, :, 0, 0]
    assert gamma[0] == gamma[2] == pytest.approx(1.0)
    assert gamma[1] < 0.999


def test_filter_matches_a_convolution():
    x = torch.randn(2, 3, 17, 12, dtype=torch.float64)
    kernel = gaussian_kernel(7, 1.3)
    full = torch.nn.functional.conv2d(x, kernel.outer(kernel).expand(3, 1, 7, 7), padding=3, groups=3)
    torch.testing.assert_close(low_pass(x, 7, 1.3), full, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("resolution", "size"), [(32, 19), (48, 19), (64, 39), (28, 19), (16, 11), (8, 7), (4, 3)])
def test_filter_sizes(resolution, size):
    assert filter_size(resolution) == size
    assert (resolution + size + 1) % 4 == resolution % 4


def test_rescaling_reaches_the_range():
    like = torch.randn(4, 2, 5, 5)
    out = rescale_like(torch.randn(4, 2, 5, 5), like)
    torch.testing.assert_close(out.amax((1, 2, 3)), like.amax((1, 2, 3)))
    torch.testing.assert_close(out.amin((1, 2, 3)), like.amin((1, 2, 3)))


@pytest.mark.parametrize("flags", ["111", "011", "101", "110", "000", "010"])
@pytest.mark.parametrize("lpf", [True, False])
def test_flags_share_coefficients(flags, lpf):
    net = small_net(multidimensionality=flags, lpf=lpf)
    c = net(torch.randn(2, 3, 8, 8)).unflatten(1, (2, 3, 2)).detach()
    assert c.abs().max() <= net.scale
    for axis, flag in zip((2, 4, 5), flags, strict=True):
        spread = (c - c.mean(axis, keepdim=True)).abs().max() / c.abs().max()
        assert (spread > 1e-4) == (flag == "1"), f"axis {axis}: {spread:.2g}"


def test_noise_is_looked_at_only_if_wanted():
    z = torch.randn(2, 3, 8, 8)
    blind, seeing = small_net(x_0_conditioning=False)(z), small_net()(z)
    torch.testing.assert_close(blind[0], blind[1])
    assert not torch.allclose(seeing[0], seeing[1], rtol=1e-3)


def test_labels_steer_and_may_be_missing():
    net, z = small_net(label_dim=3), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn_like(p) / math.sqrt(max(p[0].numel(), 1)))
    a, b = (net(z, torch.eye(3)[i : i + 1]) for i in (0, 1))
    assert not torch.allclose(a, b)
    torch.testing.assert_close(net(z), net(z, torch.zeros(1, 3)))


def test_every_parameter_gets_a_gradient():
    net = small_net()
    net(torch.randn(2, 3, 8, 8)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_lean_network_works_at_low_resolution():
    lean = small_net(img_resolution=16, downsample=2)
    assert lean.UNet.enc["8x8_conv"] is not None
    assert lean(torch.randn(2, 3, 16, 16)).shape == (2, 12, 16, 16)


def test_filter_made_while_sampling_serves_training():
    with torch.inference_mode():
        low_pass(torch.randn(1, 1, 13, 13), 5, 0.77)
    x = torch.randn(1, 1, 13, 13, requires_grad=True)
    low_pass(x, 5, 0.77).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"multidimensionality": "21"}, "three digits"),
        ({"scale": 0}, "positive"),
        ({"gauss_kernel_sigma": -1}, "positive"),
        ({"img_resolution": 8, "channel_mult": [1, 1, 1, 1, 1]}, "cannot be halved"),
        ({"downsample": 3}, "does not divide"),
    ],
)
def test_bad_networks(kwargs, words):
    with pytest.raises(ValueError, match=words):
        small_net(**kwargs)


def test_bad_families():
    with pytest.raises(ValueError, match="M >= 1"):
        CoefficientFamily(M=0)
    with pytest.raises(ValueError, match="30 maps"):
        CoefficientFamily(M=5).gamma(1.0, torch.zeros(1, 12, 1, 1))


def test_gamma_network_without_gamma_sees_the_level():
    net = networks.build("EDMGammaPrecond", img_resolution=8, img_channels=1, model_channels=16, channel_mult=[1],
                         num_blocks=1)  # fmt: skip
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 2.0])
    gamma = sigma[:, None, None, None].expand_as(x)
    torch.testing.assert_close(net(x, sigma), net(x, sigma, gamma=gamma))
    torch.testing.assert_close(net(x, gamma), net(x, sigma, gamma=gamma))


def test_mac_network_round_trip(tmp_path):
    v = {"class_name": "EDMPrecond", "img_resolution": 8, "img_channels": 1, "model_type": "SongUNet",
         "model_channels": 16, "channel_mult": [1], "num_blocks": 1}  # fmt: skip
    c = {"model_channels": 16, "channel_mult": [1], "num_blocks": 1, "scale": 0.1}
    net = networks.build("MACNetwork", network=v, coefficients=c, schedule=[80.0, 2.0], M=2, rho=5, k=1)
    networks.save_network(tmp_path / "a.pkl", net)
    again = networks.load_network(tmp_path / "a.pkl")
    z = torch.randn(2, 1, 8, 8)
    assert again.schedule == (80.0, 2.0)
    assert again.family == net.family
    for sigma in (80, 2, 0):
        a, b = (n.family.gamma(sigma, n.coefficients(z)) for n in (net, again))
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(net(z, 2.0), again(z, 2.0))


def test_mac_network_refuses_itself():
    with pytest.raises(ValueError, match="cannot be a MACNetwork"):
        networks.build("MACNetwork", network={"class_name": "MACNetwork"}, coefficients={}, schedule=[80.0])
