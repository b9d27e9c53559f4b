"""Families of coefficients beside EDM's: ends, scalar schedules, and the Euler step that the definition gives."""

import itertools
import math

import pytest
import torch

import networks
from networks.adversary.points import PointDiscriminator
from networks.models.coefficient_families import FAMILIES, LinearFamily, TrigonometricFamily, interpolant_schedule
from networks.models.coefficient_mlp import CoefficientMLP
from networks.models.coefficients import CoefficientFamily
from samplers.field import Field
from samplers.solvers.elementwise import sample_mac
from training.methods.trajectory import single_step

FLOWS = ("linear", "trigonometric")


def weights(family, scale=0.5, batch=3, side=1):
    return (torch.rand(batch, family.maps, side, side, dtype=torch.float64) * 2 - 1) * scale


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("rho", [1, 3])
def test_ends_and_scalar_schedule(name, rho):
    family = FAMILIES[name](2, M=3, rho=rho)
    c = weights(family, side=4)
    data, noise = family.endpoints(0.0, c)
    assert (data == 1).all()
    assert (noise == 0).all()
    data, noise = family.endpoints(math.inf, c)
    torch.testing.assert_close(data, torch.zeros_like(data), atol=1e-15, rtol=0)
    torch.testing.assert_close(noise, torch.ones_like(noise), atol=1e-15, rtol=0)
    for sigma in torch.tensor([0.1, 1.0, 7.0], dtype=torch.float64):
        plain = family.gamma(sigma, 0 * c)
        torch.testing.assert_close(plain, sigma.expand_as(plain))
        data, noise = family.endpoints(sigma, 0 * c)
        assert (data == data.flatten()[0]).all()
        torch.testing.assert_close(noise / data, plain)
        data, noise = family.endpoints(sigma, c)
        torch.testing.assert_close(noise / data, family.gamma(sigma, c))
        assert family.gamma(sigma, c).std() > 0.01


def test_what_sums_to_one():
    c = weights(LinearFamily(2))
    data, noise = LinearFamily(2).endpoints(1.5, c)
    torch.testing.assert_close(data + noise, torch.ones_like(data))
    data, noise = TrigonometricFamily(2).endpoints(1.5, c)
    torch.testing.assert_close(data.square() + noise.square(), torch.ones_like(data))
    data, noise = CoefficientFamily(2).endpoints(1.5, c)
    assert (data == 1).all()
    torch.testing.assert_close(noise, CoefficientFamily(2).gamma(1.5, c))


def test_schedule_is_even_for_the_basis():
    assert interpolant_schedule(1) == [math.inf]
    assert interpolant_schedule(4) == pytest.approx([math.inf, 3, 1, 1 / 3])
    levels = interpolant_schedule(4, rho=2)
    u = [(1 - 1 / (1 + s)) ** 0.5 for s in levels]
    assert u == pytest.approx([1, 0.75, 0.5, 0.25])


def mac(name, n=5, scale=0.7, path=None):
    path = path or {"edm": "ve", "linear": "linear", "trigonometric": "trig"}[name]
    inner = {"img_resolution": 1, "img_channels": 2, "model_type": "FourierMLP"}
    v = (
        {"class_name": "EDMPrecond", **inner}
        if path == "ve"
        else {"class_name": "VelocityNetwork", **inner, "path": path}
    )
    schedule = interpolant_schedule(n) if name != "edm" else [80.0, 17.5, 2.5, 0.17, 0.02][:n]
    return networks.build(
        "MACNetwork", network=v, coefficients={"scale": scale, "model_channels": 16}, schedule=schedule, M=3,
        rho=7 if name == "edm" else 1, family=name,
    )  # fmt: skip


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_sampler_takes_the_steps_of_the_definition(name, n):
    """x += dgamma0 * data_hat + dgamma1 * noise_hat, both estimates from V at the state in its own coordinates."""
    net, z = mac(name, n), torch.randn(4, 2, 1, 1, dtype=torch.float64)
    with torch.no_grad():
        c = net.coefficients(z)
        got = sample_mac(net, z, [*net.schedule, 0.0])
        ends = [net.family.endpoints(s, c) for s in [*net.schedule, 0.0]]
        x = ends[0][0] * 0 + ends[0][1] * z
        field = Field(net.V)
        for (data_share, noise_share), (data_next, noise_next) in itertools.pairwise(ends):
            if name == "edm":
                data = net.V(x, noise_share)
            else:
                time = field.path.time_of((noise_share / data_share).clamp(max=1e12))
                scale = (field.path.alpha(time) + field.path.sigma(time)) / (data_share + noise_share)
                data = field.data(scale * x, time)
            noise = (x - data_share * data) / noise_share
            x = x + (data_next - data_share) * data + (noise_next - noise_share) * noise
    torch.testing.assert_close(got, x, rtol=1e-4, atol=1e-4)


