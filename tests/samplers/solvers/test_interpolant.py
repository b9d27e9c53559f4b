"""The stochastic sampler of interpolants, its time intervals, and paths and solvers against golden numbers."""

import math

import pytest
import torch
from golden_cases import cases
from transformer_golden import Mixture, Stream, field_of, ode_times, path_of, sde_times

from samplers.field import Field
from samplers.path import VE, VP, Linear, Trig
from samplers.solvers.adaptive import dopri5
from samplers.solvers.interpolant import FORMS, LAST_STEPS, LEARNT, interpolant_sde, time_interval
from samplers.solvers.onestep import euler
from samplers.solvers.rungekutta import heun2, heun3, midpoint, rk4
from torch_utils.misc import expand_to
from torch_utils.rng import TorchRNG

# --- paths ------------------------------------------------------------------------------------------------------------


def near(case, name="t"):
    """Our time, in the shape that the case's state broadcasts against."""
    t = 1 - case.input(name).double()
    x = case.input("x")
    x = case.input("x0") if x is None else x
    return t if x is None else expand_to(t, x)


@pytest.mark.parametrize("case", cases("combostoc", "path_coefficients"))
def test_path_coefficients(case):
    path, t = path_of(case.spec["params"]), near(case)
    own = {
        "alpha": path.alpha(t), "dalpha": -path.d_alpha(t), "sigma": path.sigma(t), "dsigma": -path.d_sigma(t),
        "ratio": -path.d_alpha(t) / path.alpha(t),
    }  # fmt: skip
    for role in case.roles:
        case.check(role, own[role])


@pytest.mark.parametrize("case", cases("combostoc", "path_drift"))
def test_path_drift(case):
    path, t, x = path_of(case.spec["params"]), near(case), case.input("x").double()
    assert case.spec["params"]["convention"] == "drift_mean=-(alpha_dot/alpha)*x, drift_var=q(t)"
    own = {
        "drift_mean": path.d_alpha(t) / path.alpha(t) * x,
        "drift_var": path.score_gain(t).reshape(case.input("t").shape),
    }
    for role in case.roles:
        case.check(role, own[role])


@pytest.mark.parametrize("case", cases("combostoc", "diffusion_coefficient"))
def test_diffusion(case):
    params = case.spec["params"]
    t = 1 - case.input("t").double()
    case.check("diffusion", FORMS[params["form"]](path_of(params), t, params["norm"]))


@pytest.mark.parametrize("case", cases("combostoc", "path_conversions"))
def test_path_conversions(case):
    path, t, x = path_of(case.spec["params"]), near(case), case.input("x").double()
    velocity, score = -case.input("velocity").double(), case.input("score")
    noise = Field(lambda *_: velocity, path, "velocity").velocity_and_noise(x, t)[1]
    own = {
        "score_from_velocity": -noise / path.sigma(t), "noise_from_velocity": noise,
    }  # fmt: skip
    if score is not None:
        own["velocity_from_score"] = -Field(lambda *_: score.double(), path, "score").velocity(x, t)
    for role in case.roles:
        case.check(role, own[role])


@pytest.mark.parametrize("case", cases("combostoc", "path_plan"))
def test_path_plan(case):
    path, t = path_of(case.spec["params"]), near(case)
    data, noise = case.input("x1").double(), case.input("x0").double()
    mixed = path.mix(data, noise, t)
    own = {"xt": mixed, "ut": -path.target(data, noise, t, "velocity"), "mu": mixed}
    for role in case.roles:
        case.check(role, own[role])


@pytest.mark.parametrize("case", cases("combostoc", "denoiser"))
def test_denoiser(case):
    params = case.spec["params"]
    path, x = path_of(params), case.input("x").double()
    t = expand_to(1 - case.input("t").double(), x)
    mixture = Mixture(params["predictor"], path)
    own = {"sigma": path.level_at(t)}
    for kind in ("velocity", "noise", "score"):
        field = Field(getattr(mixture, kind), path, kind)
        value = getattr(mixture, kind)(x, t)
        own[kind] = -value if kind == "velocity" else value
        # the estimate of every prediction is the same, in sigma coordinates as well
        case.check("D", field.data(x, t))
        case.check("D", field.ve().data(x / path.alpha(t), path.level_at(t)))
    for role in set(case.roles) - {"D"}:
        case.check(role, own[role])


# --- intervals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases("combostoc", "interval"))
def test_interval(case):
    params = case.spec["params"]
    path = VP() if params["path"] == "VP" else path_of({**params, "beta_min": None})
    form = params["diffusion_form"] if params["sde"] else None
    noise, data = time_interval(
        path, params["prediction"], form=form, last_step=params["last_step_size"], eps=params[params["eps_used"]],
        training=not params["eval"],
    )  # fmt: skip
    first, last = 1 - noise, 1 - data
    if params["reverse"]:
        first, last = 1 - first, 1 - last
    case.check("t0", first)
    case.check("t1", last)


