"""Graded control: golden numbers, exact elements, and what every solver makes of the progress of a sample."""

from dataclasses import replace

import pytest
import torch
from golden_cases import cases
from transformer_golden import Mixture, network_of, one_hot

from samplers.field import Field
from samplers.path import VP, Linear, Trig
from samplers.solvers.asynchronous import (
    ONE_STEP,
    common_steps,
    progress_field,
    replaced,
    start_from,
    stochastic_steps,
)  # fmt: skip
from samplers.solvers.interpolant import interpolant_sde
from samplers.solvers.native import sample_native, uniform_times
from samplers.solvers.table import SOLVERS, sample
from torch_utils.rng import TorchRNG


def by_number(field, start, keep, steps, solver="euler", inverse=False, labels=None):
    flow = progress_field(field, keep, inverse=inverse)
    return sample_native(flow, start, uniform_times(steps, solver), solver=solver, class_labels=labels)


def by_size(field, start, keep, steps, solver="euler", inverse=False, labels=None):
    return common_steps(field.bind(labels), start, uniform_times(steps), keep, solver=solver, inverse=inverse)


MODES = {"uniform_number": by_number, "uniform_size": by_size}


@pytest.mark.parametrize("case", cases("combostoc", "graded_control"))
def test_golden(case):
    params, net = case.spec["params"], network_of(case)
    z, reference, keep = (case.input(name).double() for name in ("z", "ref", "mask"))
    start = start_from(Field(net), reference, z, keep)
    x = MODES[params["mode"]](
        Field(net), start, keep, params["K"], params["solver"], labels=one_hot(case.input("y"), net)
    )
    case.check("x", x)


SPEC = {"type": "exact_gaussian_mixture_elementwise", "w": [0.4, 0.6], "mu": [-1.0, 0.7], "std": 0.3}
SHAPE = (16, 1, 4, 4)


def exact(path=None, kind="velocity"):
    """The exact model of elements that know nothing of each other, each at its own time."""
    path = path or Linear()
    field = Field(getattr(Mixture(SPEC, path), kind), path, kind)
    return replace(field, facts=replace(field.facts, element_times=True, start="exact", shape=SHAPE[1:]))


def setting():
    g = torch.Generator().manual_seed(0)
    noise, reference = (torch.randn(SHAPE, generator=g, dtype=torch.float64) for _ in range(2))
    keep = torch.rand(1, *SHAPE[1:], generator=g, dtype=torch.float64)
    keep[..., 0, :], keep[..., 1, :] = 0, 1
    return noise, reference, keep


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["velocity", "noise", "score", "data"])
@pytest.mark.parametrize("path", [Linear(), Trig(), VP()])
def test_what_is_kept_is_the_reference(path, kind, mode, inverse):
    noise, reference, keep = setting()
    field = exact(path, kind)
    x = MODES[mode](field, start_from(field, reference, noise, keep), keep, 6, inverse=inverse)
    assert x.isfinite().all()
    assert torch.equal(x[..., 1, :], reference[..., 1, :])
    assert not torch.isclose(x[..., 0, :], reference[..., 0, :]).any()


