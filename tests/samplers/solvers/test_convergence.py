"""Measured orders of convergence on Gaussian data, whose flow is known in closed form.

Data of mean m and variance v: D(x; s) = (v x + s^2 m) / (v + s^2), x(s) = m + (x_0 - m) sqrt((v + s^2) / (v + s_0^2)).
Multistep solvers start with Euler steps; the first steps are made so short that they do not spoil the order.
"""

import math
from itertools import pairwise

import pytest
import torch
from gaussian_mixture import mixture

from samplers import SOLVERS, Field, sample
from samplers.path import Linear
from samplers.solvers.weights import ab_weights, ipndm_v_weights, ipndm_weights

MEAN, VARIANCE = 0.3, 0.25


def denoise(x, sigma, class_labels=None):
    return (VARIANCE * x + sigma**2 * MEAN) / (VARIANCE + sigma**2)


def flow(x, start, end):
    return MEAN + (x - MEAN) * ((VARIANCE + end**2) / (VARIANCE + start**2)) ** 0.5


def graded(n, order, start, end):
    """n equal steps from `start` to `end`, the first cut into pieces that double in size from h^order on."""
    h = (end - start) / n
    cuts = math.ceil(order * math.log2(n / 4)) if order > 1 else 0
    steps = [h * 2.0**-cuts, *(h * 2.0 ** (j - cuts) for j in range(cuts)), *[h] * (n - 1)]
    return start + torch.cat([torch.zeros(1), torch.tensor(steps, dtype=torch.float64).cumsum(0)])


def observed_orders(error, ns):
    errors = [error(n) for n in ns]
    return [math.log2(a / b) for a, b in pairwise(errors)]


ORDERS = [
    ("euler", {}, 1),
    ("heun", {}, 2),
    ("dpm", {}, 2),
    ("dpm", {"r": 0.3}, 2),
    *(("ab", {"max_order": k}, k) for k in (1, 2, 3, 4)),
    *(("deis", {"max_order": k, "deis_mode": m}, k) for k in (1, 2, 3, 4) for m in ("tab", "rhoab")),
    *(
        ("dpmpp", {"max_order": k, "predict_x0": x0, "lower_order_final": False}, k)
        for k in (1, 2)
        for x0 in (True, False)
    ),
    # As published: the second difference enters with half of the factor that order 3 needs.
    *(("dpmpp", {"max_order": 3, "predict_x0": x0, "lower_order_final": False}, 2) for x0 in (True, False)),
    # The corrector adds one order to that of the predictor.
    *(
        ("unipc", {"max_order": k, "predict_x0": x0, "lower_order_final": False, "variant": v}, k + 1)
        for k in (1, 2, 3)
        for x0 in (True, False)
        for v in ("bh1", "bh2")
    ),
    *(("res", {"max_order": k}, k) for k in (1, 2, 3)),
    *(("sa", {"tau": 0.0, "max_order": k, "corrector_order": 0}, k) for k in (1, 2, 3)),
    *(("sa", {"tau": 0.0, "max_order": p, "corrector_order": q}, min(q, p + 1)) for p, q in ((1, 3), (2, 2), (3, 4))),
    ("dpmpp", {"max_order": 3}, 2),
    ("ipndm_v", {"max_order": 2}, 2),
]


@pytest.mark.parametrize(("solver", "options", "order"), ORDERS)
def test_order(solver, options, order):
    x = torch.tensor([[1.3]], dtype=torch.float64)

    def error(n):
        levels = graded(n, order, math.log(10), math.log(0.05)).exp()
        own = sample(denoise, x, levels, solver=solver, **options)
        return float((own - flow(x * levels[0], levels[0], levels[-1])).abs())

    ns = (320, 640) if solver in ("res", "sa") and order < 4 else (80, 160)
    assert observed_orders(error, ns)[0] == pytest.approx(order, abs=0.18)


class Basis:
    """Draws unit vectors instead of numbers, so that a state says how much of each draw it holds."""

    def __init__(self, size):
        self.size, self.drawn = size, 0

    def randn(self, shape, dtype):
        self.drawn += 1
        return torch.eye(self.size, dtype=dtype)[self.drawn][None]


def variance_at_end(variance, levels, **options):
    """Variance of the samples of `sa`, exactly, on data of mean 0: the solver is linear in noise."""
    size = len(levels) + 1
    x = torch.eye(size, dtype=torch.float64)[:1] * (variance / levels[0] ** 2 + 1) ** 0.5
    rng = Basis(size)

    def shrink(x, sigma, class_labels=None):
        return variance * x / (variance + sigma**2)

    end = sample(shrink, x, levels, solver="sa", rng=rng, **options)
    assert rng.drawn > 0
    return float(end.square().sum())


