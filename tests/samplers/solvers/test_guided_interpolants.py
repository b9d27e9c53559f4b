"""Guided transformers of golden cases, sampled: both halves of their doubled batches, from half of the state."""

from dataclasses import replace

import pytest
import torch
from golden_cases import cases, fill_weights
from transformer_golden import Stream, network_of, ode_times, one_hot, path_of, sde_times

import networks
from samplers.field import Field
from samplers.guidance import cfg
from samplers.path import Linear
from samplers.solvers.adaptive import dopri5
from samplers.solvers.interpolant import interpolant_sde
from samplers.solvers.onestep import euler
from samplers.solvers.rungekutta import heun2, heun3, midpoint, rk4

FIXED = {"euler": euler, "midpoint": midpoint, "heun2": heun2, "heun3": heun3, "rk4": rk4}


class Doubled:
    """A guided network as published: its second half is not read, and keeps the channels that are not guided."""

    def __init__(self, net, rate, channels):
        self.net, self.rate, self.channels = net, rate, channels

    def __call__(self, x, t, labels=None):
        n = len(x) // 2
        level = t[:n] if t.ndim else t
        guided = cfg(self.net, self.rate, channels=self.channels).bind(labels[:n]).prediction(x[:n], level)
        empty = self.net(x[:n], level, torch.zeros_like(labels[:n]))
        return torch.cat([guided, torch.cat([guided[:, : self.channels], empty[:, self.channels :]], 1)])


@pytest.mark.parametrize("case", cases("combostoc", "model_cfg"))
def test_guided_network(case):
    params, net = case.spec["params"], network_of(case)
    x, t, y = (case.input(name) for name in "xty")
    assert params["null_class"] == net.label_dim
    rows = [y[i] if i is not None else torch.tensor(net.label_dim) for i in params["y_rows"]]
    labels = one_hot(torch.stack(rows), net)
    out = Doubled(net, params["scale"], params["guided_channels"])(
        x[params["x_rows"]], 1 - t[params["t_rows"]].double(), labels
    )
    case.check("out", -out)


