"""Curvature: closed form of a coupled Gaussian, the identity of costs, exact mixtures, error bars, any model."""

import math

import numpy as np
import pytest
import torch
from golden_cases import cases
from mac_golden import expect, inputs
from scipy.integrate import quad

import networks
from bench.curvature_2d import TwoModes, curvature, shaped, w2
from samplers.analysis.straightness import (
    curvature_table,
    measure_curvature,
    step_deviations,
    trajectory,
    trajectory_curvature,
)
from samplers.path import VE


class CoupledGaussian:
    """Data N(0, s^2), noise z = a x + b eps: the exact velocity, and what follows from it, per dimension."""

    path, predicts = "linear", "velocity"

    def __init__(self, s, a, b):
        self.s, self.a, self.b = s, a, b

    def variance(self, t):  # of x_t
        return ((1 - t) + t * self.a) ** 2 * self.s**2 + t**2 * self.b**2

    def k(self, t):  # covariance of x_t and z - x
        return ((1 - t) + t * self.a) * (self.a - 1) * self.s**2 + t * self.b**2

    def __call__(self, x, t, class_labels=None):
        return self.k(t) / self.variance(t) * x

    @property
    def coupling_cost(self):
        return (self.a - 1) ** 2 * self.s**2 + self.b**2

    def loss(self):
        """The smallest flow-matching loss: E (z - x)^2 - E v^2, which is the degree of intersection I(q)."""
        return self.coupling_cost - quad(lambda t: self.k(t) ** 2 / self.variance(t), 0, 1, epsabs=1e-13)[0]

    def curvature(self, start=1.0):
        """From z of that variance; the flow maps z to z sqrt(V(t) / V(1))."""
        v1 = self.variance(1)

        def integrand(t):
            return (1 - self.s / math.sqrt(v1) - self.k(t) / math.sqrt(self.variance(t) * v1)) ** 2

        return start * quad(integrand, 0, 1, epsabs=1e-13)[0]

    def kl(self):
        return 0.5 * (-1 - math.log(self.b**2) + self.a**2 * self.s**2 + self.b**2)


@pytest.mark.parametrize("case", cases("curvature", "coupled_gaussian_exact"))
def test_golden_closed_form(case):
    p = case.spec["params"]
    model = CoupledGaussian(p["s"], p["a"], p["b"])
    own = {"curvature": model.curvature(), "fm_loss": model.loss(), "kl": model.kl()}
    for role in case.spec["expect"]:
        expect(case, role, torch.tensor(own[role], dtype=torch.float64))
    if math.isclose(model.variance(1), 1, rel_tol=1e-9):  # z ~ N(0, 1)
        assert own["fm_loss"] + own["curvature"] == pytest.approx(model.coupling_cost - (1 - p["s"]) ** 2, abs=1e-9)


@pytest.mark.parametrize("case", cases("curvature", "coupled_gaussian_euler"))
def test_golden_euler(case):
    p = case.spec["params"]
    noise = inputs(case)["noise"].double()
    flat = noise.reshape(-1, 1) if noise.ndim == 1 else noise
    states, times = trajectory(CoupledGaussian(p["s"], p["a"], p["b"]), flat, p["N"])
    scale = (states[-1] / states[0]).flatten()
    torch.testing.assert_close(scale, scale[:1].expand_as(scale))  # the field is linear
    for role in case.spec["expect"]:
        expect(case, role, {"curvature": trajectory_curvature(states, times), "final_scale": scale[0]}[role])


TABLE = """0.5 1 0.7666 0.6947 0.6295 0.3705 0.1791 0.0630 0.630
0.5 5 0.1977 0.9246 0.8646 0.6769 0.0107 0.1782 0.538
0.5 10 0.0997 0.9615 0.9270 0.7303 0.0027 0.1971 0.519
0.5 20 0.0500 0.9806 0.9621 0.7576 0.0007 0.2061 0.510
0.5 100 0.0100 0.9961 0.9922 0.7798 0.0000 0.2129 0.502
0.5 inf 0 1 1 0.7854 0 0.2146 0.500
0.2 1 0.9528 0.8558 0.7687 0.2314 0.0401 0.0561 0.228
0.2 20 0.0500 0.9922 0.9845 0.3097 0.0001 0.0845 0.202
0.2 inf 0 1 1 0.3142 0 0.0858 0.200"""


