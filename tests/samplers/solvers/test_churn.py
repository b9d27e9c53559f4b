"""The EDM samplers against recorded runs, against exact solutions, and with bad input."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from golden_cases import cases

from samplers.field import Field
from samplers.schedules.edm import general_levels
from samplers.solvers.churn import ablation_sampler, edm_sampler, heun_churn
from torch_utils.rng import PerSampleRNG, TorchRNG

SAMPLERS = {"edm": edm_sampler, "ablation": ablation_sampler}


class RecordedRNG:
    """The i-th draw is slice i of a recorded array; another source may stand behind it. Draws are counted."""

    def __init__(self, source):
        self.source = source
        self.draws = 0

    def randn(self, shape, dtype=torch.float32, batch_dim=0):
        self.draws += 1
        if isinstance(self.source, np.ndarray):
            return torch.from_numpy(self.source[self.draws - 1]).reshape(list(shape)).to(dtype)
        return self.source.randn(shape, dtype, batch_dim)


class Mixture:
    """The optimal denoiser of a Gaussian mixture, with a network's attributes; counts calls."""

    def __init__(self, case):
        self.weights, self.means, self.stds, self.shift = (
            case.tensor(case.file["denoiser"][k]) for k in ("weights", "means", "stds", "class_shift")
        )
        spec = case.spec["net"]
        self.sigma_min, self.sigma_max = spec["sigma_min"], spec["sigma_max"]
        self.table = None if spec["round_sigma"] is None else iddpm_table(spec["round_sigma"])
        self.sigmas = []

    def round_sigma(self, sigma):
        if self.table is None:
            return torch.as_tensor(sigma)
        table = self.table.to(sigma.dtype)
        return table[(sigma.reshape(-1, 1) - table).abs().argmin(dim=1)].reshape(sigma.shape)

    def __call__(self, x, sigma, class_labels=None):
        self.sigmas.append(float(sigma))
        flat = x.reshape(len(x), -1)
        var = self.stds**2 + sigma**2
        delta = flat[:, None] - self.means.reshape(len(self.weights), -1)
        log_r = self.weights.log() - 0.5 * delta.square().sum(-1) / var - 0.5 * flat.shape[1] * var.log()
        estimate = (self.stds[:, None] ** 2 * flat[:, None] + sigma**2 * self.means.reshape(len(var), -1)) / var[
            :, None
        ]
        data = (log_r.softmax(1)[..., None] * estimate).sum(1)
        if class_labels is not None:
            data = data + class_labels.to(data.dtype) @ self.shift
        return data.reshape(x.shape)


def iddpm_table(spec):
    M, C_1, C_2 = spec["M"], spec["C_1"], spec["C_2"]
    alpha_bar = torch.sin(0.5 * math.pi * torch.arange(M + 1) / M / (C_2 + 1)) ** 2
    u = torch.zeros(M + 1, dtype=getattr(torch, spec["table_dtype"]))
    for j in range(M, 0, -1):
        u[j - 1] = ((u[j] ** 2 + 1) / (alpha_bar[j - 1] / alpha_bar[j]).clamp(min=C_1) - 1).sqrt()
    return u


@pytest.mark.parametrize("case", cases("edm", "sampler"))
def test_recorded_run(case):
    spec, net = case.spec, Mixture(case)
    noise = case.tensor(spec["latents"])
    labels = None
    if spec["noise"]["mode"] == "recorded":
        state = np.random.RandomState(spec["noise"]["randomstate_seed"])
        rng = RecordedRNG(state.standard_normal(spec["noise"]["shape"]))
        if spec["class_labels"] is not None:
            index = torch.tensor(spec["class_labels"]["index"])
            labels = torch.nn.functional.one_hot(index, spec["class_labels"]["num_classes"])
    else:
        source = PerSampleRNG(spec["noise"]["seeds"])
        case.expect(spec["latents"], source.randn(noise.shape), {"atol": 0, "rtol": 0}, drawn=True)
        if spec["class_labels"] is not None:
            classes = spec["class_labels"]["num_classes"]
            labels = torch.nn.functional.one_hot(source.randint(classes, [len(noise)]), classes)
            np.testing.assert_array_equal(labels, case[spec["class_labels"]["array"]])
        rng = RecordedRNG(source)
    x = SAMPLERS[spec["sampler"]](net, noise, labels, rng=rng, **spec["kwargs"])
    assert x.dtype == torch.float64
    case.expect("x", x)
    case.expect("sigmas_evaluated", net.sigmas)
    assert (len(net.sigmas), rng.draws) == (spec["nfe"], spec["num_noise_draws"])


class Gaussian:
    """The optimal denoiser of N(0, v I), whose flow is x(s) = x(s0) sqrt((v + s^2) / (v + s0^2))."""

    def __init__(self, v=0.25):
        self.v = v

    def __call__(self, x, sigma, class_labels=None):
        return x * self.v / (self.v + sigma**2)

    def exact(self, noise, sigma_max=80):
        return sigma_max * noise * math.sqrt(self.v / (self.v + sigma_max**2))


def test_error_falls_fourfold_per_halving():
    net, noise = Gaussian(), torch.randn(4, 7, dtype=torch.float64)
    errors = [(edm_sampler(net, noise, num_steps=n) - net.exact(noise)).abs().max() for n in (64, 128, 256)]
    assert 3.5 < errors[0] / errors[1] < 4.5
    assert 3.5 < errors[1] / errors[2] < 4.5


