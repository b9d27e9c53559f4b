"""Fused drifts of IDFF, and the solvers that run on them."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from golden_cases import cases, fill_weights
from torch import nn

from samplers.field import Field, as_field
from samplers.fusion import Fusion, Fusion2024, Fusion2025, fused
from samplers.path import BrownianBridge, Linear
from samplers.planning.plan import SamplerOptions, build_plan
from samplers.schedules.formulas import get_schedule
from samplers.solvers.bridge import Increment, srid2
from samplers.solvers.native import sample_native
from samplers.solvers.onestep import euler
from samplers.solvers.rungekutta import rk4, ssprk3
from samplers.solvers.table import sample
from torch_utils.rng import TorchRNG

# --- golden -----------------------------------------------------------------------------------------------------------


class Mlp(nn.Module):
    """The small networks of the golden cases, which are told the papers' time."""

    def __init__(self, spec):
        super().__init__()
        config = spec["config"]
        rows, width = config.get("time_embed"), config["w"]
        self.time_index_embedding = nn.Embedding(rows, width) if rows else None
        inputs = config["dim"] + config["time_varying"] + (width if rows else 0)
        sizes = [inputs, width, width, width, config["out_dim"]]
        layers = [[nn.Linear(a, b), nn.SELU()] for a, b in itertools.pairwise(sizes)]
        self.net = nn.Sequential(*list(itertools.chain(*layers))[:-1])
        fill_weights(self)

    def forward(self, x, index=None):
        if self.time_index_embedding is not None:
            row = self.time_index_embedding(torch.tensor(index)).expand(len(x), -1)
            x = torch.cat([x, row.to(x.dtype)], dim=1)
        return self.net(x)


def heads_of(case, index=None):
    """`heads(x, t)` of the case's network: float64, our time."""
    params = case.spec["params"]
    net = params["net"]
    if isinstance(net, dict):
        a, b, c, d, e, label = (net[k] for k in ("a", "b", "c", "d", "e", "label_coefficient"))
        shift = 0 if params["label"] is None else label * params["label"]
        return lambda x, t: (a * x.sin() + b * (1 - t) + c + shift, d * x.cos() - e * (1 - t) * x)
    mlp = Mlp(case.networks[net]).double()
    twice = params["net_input"] == "x,x,t"

    def heads(x, t):
        u = (1 - t.double()).reshape(-1, 1).expand(len(x), 1)
        out = mlp(torch.cat([x, x, u] if twice else [x, u], dim=1), index)
        return tuple(out.chunk(2, dim=1)) if twice else (out, None)

    return heads


def fusion_of(params, gammas=None):
    if params["field"] == "legacy_2024":
        momentum = params["momentum_scale"] * params["momentum_sign"]
        return Fusion2024(params["sigma_s"], params["delta"], momentum, params["noise_scale"])
    assert params["field"] == "legacy_2025"
    return Fusion2025(
        tuple(params["gammas"] if gammas is None else gammas), params["sigma_s"], params["delta"],
        params["damping_gamma"], params["derivative_sign"], params["noise_scale"], params["variant"] == "order1_head",
    )  # fmt: skip


def field_of(fusion, heads):
    return Field(lambda x, t, labels=None: fusion.velocity(heads, x, t), Linear(), "velocity")


def time_of(u):
    """Our time of a time that the files give in float32."""
    return torch.tensor(1 - u, dtype=torch.float64)


@pytest.mark.parametrize("case", cases("idff", "field"))
def test_field(case):
    params = case.spec["params"]
    fusion, x, t = fusion_of(params), case.input("x").double(), time_of(params["t"])
    own = {"f": -fusion.velocity(heads_of(case, params.get("index")), x, t), "g": fusion.diffusion(t)}
    for role in case.roles:
        case.check(role, own[role])


def between(states, times, wanted):
    """States at wanted times, linear between the solver's own."""
    times, wanted = np.asarray(times), np.asarray(wanted)
    after = np.clip(np.searchsorted(times, wanted - 1e-12), 1, len(times) - 1)
    share = (wanted - times[after - 1]) / (times[after] - times[after - 1])
    shape = (-1, *[1] * (states.ndim - 1))
    share = torch.from_numpy(share).reshape(shape)
    return torch.lerp(states[after - 1], states[after], share)