def setting(case):
    """The doubled field bound to its labels, its state, and how it ends."""
    params, net = case.spec["params"], network_of(case)
    net.predicts = params["prediction"]
    model = Field(net, path_of(params), net.predicts)
    z, y = case.input("z").double(), case.input("y")
    labels = one_hot(y, net)
    labels = torch.cat([labels, torch.zeros_like(labels)]) if len(labels) < len(z) else labels
    field = Field(Doubled(net, params["cfg_scale"], 3), model.path, model.predicts).bind(labels)
    half = cfg(model, params["cfg_scale"], channels=3).bind(labels[: len(z) // 2])
    return params, field, half, z


@pytest.mark.parametrize("case", cases("combostoc", "sample_network_ode"))
def test_flow_of_a_network(case):
    params, field, half, z = setting(case)
    times = ode_times(params)

    def solve(field, z):
        if params["adaptive"]:
            return dopri5(field, z, times[[0, -1]], rtol=params["rtol"], atol=params["atol"])
        return FIXED[params["method"]](field, z, times)

    n = len(z) // 2
    doubled = field.net

    def paired(x, t, labels):
        """The halves as one sample of twice the channels, whose steps are chosen for both."""
        t = t.expand(len(x))
        out = doubled(torch.cat(x.chunk(2, 1)), torch.cat([t, t]), torch.cat([labels, 0 * labels]))
        return torch.cat(out.chunk(2), 1)

    pair = Field(paired, field.path, field.predicts).bind(half.class_labels)
    end = torch.cat(solve(pair, torch.cat(z.chunk(2), 1)).chunk(2, 1))
    case.check("final", end)
    own = solve(half, z[:n])  # what is not read does not matter; adaptive steps are chosen per sample
    rounding = (
        2 * len(times) * torch.finfo(torch.float32).eps * end.abs().max().item()
    )  # of the network, per evaluation
    torch.testing.assert_close(own, end[:n], rtol=0, atol=10 * params["atol"] if params["adaptive"] else rounding)


@pytest.mark.parametrize("case", cases("combostoc", "sample_network_sde"))
def test_noisy_way_of_a_network(case):
    params, field, half, z = setting(case)
    last = params["last_step"].lower()
    levels = sde_times(params)
    levels = levels if last == "none" else torch.cat([levels, torch.zeros(1, dtype=torch.float64)])

    def solve(field, z, rng):
        return interpolant_sde(
            field, z, levels, form=params["diffusion_form"], norm=params["diffusion_norm"], last_step=last, rng=rng,
            second_order=params["method"] == "Heun",
        )  # fmt: skip

    end = solve(field, z, Stream(params["noise"]))
    case.check("final", end)
    n, whole = len(z) // 2, Stream(params["noise"])
    whole.randn, draw = lambda shape, dtype: draw(z.shape, dtype)[:n], whole.randn
    torch.testing.assert_close(solve(half, z[:n], whole), end[:n], rtol=0, atol=1e-5)


def test_one_is_the_condition_in_every_channel():
    """Guided as published at rate 1, and not guided at all."""
    x, t = torch.randn(4, 4, 2, 2, generator=torch.Generator().manual_seed(0)), torch.full([4], 0.4)
    labels = torch.eye(2)[[0, 1, 0, 1]]

    def net(x, t, labels):
        return torch.tanh(x) + labels.sum(1)[:, None, None, None] * (1 + labels[:, :1, None, None])

    limited = Doubled(net, 1.0, 3)(torch.cat([x, x]), torch.cat([t, t]), torch.cat([labels, 0 * labels]))
    torch.testing.assert_close(limited[:4], net(x, t, labels), rtol=0, atol=0)


def guided(**limits):
    def net(x, level, labels):
        return x.tanh() + labels.sum(1)[:, None, None, None] * (level.reshape(-1, *[1] * (x.ndim - 1)) + 1)

    field = Field(net, Linear(), "velocity")
    x = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain = field.bind(torch.eye(2, dtype=torch.float64))
    return x, plain, cfg(plain, 3.0, uncond=torch.zeros(2, dtype=torch.float64), **limits)


def test_first_channels_alone():
    x, plain, limited = guided(channels=3)
    t = torch.full([2], 0.3, dtype=torch.float64)
    whole = guided()[2].prediction(x, t)
    assert torch.equal(limited.prediction(x, t)[:, :3], whole[:, :3])
    assert torch.equal(limited.prediction(x, t)[:, 3:], plain.prediction(x, t)[:, 3:])


@pytest.mark.parametrize("shape", [(3, 8, 8), (2,)])
def test_models_that_have_no_further_channels(shape):
    field = Field(lambda x, t, y: x, Linear(), "velocity")
    field = replace(field, facts=replace(field.facts, shape=shape))
    with pytest.raises(ValueError, match="is for models of more"):
        cfg(field, 2.0, uncond=torch.zeros(2), channels=3)


def test_rate_0_keeps_the_condition_of_other_channels():
    x, plain, _ = guided()
    t, empty = torch.full([2], 0.3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    own = cfg(plain, 0.0, uncond=empty, channels=3)
    assert own.calls_per_evaluation == 2
    assert torch.equal(own.prediction(x, t)[:, 3:], plain.prediction(x, t)[:, 3:])
    assert torch.equal(own.prediction(x, t)[:, :3], cfg(plain, 0.0, uncond=empty).prediction(x, t)[:, :3])


def test_rate_one_is_the_conditional_network():
    """On guided and other channels, also as the limit of rates that evaluate both halves."""
    net = networks.build(
        "InterpolantNetwork", img_resolution=4, img_channels=4, label_dim=3, width=16, depth=1, num_heads=2
    )
    fill_weights(net)
    x, t = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.8])
    labels = torch.eye(3)[:2]
    plain = net.eval()(x, t, labels)
    for rate, error in ((1, 0), (1 + 2**-20, 1e-4)):  # float32, and 2^-20 of what guidance at rate 2 would add
        guided = cfg(net, rate, channels=3).bind(labels).prediction(x, t)
        torch.testing.assert_close(guided, plain, rtol=0, atol=error * float(plain.abs().max()))
    assert not torch.allclose(cfg(net, 2, channels=3).bind(labels).prediction(x, t)[:, :3], plain[:, :3], atol=1e-3)