@pytest.mark.parametrize("alpha", [0.5, 2 / 3, 1])
def test_every_alpha_is_at_least_of_second_order(alpha):
    net, noise = Gaussian(), torch.randn(4, 7, dtype=torch.float64)
    options = {"alpha": alpha, "sigma_min": 1e-5}  # the last, first-order step adds nothing that counts
    runs = [ablation_sampler(net, noise, num_steps=n, **options) for n in (128, 256)]
    errors = [(x - net.exact(noise)).abs().max() for x in runs]
    assert errors[0] / errors[1] > 3.3  # the midpoint rule does better than order 2 here


def test_general_sampler_contains_the_edm_sampler():
    net, noise = Gaussian(), torch.randn(4, 2, 3, 3)
    options = {"num_steps": 9, "S_churn": 12, "S_min": 0.05, "S_max": 30, "S_noise": 1.003}
    a = edm_sampler(net, noise, rng=TorchRNG(generator=torch.Generator().manual_seed(1)), **options)
    b = ablation_sampler(net, noise, rng=TorchRNG(generator=torch.Generator().manual_seed(1)), **options)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_churn_keeps_the_variance():
    net, rng = Gaussian(), TorchRNG(generator=torch.Generator().manual_seed(0))
    noise = torch.randn(20000, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = edm_sampler(net, noise, rng=rng, num_steps=100, S_churn=20)
    assert abs(x.std() - 0.5) < 0.01
    assert abs(torch.corrcoef(torch.cat([x, noise], 1).T)[0, 1]) < 0.9  # the added noise replaced much of the first


def test_one_step_is_the_jump_to_zero():
    noise = torch.randn(3, 2, 4, 4)
    x = edm_sampler(Gaussian(), noise, num_steps=1)
    torch.testing.assert_close(x, Gaussian()(80 * noise.double(), torch.tensor(80.0).double()))
    assert general_levels(Gaussian(), 1).tolist() == [80, 0]


def test_any_levels_and_a_last_level_above_zero():
    net, noise, calls = Gaussian(), torch.randn(5, 3, dtype=torch.float64), []
    levels = [80.0, 10.0, 1.0, 0.1]
    x = heun_churn(Field(lambda x, s, c: calls.append(float(s)) or net(x, s)), 80 * noise, levels)
    assert calls == [80, 10, 10, 1, 1, 0.1]  # every step corrected
    y = 80 * noise
    for a, b in pairwise(levels):
        d = (y - net(y, a)) / a
        z = y + (b - a) * d
        y = y + (b - a) * (d + (z - net(z, b)) / b) / 2
    torch.testing.assert_close(x, y)


@pytest.mark.parametrize("sampler", [edm_sampler, ablation_sampler])
def test_trace_is_in_ve_coordinates(sampler):
    options = {} if sampler is edm_sampler else {"schedule": "vp", "scaling": "vp"}
    net, noise, steps = Gaussian(), torch.randn(2, 3, 4, 4), []
    sampler(net, noise, num_steps=5, trace=steps.append, **options)
    assert [s.i for s in steps] == list(range(5))
    for step, level in zip(steps, general_levels(net, 5)[:-1], strict=True):
        torch.testing.assert_close(step.level, level, rtol=1e-9, atol=0)
        torch.testing.assert_close(step.data, net(step.x, step.level))
        torch.testing.assert_close(step.drift, (step.x - step.data) / step.level)
    torch.testing.assert_close(steps[0].x, 80 * noise.double(), rtol=1e-9, atol=1e-9)


def test_deterministic_run_without_rng_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    edm_sampler(Gaussian(), torch.ones(2, 3), num_steps=3)
    assert torch.equal(state, torch.get_rng_state())
    edm_sampler(Gaussian(), torch.ones(2, 3), num_steps=3, S_churn=1)
    assert not torch.equal(state, torch.get_rng_state())


def test_gradient_flows_through_the_sampler():
    noise = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    edm_sampler(Gaussian(), noise, num_steps=4).sum().backward()
    assert torch.isfinite(noise.grad).all()
    assert noise.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        (edm_sampler, {"num_steps": 0}, "0 steps"),
        (ablation_sampler, {"num_steps": -1}, "-1 steps"),
        (edm_sampler, {"sigma_min": 90}, "no range"),
        (edm_sampler, {"sigma_min": -1}, "no range"),
        (edm_sampler, {"S_churn": -1}, "S_churn"),
        (ablation_sampler, {"solver": "rk4"}, "euler, heun"),
        (ablation_sampler, {"discretization": "cosine"}, "vp, ve, iddpm, edm"),
        (ablation_sampler, {"schedule": "edm"}, "vp, ve, linear"),
        (ablation_sampler, {"scaling": "ve"}, "vp, none"),
        (ablation_sampler, {"alpha": 0}, "alpha"),
        (ablation_sampler, {"discretization": "iddpm", "sigma_min": 0.002, "sigma_max": 0.003}, "iDDPM table"),
    ],
)
def test_bad_input(sampler, options, message):
    with pytest.raises(ValueError, match=message):
        sampler(Gaussian(), torch.ones(1, 3), **options)


def test_bad_levels():
    with pytest.raises(ValueError, match="at least two"):
        heun_churn(Field(Gaussian()), torch.ones(1, 3), [80.0])