def run(solver, field, x, times, **options):
    """States at the papers' times."""
    states = []
    end = solver(field, x, [1 - u for u in times], trace=lambda step: states.append(step.x), **options)
    return torch.stack([*states, end])


@pytest.mark.parametrize("case", cases("idff", "sample_sde"))
def test_sample_sde(case):
    params = case.spec["params"]
    assert params["solver"] == "srid2"
    fusion, x = fusion_of(params), case.input("x").double()
    times = [*(params["t0"] + i * params["step"] for i in range(params["steps"])), params["t1"]]
    options, solver = {}, ssprk3
    if (w := case.input("W")) is not None:
        increments = [Increment(a, b) for a, b in zip(w.double(), case.input("U").double(), strict=True)]
        options, solver = {"diffusion": fusion.diffusion, "increments": increments}, srid2
        intervals = case.input("step_intervals").double()
        torch.testing.assert_close(intervals[:, 0], torch.tensor(times[:-1]).double(), rtol=0, atol=1e-6)
    states = run(solver, field_of(fusion, heads_of(case)), x, times, **options)
    low, high, count = params["output_times"]["linspace"]
    own = {"final": states[-1], "traj": between(states, times, np.linspace(low, high, count))}
    if "uint8" in case.roles:
        shape = params["state_shape"]
        own["uint8"] = (127.5 * states[-1].clamp(-1, 1) + 128).clamp(0, 255).to(torch.uint8)
        own["uint8"] = own["uint8"].reshape(-1, *shape).permute(0, 2, 3, 1)
    for role in case.roles:
        case.check(role, own[role])


@pytest.mark.parametrize("case", cases("idff", "sample_ode"))
def test_sample_ode(case):
    params = case.spec["params"]
    x = case.input("x").double()
    heads = heads_of(case)
    calls = []

    def counted(x, t):
        calls.append(1)
        return heads(x, t)

    if params["field"] == "cfm_baseline":
        field = Field(lambda y, t, labels=None: -(counted(y, t)[0] - x), Linear(), "velocity")
    else:
        field = field_of(fusion_of(params), counted)
    times = np.linspace(params["t0"], params["t1"], params["steps"] + 1).tolist()
    states = run({"euler": euler, "rk4_38": rk4}[params["solver"]], field, x, times)
    assert len(calls) == params["steps"] * {"euler": 1, "rk4_38": 4}[params["solver"]]
    own = {"final": states[-1], "traj": states}
    for role in case.roles:
        case.check(role, own[role])


@pytest.mark.parametrize("case", cases("idff", "sample_rollout"))
def test_rollout(case):
    params = case.spec["params"]
    assert params["solver"] == "srid2"
    x = case.input("x").double()
    intervals, w, u = (case.input(k).double() for k in ("step_intervals", "W", "U"))
    frames = []
    for k, (gammas, index) in enumerate(zip(params["gammas_per_frame"], params["index_per_frame"], strict=True)):
        fusion = fusion_of(params, gammas)
        times = [*intervals[k][:, 0].tolist(), params["t1"]]
        increments = [Increment(a, b) for a, b in zip(w[k], u[k], strict=True)]
        x = run(
            srid2, field_of(fusion, heads_of(case, index)), x, times, diffusion=fusion.diffusion, increments=increments
        )[-1]
        frames.append(x)
    case.check("frames", torch.stack(frames))


# --- exactness, on mixtures of Gaussians ------------------------------------------------------------------------------