# --- solvers ----------------------------------------------------------------------------------------------------------

FIXED = {"euler": euler, "midpoint": midpoint, "heun2": heun2, "heun3": heun3, "rk4": rk4}


@pytest.mark.parametrize("case", cases("combostoc", "sample_ode"))
def test_sample_ode(case):
    params = case.spec["params"]
    field, z, times = field_of(params), case.input("z").double(), ode_times(params)
    if params["adaptive"]:
        assert params["method"] == "dopri5"
        end = dopri5(field, z, times[[0, -1]], rtol=1e-8, atol=1e-8)
        case.check("final", end)
        return
    states = []
    end = FIXED[params["method"]](field, z, times, trace=lambda step: states.append(step.x))
    own = {"final": end, "traj": torch.stack([*states, end])}
    for role in case.roles:
        case.check(role, own[role])


@pytest.mark.parametrize("case", cases("combostoc", "sample_sde"))
def test_sample_sde(case):
    params = case.spec["params"]
    last = params["last_step"].lower()
    times = sde_times(params)
    levels = times if last == "none" else torch.cat([times, torch.zeros(1, dtype=torch.float64)])
    states = []
    calls = []
    field = field_of(params)
    counted = Field(lambda *a: (calls.append(1), field.net(*a))[1], field.path, field.predicts)
    end = interpolant_sde(
        counted, case.input("z").double(), levels, form=params["diffusion_form"], norm=params["diffusion_norm"],
        second_order=params["method"] == "Heun", last_step=last, rng=Stream(params["noise"]),
        trace=lambda step: states.append(step.x),
    )  # fmt: skip
    steps, corrected = len(levels) - 1, params["method"] == "Heun"
    assert len(calls) == (steps - (last != "none")) * (1 + corrected) + (last != "none"), "one call per evaluation"
    if not corrected:  # Heun's trace is of the state with noise added
        trajectory = torch.stack([*states[1:], end] if last != "none" else [*states[1:], end, end])
        if "traj" in case.roles:
            case.check("traj", trajectory)
    case.check("final", end)


# --- any field, any form ----------------------------------------------------------------------------------------------


def gaussian(path, kind, deviation=0.5):
    """The exact network for data N(0, deviation^2)."""
    spec = {"type": "exact_gaussian_mixture_elementwise", "w": [1.0], "mu": [0.0], "std": deviation}
    return Field(getattr(Mixture(spec, path), kind), path, kind)


TABLE = [(1.0, 0.3), (0.5, 0.2), (0.0, 0.1)]  # times and losses


