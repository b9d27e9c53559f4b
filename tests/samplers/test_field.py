"""Paths and fields: derivatives, conversions between predictions, VE coordinates, what depends on coordinates."""

import math

import pytest
import torch

from samplers import PATHS, SOLVERS, Field, sample
from samplers.path import VE, Linear
from torch_utils.misc import expand_to

TIMES = dict.fromkeys(PATHS, (0.02, 0.98)) | {"ve": (0.01, 50.0)}
STD = 0.5


def times(name, *shape):
    low, high = TIMES[name]
    return low + (high - low) * torch.rand(shape, dtype=torch.float64)


def posterior(path, kind):
    """The exact network for zero-mean Gaussian data of standard deviation STD on a path."""

    def net(x, t, class_labels=None):
        t = expand_to(torch.as_tensor(t, dtype=x.dtype), x)
        a, s = path.alpha(t), path.sigma(t)
        data = a * STD**2 / (a**2 * STD**2 + s**2) * x
        return path.target(data, (x - a * data) / s, t, kind)

    net.path, net.predicts = path, kind
    return net


@pytest.mark.parametrize("name", PATHS)
def test_derivatives(name):
    path, t = PATHS[name](), times(name, 20)
    one = torch.ones_like(t)
    for value, slope in ((path.alpha, path.d_alpha), (path.sigma, path.d_sigma)):
        torch.testing.assert_close(slope(t), torch.func.jvp(value, (t,), (one,))[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", PATHS)
def test_time_of_inverts_the_noise_level(name):
    path, t = PATHS[name](), times(name, 20)
    torch.testing.assert_close(path.time_of(path.sigma(t) / path.alpha(t)), t, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("shape", [(), (4,), (4, 1, 3)])
def test_mix_and_target(name, shape):
    path, t = PATHS[name](), times(name, *shape)
    data, noise = torch.randn(2, 4, 2, 3, dtype=torch.float64)
    full = expand_to(t, data)
    torch.testing.assert_close(path.mix(data, noise, t), path.alpha(full) * data + path.sigma(full) * noise)
    moved = torch.func.jvp(lambda u: path.mix(data, noise, u), (t,), (torch.ones_like(t),))[1]
    torch.testing.assert_close(path.target(data, noise, t, "velocity"), moved, rtol=1e-9, atol=1e-10)
    assert path.target(data, noise, t, "data") is data
    assert path.target(data, noise, t, "noise") is noise


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("kind", ["data", "noise", "velocity"])
@pytest.mark.parametrize("shape", [(), (4,), (4, 2, 3)])
def test_views_agree(name, kind, shape):
    """From one pair (data, noise), a network that knows one view yields all of them."""
    path, t = PATHS[name](), times(name, *shape)
    data, noise = torch.randn(2, 4, 2, 3, dtype=torch.float64)
    x = path.mix(data, noise, t)
    field = Field(lambda x, t, labels: path.target(data, noise, t, kind), path, kind)
    close = {"rtol": 1e-7, "atol": 1e-8}
    velocity = path.target(data, noise, t, "velocity")
    torch.testing.assert_close(field.data(x, t), data, **close)
    torch.testing.assert_close(field.noise(x, t), noise, **close)
    torch.testing.assert_close(field.velocity(x, t), velocity, **close)
    torch.testing.assert_close(field.drift(x, t), velocity, **close)
    torch.testing.assert_close(field.velocity_of(data, x, t), velocity, **close)
    both = field.data_and_drift(x, t)
    torch.testing.assert_close(both[0], data, **close)
    torch.testing.assert_close(both[1], velocity, **close)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("kind", ["data", "noise", "velocity"])
@pytest.mark.parametrize("shape", [(), (4,), (4, 2, 3)])
def test_ve_view(name, kind, shape):
    path, t = PATHS[name](), times(name, *shape)
    field = Field(posterior(path, kind))
    assert field.path == path
    assert field.predicts == kind
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    s, alpha = path.sigma(t) / path.alpha(t), expand_to(path.alpha(t), x)
    ve = field.ve()
    assert isinstance(ve.path, VE)
    expected = STD**2 / (STD**2 + expand_to(s, x) ** 2) * x
    torch.testing.assert_close(ve.data(x, s), expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(ve.data(x, s), field.data(alpha * x, t), rtol=1e-7, atol=1e-9)


def test_conditions_survive_the_change_of_coordinates():
    seen = []

    def net(x, t, class_labels, scale):
        seen.append((class_labels, scale))
        return x

    labels = torch.ones(2, 3)
    Field(net, "linear", "velocity").bind(labels, scale=2).ve().data(torch.randn(2, 5), torch.tensor(0.5))
    assert seen == [(labels, 2)]


def test_plain_callable_is_a_ve_denoiser():
    field = Field(lambda x, sigma, labels: x / 2)
    assert field.path == VE()
    assert field.predicts == "data"
    assert field.ve() is field


def test_unknown_prediction():
    with pytest.raises(ValueError, match="not 'energy'"):
        Field(lambda *a: None, "ve", "energy")


@pytest.mark.parametrize("name", ["linear", "trig", "vp"])
@pytest.mark.parametrize("kind", ["data", "velocity"])
def test_euler_does_not_depend_on_coordinates_but_heun_does(name, kind):
    path = PATHS[name]()
    field = Field(posterior(path, kind))
    t = torch.linspace(0.9, 0.05, 7, dtype=torch.float64)
    s, noise = path.sigma(t) / path.alpha(t), torch.randn(3, 5, dtype=torch.float64)

    def gap(solver):
        native = SOLVERS[solver].fn(field, noise * path.sigma(t[0]), t)
        return (native / path.alpha(t[-1]) - sample(field, noise, s, solver=solver)).abs().max()

    if name == "linear":
        assert gap("euler") < 1e-12  # the same blend of two clean estimates
    assert gap("heun") > 1e-4


def test_a_velocity_network_gives_its_drift_untouched():
    x, out = torch.randn(2, 3), torch.randn(2, 3)
    field = Field(lambda *a: out, Linear(), "velocity")
    assert torch.equal(field.drift(x, torch.tensor(1.0)), out)
    assert torch.equal(field.data_and_drift(x, torch.tensor(1.0))[1], out)
    assert math.isfinite(field.data(x, torch.tensor(1.0)).sum())  # sigma / alpha is infinite there