class Mixture:
    """Isotropic Gaussians, independent noise N(0, I), a Brownian bridge of deviation `bridge`."""

    def __init__(self, mu, std, w, bridge):
        self.mu, self.std, self.w, self.bridge = mu.double(), std.double(), w.double(), bridge

    def data(self, x, sigma):
        """E[data | data + sigma * noise = x]."""
        variance = self.std**2 + sigma**2
        squares = (x[:, None] - self.mu).square().sum(2)  # not cdist, which has no second derivative
        logits = self.w.log() - 0.5 * squares / variance - 0.5 * x.shape[1] * variance.log()
        share = logits.softmax(1)[:, :, None]
        return (share * (self.mu + (self.std**2 / variance)[:, None] * (x[:, None] - self.mu))).sum(1)

    def heads(self, x, t, class_labels=None):
        """The best clean estimate and the best second head at x_t; at u = 0 their limit."""
        path, u = BrownianBridge(self.bridge), (1 - torch.as_tensor(t, dtype=torch.float64)).clamp(min=1e-9)
        t = 1 - u
        m = self.data(x / u, path.sigma(t) / u)
        score = -(x - u * m) / path.sigma(t) ** 2
        return m, 0.5 * self.bridge**2 * score


class Network(nn.Module):
    """A mixture as the network of IDFF that training aims at."""

    path, predicts, start, score_target, sample_shape = "bridge", "data", "exact", "eps", (2,)

    def __init__(self, bridge):
        super().__init__()
        means = torch.tensor([[-0.6, 0.3], [0.5, 0.5], [0.1, -0.7]])
        self.mixture = Mixture(means, torch.tensor([0.3, 0.4, 0.35]), torch.tensor([0.3, 0.4, 0.3]), bridge)
        self.path_options, self.heads = {"bridge": bridge}, self.mixture.heads

    def forward(self, x, t, class_labels=None):
        return self.heads(x, t)[0]


def mixture_of(case):
    return Mixture(
        *(case.input(k).reshape(s) for k, s in (("mu", case.input("mu").shape), ("std", (-1,)), ("w", (-1,)))),
        case.spec["params"].get("path_sigma", 0.0),
    )


@pytest.mark.parametrize("case", cases("idff", "edm_denoiser"))
def test_mixture(case):
    x, sigma = case.input("x").double(), torch.tensor(case.spec["params"]["sigma_e"], dtype=torch.float64)
    data = mixture_of(case).data(x, sigma)
    case.check("D", data)
    case.check("score", (data - x) / sigma**2)


@pytest.mark.parametrize("case", cases("idff", "edm_mapping"))
def test_mapping_to_sigma_coordinates(case):
    """The path finds the time of a noise level, and heads that are best for the mixture give the exact flow."""
    mixture, bridge = mixture_of(case), case.spec["params"]["path_sigma"]
    path = BrownianBridge(bridge)
    level = torch.tensor(case.spec["params"]["sigma_e"], dtype=torch.float64)
    x, t = case.input("x").double(), path.time_of(level)
    x_t = path.alpha(t) * x
    m, second = mixture.heads(x_t, t)
    score = -(x_t - (1 - t) * m) / path.sigma(t) ** 2
    deviation = bridge * (t * (1 - t)).sqrt()
    flow = Fusion(bridge, score_source="tweedie").velocity(mixture.heads, x_t, t)
    own = {
        "t": 1 - t, "xt": x_t, "eps_hat": -deviation * score, "x0_hat": -t * score, "s_head": second, "v_pf": -flow,
        "score_t": score,
    }  # fmt: skip
    for role in case.roles:
        case.check(role, own[role])
    if bridge:  # the second head says the same
        torch.testing.assert_close(Fusion(bridge).velocity(mixture.heads, x_t, t), flow, rtol=1e-9, atol=1e-9)


def gaussian(bridge, deviation=0.5):
    return Mixture(torch.zeros(1, 1), torch.tensor([deviation]), torch.ones(1), bridge)