@pytest.mark.parametrize("form", [*FORMS, LEARNT])
@pytest.mark.parametrize("kind", ["velocity", "noise", "score", "data"])
def test_marginals_do_not_depend_on_the_noise(form, kind):
    """Samples of Gaussian data have its deviation, whatever is added on the way."""
    n, path = 4000, Linear()
    rng = TorchRNG(generator=torch.Generator().manual_seed(0))
    levels = torch.cat([torch.linspace(0.999, 0.04, 200, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    x = rng.randn([n, 1], dtype=torch.float64)
    more = {"losses": TABLE} if form == LEARNT else {}
    end = interpolant_sde(gaussian(path, kind), x, levels, form=form, norm=0.5, last_step="tweedie", rng=rng, **more)
    # the last step loses the variance of the data given a state at t = 0.04: 1 / (1 / 0.25 + 0.96^2 / 0.04^2)
    exact = math.sqrt(0.25 - 1 / (4 + 0.96**2 / 0.04**2))
    # five standard errors of a deviation, and 1 % for 200 steps of first order
    assert abs(float(end.std()) - exact) < 5 * exact / math.sqrt(2 * n) + 0.01 * exact


@pytest.mark.parametrize("path", [Linear(), Trig(), VP()])
def test_noise_that_follows_losses(path):
    """D = w L / (L + 2 eta w^2) / 2 of w = 2 q, through the steps that it makes; 0 where q is without bound."""
    field, eta, norm = gaussian(path, "velocity"), 0.05, 0.7
    for t, loss in ((0.75, 0.25), (0.5, 0.2), (0.1, 0.12)):
        w = 2 * float(path.score_gain(torch.tensor(t, dtype=torch.float64)))
        expected = norm * w * loss / (loss + 2 * eta * w**2) / 2
        x, times = torch.zeros(1, 1, dtype=torch.float64), [t, t - 0.05]  # no drift at 0
        added = interpolant_sde(
            field, x, times, form=LEARNT, norm=norm, eta=eta, losses=TABLE, last_step="none",
            rng=TorchRNG(generator=torch.Generator().manual_seed(0)),
        )  # fmt: skip
        unit = torch.randn(1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        torch.testing.assert_close(added, (2 * expected * 0.05) ** 0.5 * unit, rtol=1e-9, atol=0)
    if not isinstance(path, VP):
        end = interpolant_sde(field, torch.ones(1, 1).double(), [1.0, 0.5, 0.0], form=LEARNT, losses=TABLE)
        assert end.isfinite().all()


def test_losses_and_their_form_belong_together():
    x, field = torch.zeros(2, 1), gaussian(Linear(), "velocity")
    for more in ({"form": LEARNT}, {"form": LEARNT, "losses": TABLE[:1]}, {"losses": TABLE}):
        with pytest.raises(ValueError, match="follows a table of losses"):
            interpolant_sde(field, x, [0.9, 0.1, 0.0], **more)


def test_denoisers_are_seen_on_a_path():
    """A model in sigma coordinates has the same samples as the same model on the path itself."""
    path, times = Linear(), [0.99, 0.7, 0.4, 0.1, 0.0]
    x = torch.randn(16, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    own, ends = gaussian(path, "velocity"), []
    denoiser = Field(lambda y, s, labels=None: own.ve().data(y, s))
    for field in (own, denoiser.on(path)):
        rng = TorchRNG(generator=torch.Generator().manual_seed(1))
        ends.append(interpolant_sde(field, x, times, rng=rng))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-10, atol=1e-10)


def test_times_of_elements():
    """With the same times everywhere, maps give what numbers give."""
    times = [0.99, 0.7, 0.4, 0.1, 0.0]
    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = []
    for levels in (times, [torch.full((8, 3), t, dtype=torch.float64) for t in times]):
        rng = TorchRNG(generator=torch.Generator().manual_seed(1))
        ends.append(interpolant_sde(gaussian(Linear(), "velocity"), x, levels, rng=rng))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("last", LAST_STEPS)
def test_the_last_step_and_the_levels_agree(last):
    x, field = torch.zeros(2, 1, dtype=torch.float64), gaussian(Linear(), "velocity")
    wrong = [0.9, 0.1, 0.0] if last == "none" else [0.9, 0.1]
    with pytest.raises(ValueError, match=f"'{last}' needs levels that end"):
        interpolant_sde(field, x, wrong, last_step=last)


@pytest.mark.parametrize(("given", "message"), [({"form": "more"}, "'more' is"), ({"last_step": "jump"}, "'jump' is")])
def test_words_that_do_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        interpolant_sde(gaussian(Linear(), "velocity"), torch.zeros(2, 1), [0.9, 0.1, 0.0], **given)


def test_sigma_coordinates_are_refused():
    with pytest.raises(ValueError, match="lives in sigma"):
        interpolant_sde(Field(lambda x, s, y: x, VE(), "data"), torch.zeros(2, 1), [0.9, 0.1, 0.0])


@pytest.mark.parametrize("path", [Linear(), Trig(), VP()])
def test_one_call_is_two(path):
    """Velocity and score from one call are those of a call each, at every step (Euler's, with a last step)."""
    field = gaussian(path, "velocity")
    x = start = torch.randn(8, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = [0.98, 0.6, 0.3, 0.05]
    rng = TorchRNG(generator=torch.Generator().manual_seed(1))
    for now, then in zip(times, [*times[1:], 0.0], strict=True):
        t = torch.tensor(now, dtype=torch.float64)
        velocity = field.velocity(x, t)
        score = -field.noise(x, t) / path.sigma(t)
        drift, h = path.sigma(t) * score - velocity, now - then  # towards the data
        added = (2 * path.sigma(t) * h) ** 0.5 * rng.randn(x.shape, dtype=x.dtype) if then else 0
        x = x + h * drift + added
    rng = TorchRNG(generator=torch.Generator().manual_seed(1))
    own = interpolant_sde(field, start, [*times, 0.0], form="sigma", rng=rng)
    torch.testing.assert_close(own, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", [Linear(), Trig(), VP()])
def test_all_predictions_have_one_flow(path):
    """Exact models of a mixture that predict velocity, noise, score or data end alike; tolerances of the solver."""
    spec = {"type": "exact_gaussian_mixture_elementwise", "w": [0.4, 0.6], "mu": [-1.0, 0.7], "std": 0.3}
    x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = [
        dopri5(Field(getattr(Mixture(spec, path), kind), path, kind), x, [0.999, 0.001], rtol=1e-8, atol=1e-8)
        for kind in ("velocity", "noise", "score", "data")
    ]
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=0, atol=1e-6)