@pytest.mark.parametrize("row", TABLE.splitlines())
def test_minimisers_of_the_objective(row):
    """Loss, KL, curvature and deviation of samples at the printed minimiser; and no neighbour of it is better."""
    s, beta, a, b, variance, loss, kl, curv, std = map(float, row.split())
    model = CoupledGaussian(s, a, b)
    assert model.variance(1) == pytest.approx(variance, abs=2e-4)
    assert model.loss() == pytest.approx(loss, abs=2e-4)
    assert model.kl() == pytest.approx(kl, abs=2e-4)
    assert s / math.sqrt(model.variance(1)) == pytest.approx(std, abs=6e-4)  # of samples from N(0, 1)
    assert model.curvature() == pytest.approx(curv, abs=2e-4)
    if math.isfinite(beta):
        best = model.loss() + beta * model.kl()
        for da, db in ((0.02, 0), (-0.02, 0), (0, 0.02), (0, -0.02)):
            other = CoupledGaussian(s, a + da, b + db)
            assert other.loss() + beta * other.kl() > best


@pytest.mark.parametrize(("s", "a", "b"), [(0.5, 0.0, 1.0), (0.5, 0.7, 0.4), (1.3, -0.4, 0.9), (0.2, 0.95, 0.86)])
def test_identity_of_costs(s, a, b):
    """I(q) + C = cost of the coupling - cost of the coupling that the flow induces, from z ~ q(z)."""
    model = CoupledGaussian(s, a, b)
    v1 = model.variance(1)
    induced = (math.sqrt(v1) - s) ** 2
    assert model.loss() + model.curvature(start=v1) == pytest.approx(model.coupling_cost - induced, abs=1e-6)
    z = torch.full((1, 1), math.sqrt(v1), dtype=torch.float64)  # the field is linear: one trajectory says all
    states, times = trajectory(model, z, 12_001, solver="heun")
    assert float(trajectory_curvature(states, times)) == pytest.approx(model.curvature(start=v1), abs=1e-6)
    assert float((states[0] - states[-1]).square()) == pytest.approx(induced, abs=1e-6)


# ----------------------------------------------------------------------------------------------------------------------
# Two modes, exact velocity


def two_modes(params):
    assert params["mode_weights"] == [0.5, 0.5]
    assert params["prior_mean"] == [0, 0]
    return TwoModes(params["mode_means"], params["mode_var"], params["prior_var"])


def start_of(params):
    std = shaped(torch.tensor([params["prior_var"]], dtype=torch.float64).sqrt())
    return lambda eps: eps * std


def within(value, want):
    tolerance = want["tolerance"]
    np.testing.assert_array_less(abs(np.array(value) - want["value"]),
                                 tolerance["atol"] + tolerance["rtol"] * np.abs(want["value"]) + 1e-12)  # fmt: skip


@pytest.mark.parametrize("case", cases("curvature", "two_mode_exact"))
def test_golden_two_modes(case):
    params, want = case.spec["params"], case.spec["expect"]
    net, start = two_modes(params), start_of(params)
    for n, value in want["curvature"].items():
        within(curvature(net, start, int(n), num=min(params["particles"], 8000)), value)
    for n, value in want["W2"].items():
        within(w2(net, start, int(n), net, sets=1), value)
    within(intersection(net, params), want["fm_loss_min"])


def pairs(params, n):
    """Data and independent noise of the experiment, `[n, 2]`, with exact second moments to spare Monte-Carlo error."""
    g = torch.Generator().manual_seed(0)
    modes = torch.tensor(params["mode_means"], dtype=torch.float64)[torch.arange(n) % len(params["mode_means"])]
    noise, data = (torch.randn(n, 2, generator=g, dtype=torch.float64) for _ in range(2))
    noise, data = ((v - v.mean(0)) / v.std(0, correction=0) for v in (noise, data))
    std = torch.tensor([params["mode_var"], params["prior_var"]], dtype=torch.float64).sqrt()
    return modes + data * std[0], noise * std[1]


def intersection(net, params, n=8000, times=100):
    """I(q) per dimension, by Monte Carlo over pairs and the midpoint rule in time."""
    x, z = pairs(params, n)
    total = 0.0
    for t in (np.arange(times) + 0.5) / times:
        total += float((z - x - net(x + t * (z - x), t)).square().mean()) / times
    return total


