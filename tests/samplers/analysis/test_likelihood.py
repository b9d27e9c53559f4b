"""Likelihood of models whose density is known, and golden numbers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from golden_cases import cases
from transformer_golden import field_of

from samplers.analysis.likelihood import bits_per_dimension, dequantised, likelihood, signs
from samplers.field import Field
from samplers.path import VP, Linear, Trig
from samplers.solvers.interpolant import time_interval
from torch_utils.rng import PerSampleRNG


@pytest.mark.parametrize("case", cases("combostoc", "likelihood"))
def test_golden(case):
    params = case.spec["params"]
    field, x = field_of(params), case.input("x").double()
    assert params["probe"]["distribution"] == "2*randint(0,2,shape)-1"
    e = np.random.RandomState(params["probe"]["stream"]).randint(0, 2, tuple(x.shape))
    times = time_interval(field.path, field.predicts, eps=params["sample_eps"])
    # elements know nothing of each other there, so that any signs give the same divergence
    found = likelihood(field, x, torch.from_numpy(2.0 * e - 1), solver=params["method"], steps=params["num_steps"] - 1,
                       times=times)  # fmt: skip
    case.check("logp", found.logp)
    case.check("z", found.noise)


COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)


def gaussian(path, kind):
    """The exact model of data with that covariance; in sigma coordinates without a path."""

    def net(x, t, labels=None):
        t = torch.as_tensor(t, dtype=torch.float64)
        t = t.expand(len(x))[:, None, None]
        alpha, sigma = (torch.ones_like(t), t) if path is None else (path.alpha(t), path.sigma(t))
        whole = alpha**2 * COVARIANCE + sigma**2 * torch.eye(2, dtype=torch.float64)
        score = -torch.linalg.solve(whole, x[:, :, None])
        data = (-alpha * COVARIANCE @ score)[:, :, 0]
        if kind == "data":
            return data
        noise = (-sigma * score)[:, :, 0]
        return noise if kind == "noise" else path.d_alpha(t[:, 0]) * data + path.d_sigma(t[:, 0]) * noise

    return Field(net) if path is None else Field(net, path, kind)


@pytest.mark.parametrize(
    ("path", "kind", "allowed"),
    # ends that are left out: noise of 0.002 and 1e-3 beside the data, a start 1e-3 beside the noise
    [(Linear(), "velocity", 1e-4), (Trig(), "velocity", 1e-4), (Linear(), "noise", 0.02), (VP(), "velocity", 0.02),
     (None, "data", 0.02)],
)  # fmt: skip
def test_the_density_of_gaussian_data(path, kind, allowed):
    """On average over signs: e^T A e has the mean tr A; 64 draws of each sample, and five standard errors."""
    normal = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), COVARIANCE)
    x = normal.sample([3]).repeat_interleave(64, 0)
    e = signs(x, PerSampleRNG(range(len(x))))
    found = likelihood(gaussian(path, kind), x, e, options={"rtol": 1e-6, "atol": 1e-6}).logp.reshape(3, 64)
    exact = normal.log_prob(x).reshape(3, 64)[:, 0]
    error = (found.mean(1) - exact).abs()
    assert (error < allowed + 5 * found.std(1) / 8).all()


def test_samples_do_not_know_each_other():
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    e = signs(x, PerSampleRNG(range(5)))
    field = gaussian(Linear(), "velocity")
    whole = likelihood(field, x, e).logp
    alone = torch.cat([likelihood(field, x[i : i + 1], e[i : i + 1]).logp for i in range(5)])
    torch.testing.assert_close(whole, alone, rtol=1e-9, atol=1e-9)


def test_bits_of_grey_values():
    """Uniform grey values need 8 bits: 255 steps of 1 / 127.5, and half a step at either end."""
    images = torch.arange(256, dtype=torch.uint8).reshape(64, 4)
    spread = dequantised(images, PerSampleRNG(range(64)))
    assert torch.equal(((spread + 1) * 127.5).round().to(torch.uint8), images)
    logp = torch.tensor([-4 * math.log(256 / 127.5)], dtype=torch.float64)
    assert float(bits_per_dimension(logp, 4)) == pytest.approx(8)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"solver": "heun2"}, "say how many"), ({"solver": "dopri5", "steps": 5}, "leave the number out"),
     ({"solver": "dpmpp", "steps": 5}, "cannot follow a flow"), ({"solver": "no"}, "there is no solver")],
)  # fmt: skip
def test_solvers_that_cannot(given, message):
    x = torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        likelihood(gaussian(Linear(), "velocity"), x, x + 1, **given)


def test_conditions_go_along():
    def net(x, t, labels):
        return (x - labels) * torch.as_tensor(t).expand(len(x))[:, None]

    field = Field(net, Linear(), "velocity")
    x, e = torch.ones(2, 2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)
    labels = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    found = likelihood(replace(field, class_labels=labels), x, e)
    torch.testing.assert_close(found.noise[1], x[1])
    assert (found.noise[0] > 1.5).all()