@pytest.mark.parametrize("mode", MODES)
def test_nothing_kept_is_ordinary_sampling(mode):
    noise, reference, _ = setting()
    field, keep = exact(), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    own = MODES[mode](field, start_from(field, reference, noise, keep), keep, 8)
    plain = sample_native(field, noise, uniform_times(8))
    torch.testing.assert_close(own, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("solver", ONE_STEP)
def test_order_of_solvers(mode, solver):
    """Twice the steps, a smaller error by the order of the solver, whatever the strengths; both modes end alike."""
    noise, reference, keep = setting()
    field = exact()
    start = start_from(field, reference, noise, keep)
    fine = sample_native(progress_field(field, keep), start, uniform_times(2048, "rk4"), solver="rk4")
    each = SOLVERS[solver].evaluations
    errors = []
    for steps in (32, 64):
        if mode == "uniform_number":
            cost = each * steps if SOLVERS[solver].reaches_zero else each * (steps - 1) + 1
            x = by_number(field, start, keep, cost, solver)
        else:
            x = by_size(field, start, keep, steps, solver)
        errors.append(float((x - fine).abs().mean()))
    assert errors[1] < errors[0] / (1.7 if solver == "euler" or mode == "uniform_size" else 3)


@pytest.mark.parametrize("solver", ["euler", "ipndm", "dpmpp", "unipc", "deis"])
def test_solvers_in_sigma_take_the_progress(solver):
    """Also those whose formulas know sigma coordinates alone, along any schedule."""
    noise, reference, keep = setting()
    field = exact()
    start = start_from(field, reference, noise, keep)
    fine = sample_native(progress_field(field, keep), start, uniform_times(2048, "rk4"), solver="rk4")
    sigmas = torch.cat([torch.logspace(2, -2.5, 160, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    x = sample(progress_field(field, keep), start, sigmas, solver=solver)
    assert (x - fine).abs().mean() < (0.02 if solver == "euler" else 0.004)
    assert torch.allclose(x[..., 1, :], reference[..., 1, :], rtol=0, atol=1e-9)


class Hurried:
    """What a network learns from compensated velocities, if it knows the data: u (1 + t - mean t)."""

    def __init__(self, data, noise):
        self.u = noise - data

    def __call__(self, x, t, labels=None):
        t = t.expand(x.shape)
        return self.u * (1 + t - t.flatten(1).mean(1)[:, None, None, None])


@pytest.mark.parametrize("mode", MODES)
def test_the_inverse_leads_to_the_data(mode):
    """Exactly, as the raw velocity does; what hurries goes past it."""
    noise, data, keep = setting()
    field = Field(Hurried(data, noise), Linear(), "velocity")
    field = replace(field, facts=replace(field.facts, element_times=True))
    start = start_from(field, data, noise, keep)
    ends = [MODES[mode](field, start, keep, 50, inverse=inverse) for inverse in (True, False)]
    torch.testing.assert_close(ends[0], data, rtol=0, atol=1e-12)
    assert (ends[1] - data).square().mean() > 1e-3


@pytest.mark.parametrize("path", [Linear(), Trig()])
def test_replaced_elements_end_at_the_reference(path):
    noise, reference, keep = setting()
    field = replaced(exact(path), keep).bind(None, reference=reference)
    x = sample_native(field, noise, uniform_times(12))
    # elsewhere than on the linear path, Euler's steps leave an error of their own
    torch.testing.assert_close(x[..., 1, :], reference[..., 1, :], rtol=0, atol=0.1 if path == Trig() else 1e-12)
    plain = sample_native(exact(path), noise, uniform_times(12))
    torch.testing.assert_close(x[..., 0, :], plain[..., 0, :], rtol=0, atol=1e-9)


def test_denoisers_are_replaced_in_sigma():
    noise, reference, keep = setting()
    denoiser = Field(lambda x, s, labels=None: exact().ve().data(x, s))
    field = replaced(denoiser, keep).bind(None, reference=reference)
    x = sample(field, noise, [80.0, 10.0, 1.0, 0.1, 0.0])
    torch.testing.assert_close(x[..., 1, :], reference[..., 1, :], rtol=0, atol=1e-12)


def test_models_of_one_time_are_refused():
    noise, _, keep = setting()
    field = replace(exact(), facts=replace(exact().facts, element_times=False))
    with pytest.raises(ValueError, match="one time a sample"):
        progress_field(field, keep)
    with pytest.raises(ValueError, match="one time a sample"):
        common_steps(field, noise, [1.0, 0.0], keep)


def test_solvers_of_several_steps_are_refused():
    noise, _, keep = setting()
    with pytest.raises(ValueError, match="solver 'ipndm' needs steps"):
        common_steps(exact(), noise, [1.0, 0.5, 0.0], keep, solver="ipndm")


def noisy(seed=1):
    return TorchRNG(generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("path", [Linear(), Trig()])
@pytest.mark.parametrize("options", [{}, {"second_order": True}, {"form": "linear", "last_step": "tweedie"}])
def test_noise_along_the_way_of_every_element(path, options):
    """References of the data's law, at any strength: what is made has that law too, the nearer the more is kept."""
    n, levels = 4000, [*torch.linspace(1, 0.04, 101, dtype=torch.float64).tolist(), 0.0]
    field, strengths = exact(path), torch.tensor([0.0, 0.3, 0.6, 0.9, 1.0], dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    low = torch.rand(n, 5, generator=g, dtype=torch.float64) < 0.4
    reference = torch.where(low, -1.0, 0.7) + 0.3 * torch.randn(n, 5, generator=g, dtype=torch.float64)
    noise, keep = torch.randn(n, 5, generator=g, dtype=torch.float64), strengths[None]
    start = start_from(field, reference, noise, keep)
    x = stochastic_steps(field, start, levels, keep, rng=noisy(), **options)
    mean, deviation = 0.4 * -1 + 0.6 * 0.7, (0.4 * 0.6 * 1.7**2 + 0.09) ** 0.5
    # five standard errors, and 3 % for steps of first order and the last step
    assert ((x.mean(0) - mean).abs() < 5 * deviation / n**0.5 + 0.03 * deviation).all()
    assert ((x.std(0) - deviation).abs() < 5 * deviation / (2 * n) ** 0.5 + 0.03 * deviation).all()
    far = (x - reference).square().mean(0)
    assert (far[:-1] > far[1:]).all()
    # kept elements move in the last step alone, which is 1e-6 long
    torch.testing.assert_close(x[:, -1], reference[:, -1], rtol=0, atol=1e-4)


def test_nothing_kept_is_the_sampler_itself():
    levels = [1.0, 0.6, 0.3, 0.05, 0.0]
    noise, _, keep = setting()
    own = stochastic_steps(exact(), noise, levels, torch.zeros_like(keep), rng=noisy())
    torch.testing.assert_close(own, interpolant_sde(exact(), noise, levels, rng=noisy()), rtol=1e-12, atol=1e-12)
