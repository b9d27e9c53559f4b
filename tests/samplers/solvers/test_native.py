"""Flow models in native time and in sigma coordinates: golden numbers, exact start, what dependent noise forbids."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from golden_cases import cases
from mac_golden import expect, inputs

from samplers import SOLVERS, Field, sample
from samplers.analysis.straightness import trajectory_curvature
from samplers.calibration.calibrate import calibrate
from samplers.gits.search import search_schedule
from samplers.guidance import cfg
from samplers.path import PATHS
from samplers.planning.plan import SamplerOptions, build_plan
from samplers.solvers.churn import ablation_sampler, edm_sampler
from samplers.solvers.native import DRIFT_SOLVERS, sample_native, uniform_times
from samplers.start import exact_start
from torch_utils.images import from_uint8, to_uint8
from torch_utils.misc import expand_to


def column(t, x):
    t = torch.as_tensor(t, dtype=x.dtype)
    return t.reshape(-1, *[1] * (x.ndim - 1)) if t.ndim else t


@dataclass
class GaussianMixture:
    """Velocity of data from a mixture of K Gaussians of deviation s, noise N(0, I) independent of it."""

    means: torch.Tensor  # [K, ...]
    weights: torch.Tensor
    s: float
    path: str = "linear"
    predicts: str = "velocity"
    calls: int = 0

    def __call__(self, x, t, class_labels=None):
        self.calls += 1
        t, means = column(t, x), self.means.to(x.dtype)
        variance = t**2 + (1 - t) ** 2 * self.s**2
        flat = [(x - (1 - t) * m).flatten(1) for m in means]
        v = variance.reshape(-1, 1) if variance.ndim else variance
        logits = torch.cat([-(d.square().sum(1, keepdim=True)) / (2 * v) for d in flat], 1) + self.weights.to(x).log()
        share = logits.softmax(1)
        slope = (t - (1 - t) * self.s**2) / variance
        out = torch.zeros_like(x)
        for k, m in enumerate(means):
            out += column(share[:, k], x) * (-m + slope * (x - (1 - t) * m))
        return out


@dataclass
class CoupledMixture:
    """K components; given one, x = m + s e1 and z = a + c (rho e1 + sqrt(1 - rho^2) e2): noise depends on data."""

    means: torch.Tensor  # [K, ...]
    z_means: torch.Tensor
    s: float
    c: float
    rho: float
    path: str = "linear"
    predicts: str = "velocity"
    gaussian_noise: bool = False
    start: str = "exact"
    calls: int = field(default=0)

    def __call__(self, x, t, class_labels=None):
        self.calls += 1
        shape, x = x.shape, x.flatten(1)
        t = torch.as_tensor(t, dtype=x.dtype)
        t = t.flatten(1)[:, :1, None] if t.ndim > 1 else t.reshape(-1, 1, 1)  # one time per sample
        m, a = self.means.flatten(1).to(x.dtype), self.z_means.flatten(1).to(x.dtype)
        s, c, rho = self.s, self.c, self.rho
        both = t * (1 - t) * rho * s * c
        variance = (1 - t) ** 2 * s**2 + 2 * both + t**2 * c**2
        d = x[:, None] - (1 - t) * m - t * a  # [B, K, D]
        share = (-d.square().sum(-1, keepdim=True) / (2 * variance)).softmax(1)  # [B, K, 1]
        data = (share * (m + ((1 - t) * s**2 + t * rho * s * c) / variance * d)).sum(1)
        noise = (share * (a + ((1 - t) * rho * s * c + t * c**2) / variance * d)).sum(1)
        return (noise - data).reshape(shape)


def model(case, given):
    p = case.spec["params"]
    if p["field"] == "gaussian_mixture":
        return GaussianMixture(given["means"], given["weights"], p["s"])
    return CoupledMixture(given["means"], given["z_means"], p["s"], p["c"], p["rho"])


def start_state(case, x):
    return x.double() if case.spec["params"].get("dtype") == "float64" else x


def results(case, **own):
    """Compare those results that the case names."""
    for role in case.spec["expect"]:
        dtype = case.shared(case.spec["expect"][role]["array"]).dtype
        expect(case, role, torch.as_tensor(own[role]).to(dtype))


def data_predictions(states):
    """Where each of equal steps would arrive at t = 0, `[N, B, ...]`."""
    x = states.double()
    t = torch.linspace(1, 0, len(x), dtype=torch.float64)
    rows = (-1, *[1] * (x.ndim - 1))
    return x[:-1] - t[:-1].reshape(rows) * x.diff(dim=0) / t.diff().reshape(rows)


def encode(net, data, steps, trace):
    """Data -> noise by Euler steps from t = 0 to 1: inversion, not the learned encoder."""
    field, x = Field(net), data
    for i in range(steps):
        trace(x)
        x = x + field.velocity(x, torch.tensor(i / steps, dtype=torch.float64)) / steps
    trace(x)
    return x


@pytest.mark.parametrize("case", cases("curvature", "field"))
def test_field(case):
    given = inputs(case)
    results(case, v=model(case, given)(given["x"], given["t"]))


@pytest.mark.parametrize("case", cases("curvature", "sample"))
def test_native_sampling(case):
    given, p = inputs(case), case.spec["params"]
    net, states = model(case, given), []
    times = uniform_times(p["N"], p["solver"])
    z = start_state(case, given["z"])
    final = sample_native(net, z, times, solver=p["solver"], trace=lambda step: states.append(step.x))
    assert net.calls == p["N"]
    states = torch.stack([*states, final])
    results(case, final=final, traj=states, x0hat=data_predictions(states), curvature=trajectory_curvature(states))


@pytest.mark.parametrize("case", cases("curvature", "encode"))
def test_encode(case):
    given, states = inputs(case), []
    final = encode(model(case, given), start_state(case, given["x"]), case.spec["params"]["N"], trace=states.append)
    results(case, final=final, traj=torch.stack(states))


@pytest.mark.parametrize("case", cases("curvature", "sample_adaptive"))
def test_adaptive_sampling(case):
    given, p, count = inputs(case), case.spec["params"], []
    times = [p["t_start"], p["t_end"]]
    tolerance = {"rtol": p["rtol"], "atol": p["atol"]}
    solver = p["method"].lower()
    net, z = model(case, given), given["z"]
    calls = []

    def whole(x, t, labels=None):  # the reference takes the whole batch for one vector, that is for one sample
        calls.append(t)
        return net(x[0], t[0])[None]

    field = Field(whole, net.path, net.predicts)
    final = sample_native(field, z[None], times, solver=solver, count=count.extend, **tolerance)[0]
    assert count == [len(calls)]
    results(case, final=final, nfe=np.array(float(count[0])))


@pytest.mark.parametrize("case", cases("curvature", "curvature"))
def test_curvature(case):
    results(case, curvature=trajectory_curvature(inputs(case)["traj"]))


@pytest.mark.parametrize("case", cases("curvature", "to_uint8"))
def test_to_uint8(case):
    u8 = to_uint8(inputs(case)["x"])
    results(case, u8=u8, back=from_uint8(u8))


@pytest.mark.parametrize("case", cases("curvature", "denoiser"))
def test_denoiser(case):
    given, sigma = inputs(case), torch.tensor(case.spec["params"]["sigma"], dtype=torch.float64)
    y = start_state(case, given["x"]) + sigma * start_state(case, given["noise"])
    denoised, drift = Field(model(case, given)).ve().data_and_drift(y, sigma)
    results(case, denoised=denoised, dy=drift)


@pytest.mark.parametrize("case", cases("curvature", "denoiser_at_infinity"))
def test_denoiser_at_infinity(case):
    given = inputs(case)
    noise = start_state(case, given["noise"])
    results(case, denoised=exact_start(Field(model(case, given)).ve(), noise, 0.0))


@pytest.mark.parametrize("case", cases("curvature", "euler_two_ways"))
def test_euler_two_ways(case):
    given, p = inputs(case), case.spec["params"]
    net, n = model(case, given), p["N"]
    noise = start_state(case, given["noise"])
    in_t = sample_native(net, noise, uniform_times(n))
    sigmas = [(n - i) / i for i in range(1, n + 1)]
    in_sigma = (
        exact_start(Field(net), noise, 0.0) if n == 1 else sample(net, noise, sigmas, solver="euler", start="exact")
    )
    results(case, in_t=in_t, in_sigma=in_sigma)
    torch.testing.assert_close(in_t, in_sigma, **p["agreement"])


@pytest.mark.parametrize("case", cases("curvature", "exact_flow"))
def test_exact_flow(case):
    given = inputs(case)
    net, z = model(case, given), start_state(case, given["z"])
    x0 = sample_native(net, z, [1.0, 0.0], solver="dop853", rtol=1e-11, atol=1e-11)
    results(case, x0=x0, denoised_at_t1=exact_start(Field(net), z, 0.0))


@pytest.mark.parametrize("case", cases("curvature", "solver_in_t"))
def test_solver_in_t(case):
    given, p = inputs(case), case.spec["params"]
    net = model(case, given)
    solver, options = ("ipndm", {"max_order": p["order"]}) if p["solver"] == "ab" else (p["solver"], {})
    # N counts evaluations: Heun takes fewer steps than `times` lists
    times = uniform_times(p["N"], solver) if solver == "heun" else torch.tensor(p["times"], dtype=torch.float64)
    final = sample_native(net, start_state(case, given["z"]), times, solver=solver, **options)
    assert net.calls == p["N"]
    results(case, final=final)


@pytest.mark.parametrize("case", cases("curvature", "solver_in_sigma"))
def test_solver_in_sigma(case):
    given, p = inputs(case), case.spec["params"]
    net = model(case, given)
    options = {} if p["solver"] == "euler" else {"max_order": p["order"]}
    options |= {k: v for k, v in p["options"].items() if k in ("variant", "lower_order_final")}
    start = {"A": "scaled", "B": "exact"}[p["start"]]
    y = sample(net, start_state(case, given["z"]), p["sigmas"], solver=p["solver"], start=start, **options)
    results(case, final=y / p["final_division"], nfe=net.calls)


# ---------------------------------------------------------------------------------------------------------------------


def coupled_pair(seed=0, n=6, gaussian=False):
    g = torch.Generator().manual_seed(seed)
    means, z_means = torch.randn(3, 4, generator=g) * 2, torch.randn(3, 4, generator=g)
    net = CoupledMixture(means, z_means, 0.3, 0.8, 0.6)
    net.gaussian_noise = gaussian
    return net, torch.randn(n, 4, generator=g, dtype=torch.float64)


def test_exact_start_has_no_floor():
    """The error of start A falls like 1 / sigma_max and stays with more steps, that of start B like 1 / sigma_max^2."""
    net, z = coupled_pair()
    exact = sample_native(net, z, [1.0, 0.0], solver="dop853", rtol=1e-11, atol=1e-11)
    error = {}
    for sigma_max in (80, 800):
        sigmas = torch.logspace(np.log10(sigma_max), -6, 400, dtype=torch.float64)
        for start in ("exact", "scaled"):
            x = sample(net, z, sigmas, solver="ab", start=start)
            error[start, sigma_max] = float((x - exact).abs().max())
    assert error["exact", 80] < 0.1 * error["scaled", 80]
    assert error["exact", 800] < 0.01 * error["scaled", 800]
    assert 0.05 < error["scaled", 800] / error["scaled", 80] < 0.2


def test_five_evaluations_beat_the_published_euler():
    """A searched schedule, UniPC and a calibrated solver on a dependent coupling, against five equal Euler steps.

    Components overlap, as data's do: their errors are 0.37, 0.37 and 0.05 of Euler's here (0.24 to 0.38, 0.35 to 0.37
    and 0.04 to 0.08 over other seeds). Far components make a kink that five steps of any kind may miss.
    """
    g = torch.Generator().manual_seed(1)
    means, z_means = 0.7 * torch.randn(3, 4, generator=g), 0.35 * torch.randn(3, 4, generator=g)
    net, z = CoupledMixture(means, z_means, 0.5, 0.8, 0.6), torch.randn(64, 4, generator=g, dtype=torch.float64)
    exact = sample_native(net, z, [1.0, 0.0], solver="dop853", rtol=1e-9, atol=1e-9)
    warmup = {"img_shape": z.shape[1:], "num_warmup": 64}
    searched = search_schedule(net, solver="ipndm", num_steps=5, **warmup)
    fitted = calibrate(net, 5, num_heldout=32, iterations=2, **warmup).students[0]
    how = {"coefficients": fitted.coefficients, "afs": fitted.afs}
    samplers = {
        "euler": lambda: sample_native(net, z, uniform_times(5)),
        "gits": lambda: sample(net, z, searched.sigmas, solver="ipndm"),
        "unipc": lambda: sample(net, z, [4, 1.5, 2 / 3, 0.25, 0.002], solver="unipc"),  # the times of Euler
        "calibrated": lambda: sample(net, z, fitted.sigmas, solver="calibrated", **how),
    }
    error = {}
    for name, sampler in samplers.items():
        net.calls = 0
        error[name] = float((sampler() - exact).square().mean().sqrt())
        assert net.calls == 5, name
    assert max(error["gits"], error["unipc"]) < 0.6 * error["euler"], error
    assert error["calibrated"] < 0.2 * error["euler"], error


def test_the_network_says_how_to_start():
    net, z = coupled_pair()
    torch.testing.assert_close(sample(net, z, [9, 1, 0.1]), sample(net, z, [9, 1, 0.1], start="exact"))
    torch.testing.assert_close(sample(Field(net).ve(), z, [9, 1, 0.1]), sample(net, z, [9, 1, 0.1]))
    net.start = "scaled"
    assert (sample(net, z, [9, 1, 0.1]) - sample(net, z, [9, 1, 0.1], start="exact")).abs().max() > 1e-3


def test_edm_samplers_start_exactly():
    net, z = coupled_pair()
    for sampler in (edm_sampler, ablation_sampler):
        net.calls = 0
        out = sampler(net, z, num_steps=40, sigma_min=0.002, sigma_max=80)
        assert net.calls == 2 * 40 - 1 + 1
        exact = sample_native(net, z, [1.0, 0.0], solver="dop853", rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(out, exact, atol=5e-3, rtol=0)


def test_levels_may_be_maps():
    net, z = coupled_pair()
    maps = [torch.full((6, 4), s, dtype=torch.float64) for s in (9, 1, 0.1)]
    torch.testing.assert_close(sample(net, z, maps, solver="euler"), sample(net, z, [9, 1, 0.1], solver="euler"))


def test_native_field_keeps_its_labels():
    net, _ = coupled_pair()
    labels = torch.ones(6, 2)
    assert Field(net).ve().bind(labels).native().class_labels is labels
    assert Field(net).native().net is net


@pytest.mark.parametrize("solver", [s for s in DRIFT_SOLVERS if not (SOLVERS[s].adaptive or SOLVERS[s].stochastic)])
def test_native_solvers_converge(solver):
    net, z = coupled_pair()
    exact = sample_native(net, z, [1.0, 0.0], solver="dop853", rtol=1e-11, atol=1e-11)
    each = SOLVERS[solver].evaluations if SOLVERS[solver].reaches_zero else 1
    counts = [n - n % each for n in (21, 161)]  # whole steps, of solvers whose last step is none of Euler's
    error = [(sample_native(net, z, uniform_times(n, solver), solver=solver) - exact).abs().max() for n in counts]
    assert error[1] < error[0] / 5
    assert error[1] < 2e-2


@pytest.mark.parametrize(
    "call",
    [
        lambda net, z: sample(net, z, [9, 1, 0.1], solver="dpmpp", thresholding="dynamic"),
        lambda net, z: sample(net, z, [9, 1, 0.1], solver="unipc", thresholding="dynamic"),
        lambda net, z: sample(net, z, [9, 1, 0.1], solver="heun_churn", S_churn=5.0),
        lambda net, z: sample_native(net, z, [1, 0.5, 0], solver="renoise"),
        lambda net, z: edm_sampler(net, z, S_churn=5.0),
        lambda net, z: ablation_sampler(net, z, S_churn=5.0),
    ],
)
def test_score_needs_independent_noise(call):
    net, z = coupled_pair()
    with pytest.raises(ValueError, match="coupled to the data"):
        call(net, z)
    call(*coupled_pair(gaussian=True))


def test_no_thresholding_by_default():
    """Images of a learned coupling: the automatic choice for pixels would clip them."""

    class Net:
        path, predicts, start, gaussian_noise, img_channels = "linear", "velocity", "exact", False, 1

        def __call__(self, x, t, labels=None):
            return x - 5  # data estimates far outside of [-1, 1]

    noise = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    run = {k: sample(Net(), noise, [9, 1, 0.1], solver="dpmpp", thresholding=k) for k in (None, "none")}
    assert torch.equal(run[None], run["none"])
    assert run[None].max() > 2


def test_guided_fields_start_exactly():
    class Net:
        path, predicts, start, gaussian_noise, label_dim, label_dropout = "linear", "velocity", "exact", False, 2, 0.1

        def __call__(self, x, t, labels=None):
            return x - labels.sum(1, keepdim=True)

    guided, noise = cfg(Net(), 2.0, class_labels=torch.tensor([[1.0, 0.0]])), torch.zeros(3, 4, dtype=torch.float64)
    assert guided.ve().native().class_labels is not None
    torch.testing.assert_close(exact_start(guided, noise, 1.0), torch.full_like(noise, 2.0))  # x - t v at t = 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda net, z: uniform_times(4, "heun"), "3 or 5"),
        (lambda net, z: uniform_times(0), "N=0"),
        (lambda net, z: sample_native(net, z, [1, 0], solver="dpmpp"), "native time"),
        (lambda net, z: sample_native(lambda x, s, c: x, z, [1, 0]), "sigma coordinates"),
        (lambda net, z: sample(net, z, [9, 1], start="now"), "exact, scaled"),
        (lambda net, z: sample(net, z, [9, 1], afs=True), "afs"),
        (lambda net, z: sample(lambda x, s, c: x, z, [9, 1], start="exact"), "path"),
        (lambda net, z: trajectory_curvature(z[None]), "2 states"),
        (lambda net, z: trajectory_curvature(z, [1, 0]), "as many times"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call(*coupled_pair())


def test_curvature_of_a_quarter_circle():
    """Equal angles at equal times; numbers of the definition."""
    for n, want in ((4, 0.217927), (32, 0.233453)):
        angle = torch.linspace(0, np.pi / 2, n + 1, dtype=torch.float64)
        assert abs(float(trajectory_curvature(torch.stack([angle.cos(), angle.sin()], 1)[:, None])) - want) < 1e-6


def test_curvature_of_uneven_steps():
    """A straight line at constant speed is straight whatever the steps; at another speed it is not."""
    t = torch.tensor([1.0, 0.7, 0.2, 0.0])
    line = t[:, None, None] * torch.ones(1, 2, 3)
    assert trajectory_curvature(line, t) < 1e-14
    assert trajectory_curvature(line) > 1e-3


@pytest.mark.parametrize("path", ["linear", "trig", "vp"])
@pytest.mark.parametrize("predicts", ["noise", "score", "velocity", "data"])
def test_equal_steps_start_where_the_prediction_means_something(path, predicts):
    """Noise and score of nothing but noise say nothing of the data; the exact model of data N(0, 1/4) is sampled."""
    own = PATHS[path]()

    def net(x, t, labels=None):
        t = expand_to(torch.as_tensor(t), x)
        alpha, sigma = own.alpha(t), own.sigma(t)
        noise = sigma * x / (alpha.square() / 4 + sigma.square())
        data = alpha / 4 * x / (alpha.square() / 4 + sigma.square())
        of = {"noise": noise, "score": -noise / sigma, "data": data}
        return of[predicts] if predicts in of else own.d_alpha(t) * data + own.d_sigma(t) * noise

    field = Field(net, path, predicts)
    x = build_plan(field, SamplerOptions(N=400))(field, torch.randn(4000, 1).double())
    assert x.std() == pytest.approx(0.5, abs=0.03)