def test_both_flow_families_are_one_curve_of_levels():
    c = weights(LinearFamily(2))
    torch.testing.assert_close(LinearFamily(2).gamma(0.8, c), TrigonometricFamily(2).gamma(0.8, c))
    net, z = mac("linear"), torch.randn(3, 2, 1, 1, dtype=torch.float64)
    twin = mac("trigonometric", path="linear")
    twin.load_state_dict(net.state_dict())
    with torch.no_grad():
        a, b = (sample_mac(m, z, [*m.schedule, 0.0]) for m in (net, twin))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_gradients_reach_both_networks(name):
    net, z = mac(name), torch.randn(4, 2, 1, 1)
    sample_mac(net, z, [*net.schedule, 0.0]).square().mean().backward()
    for part in (net.V, net.C):
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in part.parameters())
        assert any((p.grad != 0).any() for p in part.parameters())


def test_zero_coefficients_are_the_ordinary_flow():
    """Euler in equal steps of native time."""
    from samplers.solvers.native import sample_native, uniform_times

    net, z = mac("linear"), torch.randn(4, 2, 1, 1, dtype=torch.float64)
    with torch.no_grad():
        plain = sample_mac(net, z, [*net.schedule, 0.0], coefficients=torch.zeros(1, net.family.maps, 1, 1))
        native = sample_native(net.V, z, uniform_times(5))
    torch.testing.assert_close(plain, native, rtol=1e-5, atol=1e-5)


def test_round_trip_of_an_infinite_level(tmp_path):
    net = mac("linear")
    networks.save_network(tmp_path / "x.pkl", net)
    again = networks.load_network(tmp_path / "x.pkl")
    assert again.schedule == net.schedule
    assert type(again.family) is LinearFamily
    assert (again.path, again.predicts, again.start) == ("linear", "velocity", "exact")


def test_what_does_not_fit_is_one_sentence():
    with pytest.raises(ValueError, match="no family 'cosine': choose from edm, linear"):
        mac("cosine", path="linear")
    with pytest.raises(ValueError, match="path ve does not know: use edm"):
        mac("linear", path="ve")
    with pytest.raises(ValueError, match="family edm only"):
        sample_mac(mac("linear"), torch.randn(1, 2, 1, 1), [math.inf, 1.0, 0.0], S_churn=1)
    with pytest.raises(ValueError, match="scale=0"):
        CoefficientMLP(2, scale=0)


def test_coefficients_of_points():
    z = torch.randn(5, 2, 1, 1)
    net = CoefficientMLP(2, label_dim=3, M=4, scale=0.2, num_blocks=1)
    c = net(z, torch.eye(3)[[0, 1, 2, 0, 1]])
    assert c.shape == (5, 16, 1, 1)
    assert c.abs().max() <= 0.2
    assert not torch.equal(net(z, torch.eye(3)[:1])[0], net(z, torch.eye(3)[1:2])[0])
    shared = CoefficientMLP(2, M=4, multidimensionality="011")(z).unflatten(1, (2, 2, 4))
    assert torch.equal(shared[:, :, 0], shared[:, :, 1])
    assert not torch.equal(shared[:, 0], shared[:, 1])
    blind = CoefficientMLP(2, x_0_conditioning=False)(z)
    torch.testing.assert_close(blind, blind[:1].expand_as(blind))
    (logits,) = PointDiscriminator(2, label_dim=3, std=4.0)(z, torch.eye(3)[[0, 1, 2, 0, 1]])
    assert logits.shape == (5, 1)


def test_one_step_of_a_flow_from_any_level():
    """V's estimate at element-wise levels, the infinite one included: there the state is the noise."""
    net = mac("linear")
    data, noise = torch.randn(2, 4, 2, 1, 1).double()
    gamma = torch.full_like(data, 1.5)
    with torch.no_grad():
        got = single_step(net, data, noise, None, torch.ones(4), gamma)
        torch.testing.assert_close(got, Field(net.V).ve().data(data + 1.5 * noise, torch.tensor(1.5)).to(got.dtype))
        far = single_step(net, data, noise, None, torch.ones(4), torch.full_like(data, math.inf))
        torch.testing.assert_close(far, Field(net.V).data(noise, torch.tensor(1.0)).to(far.dtype), atol=1e-5, rtol=1e-5)
        mixed = single_step(net, data, noise, None, torch.ones(4), torch.tensor([0.2, math.inf])[None, :, None, None])
    assert torch.isfinite(mixed).all()
