"""Adaptive solvers: accuracy, counts, both coordinates, level 0, bad input."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from solver_variants import curved

from samplers import SOLVERS, Field, sample
from samplers.guidance import guide
from samplers.path import VE, Linear
from samplers.planning.plan import SamplerOptions, build_plan
from samplers.run import Recorder
from torch_utils.misc import expand_to

ADAPTIVE = [name for name, solver in SOLVERS.items() if solver.adaptive]
EXPLICIT = ["dopri5", "rk45", "rk23", "dop853"]
IMPLICIT = ["radau", "bdf", "lsoda"]


def gaussian_velocity(x, t, class_labels=None, s=0.5):
    """Velocity of N(0, s^2) data with independent unit noise: x_t scales like sqrt(V(t))."""
    t = expand_to(torch.as_tensor(t, dtype=x.dtype), x)
    return x * (t - (1 - t) * s**2) / (t**2 + (1 - t) ** 2 * s**2)


def flow(s=0.5):
    return Field(gaussian_velocity, Linear(), "velocity")


def test_registry():
    assert {*EXPLICIT, *IMPLICIT} == set(ADAPTIVE)


@pytest.mark.parametrize("solver", ADAPTIVE)
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
def test_native_time_to_zero(solver, tolerance):
    """The exact flow of the Gaussian ends at s z; the model is a velocity, so level 0 is integrated to."""
    z, counts, seen = torch.randn(4, 2, 2, dtype=torch.float64), [], []

    def velocity(x, t, labels=None):
        seen.extend(t.tolist())
        return gaussian_velocity(x, t)

    out = SOLVERS[solver].fn(
        Field(velocity, Linear(), "velocity"), z, [1.0, 0.0], rtol=tolerance, atol=tolerance, count=counts.extend
    )
    assert (out - 0.5 * z).abs().max() < 100 * tolerance
    assert len(counts) == len(z)
    assert sum(counts) == len(seen)  # one level per sample and call
    assert min(seen) >= 0
    assert max(seen) <= 1


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_tighter_tolerances_cost_more_and_err_less(solver):
    z, errors, counts = torch.randn(6, 3, dtype=torch.float64), [], []
    for tolerance in (1e-3, 1e-5, 1e-7):
        out = SOLVERS[solver].fn(
            flow(), z, [1.0, 0.0], rtol=tolerance, atol=tolerance, count=lambda made: counts.append(sum(made))
        )
        errors.append(float((out - 0.5 * z).abs().max()))
    assert counts == sorted(counts)
    assert counts[0] < counts[2]
    assert errors[2] < errors[0] / 10


def stiffer(x, sigma, class_labels=None):
    """Every sample of the batch needs steps of its own."""
    return torch.tanh(3 * x) * 0.9 + (0 if class_labels is None else class_labels.sum(-1, keepdim=True))


@pytest.mark.parametrize("solver", ADAPTIVE)
@pytest.mark.parametrize("tolerance", [1e-2, 1e-5])
def test_a_sample_does_not_depend_on_its_batch(solver, tolerance):
    z = torch.randn(5, 3, dtype=torch.float64) * torch.tensor([[0.1], [1], [3], [0.5], [2]])
    labels, how, counts, alone = torch.rand(5, 2, dtype=torch.float64), {"rtol": tolerance, "atol": tolerance}, [], []
    together = sample(stiffer, z, [9.0, 0.05, 0.0], solver=solver, class_labels=labels, count=counts.extend, **how)
    for i in range(5):
        one = slice(i, i + 1)
        out = sample(
            stiffer, z[one], [9.0, 0.05, 0.0], solver=solver, class_labels=labels[one], count=alone.extend, **how
        )
        torch.testing.assert_close(out, together[one], rtol=1e-9, atol=1e-9)
    assert counts == alone
    assert len(set(counts)) > 1


@pytest.mark.parametrize(
    ("solver", "method"), [(n, {"dopri5": "RK45", "radau": "Radau"}.get(n, n.upper())) for n in ADAPTIVE]
)
@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
def test_steps_are_those_of_scipy(solver, method, tolerance):
    z, field, counts = torch.randn(3, 4, dtype=torch.float64) * 9, Field(stiffer, VE()), []
    how = {"rtol": tolerance, "atol": tolerance}
    out = SOLVERS[solver].fn(field, z, [9.0, 0.05], count=counts.extend, **how)
    made = []

    def drift(t, y):
        made.append(t)
        return field.drift(torch.from_numpy(y.copy())[None], torch.tensor(t, dtype=torch.float64))[0].numpy()

    for row, result, count in zip(z, out, counts, strict=True):
        reference = solve_ivp(drift, (9.0, 0.05), row.numpy(), method=method, **how)
        np.testing.assert_allclose(result, reference.y[:, -1], rtol=1e-9, atol=1e-9)
        assert count == len(made)
        made.clear()


class Rounding(torch.nn.Module):
    """A float32 network whose last digits depend on the batch size, as those of matrix products do."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4))

    def forward(self, x, sigma, class_labels=None):
        data = stiffer(x.float() * self.weight, sigma)
        return data * (1 + 2**-23 * ((torch.arange(4) + len(x)) % 3 - 1))