@pytest.mark.parametrize(("tau", "corrector"), [(1.0, 3), (0.5, 0), (1.6, 2)])
def test_noise_keeps_the_marginals(tau, corrector):
    """SA-Solver ends with the variance of data and noise: at once where data are one point, else with its order."""
    options = {"tau": tau, "corrector_order": corrector, "max_order": 2, "tau_min": 0.0, "tau_max": 100.0}
    coarse = torch.tensor([5.0, 1.0, 0.3, 0.1], dtype=torch.float64)
    assert variance_at_end(0.0, coarse, **options) == pytest.approx(0.01, rel=1e-12)

    def error(n):
        levels = graded(n, 2, math.log(10), math.log(0.05)).exp()
        return abs(variance_at_end(VARIANCE, levels, **options) - VARIANCE - 0.0025)

    assert error(80) < 1e-3
    assert observed_orders(error, (80, 160))[0] > 1.8


@pytest.mark.parametrize(("solver", "order"), [("res", 1), ("res", 2), ("res", 3), ("sa", 2)])
def test_order_on_a_mixture(solver, order):
    """Two modes, against a fine adaptive solve."""
    field = mixture(*(torch.tensor(v, dtype=torch.float64) for v in ([0.4, 0.6], [[-1.0], [0.8]], [[0.3], [0.2]])))
    x, ends = torch.tensor([[1.3]], dtype=torch.float64), torch.tensor([10, 0.05], dtype=torch.float64)
    exact = sample(field, x, ends, solver="dop853", rtol=1e-12, atol=1e-12)
    options = {"tau": 0.0, "max_order": 2, "corrector_order": 2} if solver == "sa" else {"max_order": order}

    def error(n):
        levels = graded(n, order, math.log(10), math.log(0.05)).exp()
        return float((sample(field, x, levels, solver=solver, **options) - exact).abs().max())

    assert observed_orders(error, (160, 320))[0] == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize(("weights", "order"), [(ipndm_weights, k) for k in (1, 2, 3, 4)] + [(ab_weights, 4)])
def test_local_error_on_equal_steps(weights, order):
    """One step from exact history: iPNDM's weights belong to equal steps."""
    x0 = torch.tensor(1.3, dtype=torch.float64)

    def drift(s):
        x = flow(x0, 2.0, s)
        return (x - denoise(x, s)) / s

    def error(h):
        s = [0.5 + (order - 1 - k) * h for k in range(order)] + [0.5 - h]
        moved = sum(w * drift(s[order - 1 - k]) for k, w in enumerate(weights(s, order - 1, order)))
        return float((flow(x0, 2.0, 0.5) + moved - flow(x0, 2.0, 0.5 - h)).abs())

    assert observed_orders(error, (2e-2, 1e-2))[0] == pytest.approx(order + 1, abs=0.15)


def test_published_ipndm_v_loses_its_order():
    """On steps that change, the weights of order 4 do not even sum to 1; those of `ab` do."""
    s = torch.linspace(3, 1, 9, dtype=torch.float64).pow(5).tolist()
    h = s[5] - s[4]
    assert sum(ab_weights(s, 4, 4)) / h == pytest.approx(1, abs=1e-12)
    assert abs(sum(ipndm_v_weights(s, 4, 4)) / h - 1) > 1e-5


@pytest.mark.parametrize(("solver", "options", "order"), [("heun", {}, 2), ("ab", {"max_order": 4}, 4)])
def test_order_in_the_coordinates_of_another_path(solver, options, order):
    field = Field(_velocity, Linear(), "velocity")
    x = torch.tensor([[1.3]], dtype=torch.float64)

    def error(n):
        t = graded(n, order, 0.9, 0.05)
        s = t / (1 - t)
        own = SOLVERS[solver].fn(field, x, t, **options)
        return float((own - (1 - t[-1]) * flow(x / (1 - t[0]), s[0], s[-1])).abs())

    assert observed_orders(error, (320, 640))[0] == pytest.approx(order, abs=0.18)


def _velocity(x, t, class_labels):
    """Velocity of x_t = (1 - t) data + t noise: noise - data."""
    data = denoise(x / (1 - t), t / (1 - t))
    return (x - (1 - t) * data) / t - data