@pytest.mark.parametrize("noise", ["none", "bridge", "langevin"])
@pytest.mark.parametrize("source", ["head", "tweedie"])
def test_drifts_keep_the_marginals(noise, source):
    """For Gaussian data the variance V of x_t obeys dV/du = 2 k V + g^2, k the slope of the drift."""
    bridge, deviation = 0.6, 0.5
    fusion, one = Fusion(bridge, noise=noise, score_source=source), torch.ones(1, 1, dtype=torch.float64)
    for time in (0.1, 0.5, 0.9):
        t = torch.tensor(time, dtype=torch.float64)
        slope = -fusion.velocity(gaussian(bridge, deviation).heads, one, t)
        variance = (1 - t) ** 2 * deviation**2 + BrownianBridge(bridge).sigma(t) ** 2
        change = 2 * (1 - t) * deviation**2 - 2 * t - bridge**2 * (1 - 2 * t)  # d variance / du
        torch.testing.assert_close(2 * slope * variance + fusion.diffusion(t) ** 2, change.reshape(1, 1))


def test_derivatives_of_the_score():
    """Of Gaussian data: the score is linear, so d_2 is its slope and d_3 is 0."""
    bridge = 0.6
    plain, one = Fusion(bridge, score_source="tweedie"), torch.full((3, 1), 0.7, dtype=torch.float64)
    t = torch.tensor(0.4, dtype=torch.float64)
    heads = gaussian(bridge).heads
    variance = 0.36 * 0.25 + BrownianBridge(bridge).sigma(t) ** 2
    base = plain.velocity(heads, one, t)
    second = Fusion(bridge, (0.5, 1.0), score_source="tweedie").velocity(heads, one, t)
    torch.testing.assert_close(base - second, (bridge**2 * 0.24 * -1 / variance).expand(3, 1))
    third = Fusion(bridge, (0.5, 1.0, 1.0), score_source="tweedie").velocity(heads, one, t)
    torch.testing.assert_close(third, second)