@pytest.mark.parametrize("solver", EXPLICIT)
@pytest.mark.parametrize("wrap", [Field, lambda net: Field(net).ve(), lambda net: guide(net, guidance_type="uncond")])
def test_rounding_of_the_network_is_not_amplified(solver, wrap):
    z, field = torch.randn(6, 4, dtype=torch.float64), wrap(Rounding())
    with torch.no_grad():
        whole = sample(field, z, [80.0, 0.002], solver=solver, rtol=1e-2, atol=1e-2)
        alone = torch.cat(
            [sample(field, z[i : i + 1], [80.0, 0.002], solver=solver, rtol=1e-2, atol=1e-2) for i in range(6)]
        )
    torch.testing.assert_close(whole, alone, rtol=0, atol=2e-4)


def test_implicit_methods_refuse_what_they_cannot_hold():
    with pytest.raises(ValueError, match="matrix of 10443 x 10443"):
        sample(curved, torch.randn(1, 3, 59, 59), [5.0, 0.1], solver="bdf")


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_sigma_coordinates(solver):
    """N(0, s^2): D = y s^2 / (s^2 + sigma^2), the flow scales with sqrt(s^2 + sigma^2); Euler reaches 0."""
    s, z = 0.5, torch.randn(5, 4, dtype=torch.float64)

    def denoise(y, sigma, labels=None):
        return y * s**2 / (s**2 + expand_to(torch.as_tensor(sigma), y) ** 2)

    out = sample(denoise, z, [80.0, 0.002], solver=solver, rtol=1e-7, atol=1e-7)
    exact = 80 * z * math.sqrt((s**2 + 0.002**2) / (s**2 + 80**2))
    torch.testing.assert_close(out, exact, rtol=1e-4, atol=1e-5)
    sizes, counts = [], []

    def calls(y, sigma, labels=None):
        sizes.append(len(y))
        return denoise(y, sigma)

    ended = sample(calls, z, [80.0, 0.002, 0.0], solver=solver, rtol=1e-7, atol=1e-7, count=counts.extend)
    torch.testing.assert_close(ended, denoise(exact, 0.002), rtol=1e-4, atol=1e-5)
    assert sum(counts) == sum(sizes)
    assert solver in IMPLICIT or len(sizes) == max(counts)  # together: as many calls as the slowest sample needs