@pytest.mark.parametrize("case", cases("curvature", "two_mode_exact"))
def test_identity_of_costs_of_two_modes(case):
    params = case.spec["params"]
    net = two_modes(params)
    _, z = pairs(params, 8000)
    states, times = trajectory(net, z, 401, solver="heun")  # Euler's error is half of the tolerance below
    means, both = np.array(params["mode_means"]), np.array(params["mode_var"]) + np.array(params["prior_var"])
    coupling = ((means**2).mean(0) + both).mean()  # E |z - x|^2 per dimension
    induced = float((states[0] - states[-1]).square().mean())
    own = intersection(net, params) + float(trajectory_curvature(states, times))
    assert own == pytest.approx(coupling - induced, abs=0.004 * coupling)


# ----------------------------------------------------------------------------------------------------------------------
# Any model


def small(seed=0, **options):
    torch.manual_seed(seed)
    net = networks.build("VelocityNetwork", img_resolution=1, img_channels=2, model_type="MLP", hidden=16, **options)
    return net.eval().requires_grad_(False)


def test_report_agrees_with_the_definition():
    net = small(prior_std=[6.0, 1.0])
    report = measure_curvature(net, num=30, evaluations=12, batch=7)
    assert (report["steps"], report["evaluations"], report["dimension"], report["start_time"]) == (12, 12, 2, 1)
    assert report["curvature_sum"] == pytest.approx(2 * report["curvature"])
    assert report["curvature"] == pytest.approx(np.mean(report["profile"]))
    whole = measure_curvature(net, num=30, evaluations=12, batch=64)
    assert whole["curvature"] == pytest.approx(report["curvature"], rel=1e-5)
    assert whole["stderr"] == pytest.approx(report["stderr"], rel=1e-4)
    assert report["times"][0] == pytest.approx(1 - 0.5 / 12)


def test_error_bars_are_those_of_the_mean():
    """Over many seeds, the spread of the estimate is the error bar that it comes with."""
    net = small(1, prior_std=[3.0, 1.0])
    reports = [measure_curvature(net, num=40, evaluations=5, seed=1000 * i) for i in range(40)]
    spread = np.std([r["curvature"] for r in reports])
    assert np.mean([r["stderr"] for r in reports]) == pytest.approx(spread, rel=0.35)


class Gaussian:
    """The denoiser of data N(0, s^2), in sigma coordinates."""

    path, predicts, sigma_min, sigma_max = VE(), "data", 0.0, math.inf

    def __init__(self, s):
        self.s = s

    def __call__(self, y, sigma, class_labels=None):
        return y * self.s**2 / (self.s**2 + sigma**2)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_denoisers_are_measured_on_the_same_footing(solver):
    """A denoiser is the same flow as the independent velocity; only its start is at a finite sigma."""
    z = torch.randn(50, 3, dtype=torch.float64)
    flow, flow_times = trajectory(CoupledGaussian(0.5, 0.0, 1.0), z, 401, solver=solver)
    ve, ve_times = trajectory(Gaussian(0.5), z, 401, solver=solver)
    assert ve_times[0] == pytest.approx(80 / 81)
    torch.testing.assert_close(ve[-1], flow[-1], atol=0.02, rtol=0)
    own, want = trajectory_curvature(ve, ve_times), trajectory_curvature(flow, flow_times)
    assert float(own) == pytest.approx(float(want), rel=0.05)


def test_deviations_average_to_nothing():
    states = torch.randn(6, 4, 3, dtype=torch.float64)
    share, deviation = step_deviations(states, [1, 0.9, 0.5, 0.4, 0.1, 0])
    torch.testing.assert_close(share.sum(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(torch.einsum("n,nbd->bd", share, deviation), torch.zeros(4, 3, dtype=torch.float64))


def test_table_marks_the_straightest():
    report = measure_curvature(small(), num=4, evaluations=3)
    text = curvature_table([{**report, "label": "a", "beta": 10.0}, {**report, "label": "b", "curvature": 0.0}]).text()
    assert "a    10" in " ".join(text.splitlines()[2].split(" ")) or "10" in text
    assert "0 ±" in text.splitlines()[3]
    assert "*" in text.splitlines()[3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num": 1}, "2 samples or more"),
        ({"solver": "ipndm"}, "euler or heun, not with 'ipndm'"),
        ({"solver": "heun", "evaluations": 10}, "N is odd"),
        ({"prior": "matched"}, "matched"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        measure_curvature(small(), **{"num": 4, "evaluations": 5, **options})