def test_momentum_switched_off_is_the_plain_bridge():
    """Without path noise, gamma_1 = 1/2 and no damping, all three are the flow towards the clean estimate."""
    heads, x = gaussian(0.0).heads, torch.randn(5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor(0.3, dtype=torch.float64)
    wanted = -(heads(x, t)[0] - x) / t
    for fusion in (Fusion(0.0), Fusion2024(0.0, momentum=0.0), Fusion2025((0.5, 0.0), damping=0.0)):
        torch.testing.assert_close(fusion.velocity(heads, x, t), wanted)


def test_derivatives_are_taken_while_sampling():
    """Samples are made in inference mode, where no gradient exists unless it is asked for."""
    with torch.inference_mode():
        x = torch.ones(2, 1, dtype=torch.float64)
        heads = gaussian(0.6).heads
        out = Fusion(0.6, (0.5, 1.0), score_source="tweedie").velocity(heads, x, torch.tensor(0.4, dtype=torch.float64))
    assert out.isfinite().all()


@pytest.fixture(scope="module")
def flow():
    """A network, noise, and where 1000 Euler steps in its own time bring it."""
    net = Network(0.2)
    noise = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flow = fused(as_field(net), Fusion(0.2))
    return net, noise, sample_native(flow, noise, torch.linspace(1, 0, 1001, dtype=torch.float64))


@pytest.mark.parametrize("view", ["x1", "pf"])
@pytest.mark.parametrize("solver", ["ipndm", "dpmpp", "unipc"])
def test_ten_evaluations_in_sigma_reach_the_flow_in_time(flow, view, solver):
    """Either view, started exactly: root mean square distance of 1e-2 for data of unit size."""
    net, noise, end = flow
    calls, field = [], as_field(net) if view == "x1" else fused(as_field(net), Fusion(0.2))

    def counted(x, t, class_labels=None, _net=field.net):
        calls.append(1)
        return _net(x, t, class_labels)

    sigmas = [*get_schedule(9, 0.03, 4.0, "logsnr").tolist(), 0.0]
    reached = sample(dataclasses.replace(field, net=counted), noise, sigmas, solver=solver)
    assert len(calls) == 10
    assert (reached - end).square().mean().sqrt() < 1e-2


def error(flow, **options):
    net, noise, end = flow
    plan = build_plan(net, SamplerOptions(**options), batch=32)
    return plan.nfe, (plan(net, noise) - end).square().mean().sqrt().item()


@pytest.mark.parametrize("field", ["x1", "pf"])
def test_searched_and_calibrated_solvers_beat_the_published_sampler(flow, field):
    """At equal network calls, 9; the published sampler takes three steps."""
    nfe, own = error(flow, field="legacy_2024", momentum=0.0, solver="ssprk3", N=9)
    few = {"num_warmup": 32, "sigma_min": 0.03, "field": field}
    searched = error(flow, dp=True, num_steps=9, solver="ipndm", **few)
    calibrated = error(flow, calibrate=(9,), **few)
    assert searched[0] == calibrated[0] == nfe == 9
    assert searched[1] < own
    assert calibrated[1] < own / 2


# --- solvers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("solver", "order", "calls"), [(ssprk3, 3, 3), (rk4, 4, 4)])
def test_order(solver, order, calls):
    """dx/dt = x cos(4 t) from t = 1 down to 0."""
    count = []

    def velocity(x, t, labels=None):
        count.append(1)
        return x * (4 * t).cos()

    x = torch.ones(1, 1, dtype=torch.float64)
    exact = math.exp(-math.sin(4) / 4)
    errors = []
    for steps in (16, 32):
        count.clear()
        levels = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        errors.append(abs(float(solver(Field(velocity, Linear(), "velocity"), x, levels)) - exact))
        assert len(count) == calls * steps
    assert math.log2(errors[0] / errors[1]) > order - 0.3


@pytest.mark.parametrize("solver", [ssprk3, rk4, srid2])
def test_denoisers_are_not_asked_at_zero(solver):
    asked = []

    def denoiser(x, t, labels=None):
        asked.append(float(t))
        return 0.5 * x

    x = torch.ones(2, 1, dtype=torch.float64)
    end = solver(Field(denoiser, Linear(), "data"), x, [1.0, 0.5, 0.0])
    assert min(asked) > 0
    torch.testing.assert_close(end, 0.5 * solver(Field(denoiser, Linear(), "data"), x, [1.0, 0.5]))


def test_noise_of_the_stochastic_solver():
    """Without drift it adds up amplitude^2 dt; without noise it is the Runge-Kutta solver."""
    still = Field(lambda x, t, labels=None: torch.zeros_like(x), Linear(), "velocity")
    x = torch.zeros(40_000, 1, dtype=torch.float64)
    rng = TorchRNG(generator=torch.Generator().manual_seed(0))
    end = srid2(still, x, [1.0, 0.6, 0.0], diffusion=lambda t: t, rng=rng)
    # variance 1/3 exactly, for amplitudes linear in t; a standard error is sqrt(2 / 40000) of it
    assert abs(float(end.var()) - 1 / 3) < 4 * math.sqrt(2 / 40_000) / 3
    moving = Field(lambda x, t, labels=None: x * t, Linear(), "velocity")
    y = torch.ones(3, 1, dtype=torch.float64)
    assert torch.equal(srid2(moving, y, [1.0, 0.6, 0.0]), ssprk3(moving, y, [1.0, 0.6, 0.0]))


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fusion(3.0, (1.0, 1.0), damping=True), "imaginary"), (lambda: Fusion2024(2.5), "imaginary"),
        (lambda: Fusion2025((60.0, 60.0), 0.2), "imaginary"), (lambda: Fusion(0.2, ()), "one to three"),
        (lambda: Fusion(0.2, (1.0,) * 4), "one to three"), (lambda: Fusion2025((1.0,) * 3, head=True), "one to 2"),
        (lambda: Fusion(0.2, score_source="tail"), "score source 'tail'"),
        (lambda: Fusion(0.2, noise="x"), "noise 'x'"),
        (lambda: Fusion(0.2, score_target="noise"), "trained on the noise at the end"),
        (lambda: Fusion(0.2, score_target="none"), "not trained"),
    ],
)  # fmt: skip
def test_values_that_do_not_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_one_head_has_no_momentum():
    x, t = torch.ones(1, 1), torch.tensor(0.5)
    for fusion in (Fusion(0.2), Fusion2024(), Fusion2025((1.0,), head=True)):
        with pytest.raises(ValueError, match="one head"):
            fusion.velocity(lambda x, t: (x, None), x, t)