def test_coordinates_agree():
    z = torch.randn(4, 3, dtype=torch.float64)
    native = SOLVERS["dopri5"].fn(flow(), z, [1.0, 0.0], rtol=1e-8, atol=1e-8)
    start = 1e5  # of sigma: the state there is sigma z up to the data
    through = sample(flow(), z, [start, 1e-5, 0.0], solver="dopri5", rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(native, through, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_trace_follows_the_solvers_own_steps(solver):
    z, steps, counts = torch.randn(3, 2, dtype=torch.float64), [], []
    SOLVERS[solver].fn(flow(), z, [1.0, 0.0], trace=steps.append, count=counts.extend)
    assert [s.i for s in steps] == list(range(len(steps)))
    if solver in EXPLICIT:
        assert len(steps) * (2 if solver == "rk23" else 5) < max(counts)
    levels = torch.stack([s.level for s in steps])
    assert (levels[0] == 1).all()
    assert (levels.diff(dim=0) <= 0).all()  # samples that take no step stand still
    assert (levels.diff(dim=0) < 0).any(dim=1).all()
    torch.testing.assert_close(steps[0].x, z)
    for s in steps:  # state, drift and clean estimate belong together, and the state is on the exact trajectory
        torch.testing.assert_close(s.drift, gaussian_velocity(s.x, s.level))
        t = s.level[:, None]
        torch.testing.assert_close(s.data, s.x - t * s.drift)
        exact = z * (t**2 + (1 - t) ** 2 * 0.25).sqrt()
        torch.testing.assert_close(s.x, exact, rtol=1e-3, atol=1e-3)


def test_gradients_pass_through_dopri5():
    z = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    SOLVERS["dopri5"].fn(flow(), z, [1.0, 0.0], rtol=1e-7, atol=1e-7).sum().backward()
    torch.testing.assert_close(z.grad, torch.full_like(z, 0.5), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_dtype_of_the_state_is_that_of_the_noise(solver):
    seen = set()

    def denoise(y, sigma, labels=None):
        seen.add(y.dtype)
        return curved(y, sigma)

    out = sample(denoise, torch.randn(2, 3), [5.0, 0.1], solver=solver, rtol=1e-3, atol=1e-3)
    assert out.dtype == torch.float32
    assert seen == {torch.float32}


def test_evaluations_are_not_known_before():
    with pytest.raises(ValueError, match="not known before"):
        SOLVERS["dopri5"].nfe(num_steps=5)
    with pytest.raises(ValueError, match="has no option max_order: it takes rtol, atol"):
        SOLVERS["rk45"].nfe(num_steps=5, max_order=2)


@pytest.mark.parametrize("solver", ADAPTIVE)
@pytest.mark.parametrize(
    ("levels", "options", "message"),
    [
        (torch.ones(3, 2, dtype=torch.float64).cumsum(0).flip(0), {}, "one step for all elements"),
        ([5.0, 0.0], {}, "small level before the 0"),
        ([5.0, 0.1], {"rtol": 0.0}, "above 0"),
        ([5.0, 0.1], {"atol": -1.0}, "above 0"),
    ],
)
def test_bad_input(solver, levels, options, message):
    with pytest.raises(ValueError, match=message):
        SOLVERS[solver].fn(Field(curved, VE()), torch.randn(2, 3, dtype=torch.float64), levels, **options)


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_a_field_that_is_not_finite(solver):
    def broken(x, sigma, labels=None):
        return torch.where(expand_to(torch.as_tensor(sigma), x) < 1, torch.nan, 0.5) * x

    with pytest.raises(ValueError, match="cannot go on"):
        sample(broken, torch.randn(2, 3, dtype=torch.float64), [5.0, 0.1], solver=solver)


# ----------------------------------------------------------------------------------------------------------------------
# Plans


class Denoiser:
    label_dim, sigma_min, sigma_max, samples = 0, 0.0, math.inf, 0

    def __call__(self, x, sigma, class_labels=None):
        self.samples += len(x)
        return curved(x, sigma)

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_plan_counts_every_image(solver):
    net = Denoiser()
    options = {"solver": solver, "rtol": 1e-3, "atol": 1e-3, "denoise_to_zero": True}
    plan = build_plan(net, SamplerOptions(**options))
    assert plan.nfe is None
    assert "rtol 0.001" in str(plan)
    assert "known after sampling" in str(plan)
    for _ in range(2):
        plan(net, torch.randn(3, 4))
    assert len(plan.evaluations) == 6
    assert sum(plan.evaluations) == net.samples


def test_recorded_trajectory_of_a_plan():
    plan = build_plan(Denoiser(), SamplerOptions(solver="dopri5", rtol=1e-2, atol=1e-2))
    recorder = Recorder(plan)
    recorder(Denoiser(), torch.randn(3, 4))
    assert recorder.x.shape[1] == recorder.drift.shape[1] + 1 == recorder.sigmas.shape[1]
    assert recorder.sigmas[0, 0] == pytest.approx(80)
    assert recorder.sigmas[0, -1] == pytest.approx(0.002)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 5}, "chooses its steps itself: leave out --num-steps"),
        ({"t_steps": (80.0, 1.0)}, "leave out --t-steps"),
        ({"schedule_rho": 5.0}, "leave out --schedule-rho"),
        ({"steps": 5}, "--num-steps|EDM"),
        ({"afs": True}, "analytical first step"),
        ({"max_order": 2}, "no option max_order"),
    ],
)
def test_options_of_fixed_steps(options, message):
    with pytest.raises(ValueError, match=message):
        build_plan(Denoiser(), SamplerOptions(solver="dopri5", **options))


def test_tolerances_belong_to_adaptive_solvers():
    with pytest.raises(ValueError, match="'heun' has no option rtol"):
        build_plan(Denoiser(), SamplerOptions(solver="heun", rtol=1e-3, num_steps=4))


def test_plan_counts_the_exact_start():
    """A flow model in sigma coordinates begins with one more evaluation, at infinite sigma."""

    class Flow(Denoiser):
        path, predicts, start = "linear", "velocity", "exact"

        def __call__(self, x, t, class_labels=None):
            self.samples += len(x)
            return gaussian_velocity(x, t)

    net, z = Flow(), torch.randn(3, 4, dtype=torch.float64)
    plan = build_plan(net, SamplerOptions(solver="dopri5", coordinates="sigma", rtol=1e-7, atol=1e-7))
    out = plan(net, z)
    assert sum(plan.evaluations) == net.samples
    torch.testing.assert_close(out, 0.5 * z, rtol=0, atol=1e-2)  # sigma_min is left in
