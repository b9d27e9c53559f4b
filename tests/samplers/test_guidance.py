"""Guidance against golden data, its own definition, every solver, and bad input."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from golden_cases import cases

import networks
from networks.models.noise_precond import VPLevels, denoise, log_probability_slope
from samplers import SOLVERS, Field, get_schedule, sample
from samplers.guidance import cfg, guide
from samplers.planning.plan import SamplerOptions, build_plan
from torch_utils.noise_table import NoiseTable, scaled_linear_alphas
from torch_utils.rng import PerSampleRNG


def recorded(net):
    """A network that notes the batch size of every call in `.sizes`."""

    def call(x, *args, **kwargs):
        call.sizes.append(len(x))
        return net(x, *args, **kwargs)

    call.sizes = []
    return call


# ----------------------------------------------------------------------------------------------------------------------
# Golden data


@dataclass
class EpsDenoiser:
    """A plain function that predicts noise, as the denoiser that published networks make of theirs."""

    net: Callable
    levels: Any
    clamp: bool = False
    classifier: Callable | None = None

    path, predicts = "ve", "data"

    def __getattr__(self, name):
        if name in ("sigma", "sigma_inv", "sigma_min", "sigma_max"):
            return getattr(self.levels, name)
        raise AttributeError(name)

    @property
    def with_classifier(self):
        return None if self.classifier is None else lambda rate: partial(self, guidance_rate=rate)

    def __call__(self, x, sigma, class_labels=None, guidance_rate=0.0, **cond):
        def slope(x_in, time):
            index = class_labels if class_labels.ndim == 1 else class_labels.argmax(1)
            return log_probability_slope(self.classifier, x_in, time, index.to(torch.int64))

        def predict(x_in, time):
            return self.net(x_in, time, class_labels, **cond)

        return denoise(predict, self.levels, x, sigma, clamp=self.clamp, slope=slope, rate=guidance_rate)


def latent_denoiser(case):
    """The toy latent model of the file, as a field guided as the case says, and its recorded network."""
    model = case.file["latent_model"]
    a, b, d, e = (model[k] for k in "abde")

    def eps(x, t, c=None):
        t = t.reshape(-1, *[1] * (x.ndim - 1))
        out = torch.tanh(a * x + b * t + d)
        return out if c is None else out + e * c.reshape(t.shape) * torch.cos(x)

    net = recorded(eps)
    field = Field(EpsDenoiser(net, NoiseTable(case.shared(model["alphas_cumprod"]))))
    if case.spec["guidance_type"] == "uncond":
        return guide(field, "uncond", case.spec["guidance_rate"]), net
    uncond = case.tensor("uncond") if case.has("uncond") else None
    return cfg(field, case.spec["guidance_rate"], class_labels=case.tensor("cond"), uncond=uncond), net


@pytest.mark.parametrize("case", cases("solvers", "cfg_denoise"))
def test_golden_cfg_denoise(case):
    field, net = latent_denoiser(case)
    sigma = case.spec["sigma"]
    case.expect("out", field.data(case.tensor("x") * sigma, torch.tensor(sigma)))
    sizes = case.spec["batch_sizes"]
    if case.spec["guidance_type"] == "cfg" and case.spec["guidance_rate"] == 0:
        sizes = [n // 2 for n in sizes]  # the reference evaluates the conditional half as well, and multiplies it by 0
    assert net.sizes == sizes


@pytest.mark.parametrize("case", cases("solvers", "cfg_solve"))
def test_golden_cfg_solve(case):
    field, net = latent_denoiser(case)
    spec, schedule = case.spec, case.spec["schedule"]
    assert schedule["type"] == "discrete"
    sigmas = get_schedule(
        schedule["num_steps"], schedule["sigma_min"], schedule["sigma_max"], "discrete", schedule["rho"], net=field
    )
    how = {"afs": spec["afs"], "denoise_to_zero": spec["denoise_to_zero"]}
    latents = case.tensor("latents")
    case.expect("out", sample(field, latents, sigmas, solver=spec["solver"], **how, **spec["options"]))
    calls = SOLVERS[spec["solver"]].nfe(len(sigmas), **how)
    assert net.sizes == [field.calls_per_evaluation * len(latents)] * calls


def classifier_denoiser(case):
    """The toy pixel model and its classifier, guided at the rate of the case, and its recorded network."""
    model = case.file["cg_model"]
    a, b, c, d = (model[k] for k in "abcd")
    weight = case.shared(model["W"])

    def eps(x, t, y):
        t, y = (v.reshape(-1, *[1] * (x.ndim - 1)) for v in (t, y))
        out = torch.tanh(a * x + b * t + c * y)
        extra = torch.full_like(out[:, :1], model["extra_channels_value"])
        return torch.cat([out, extra.expand(-1, model["out_channels"] - x.shape[1], *x.shape[2:])], 1)

    net = recorded(eps)
    denoiser = EpsDenoiser(
        net,
        VPLevels(**model["vp"]),
        clamp=model["clamp"] == [-1, 1],
        classifier=lambda x, t: torch.sin(x.flatten(1) @ weight.T) + d * t[:, None],
    )
    return guide(denoiser, "cg", case.spec["guidance_rate"]).bind(case.tensor("class_labels")), net


@pytest.mark.parametrize("case", cases("solvers", "vp_sigma_range"))
def test_golden_vp_sigma_range(case):
    levels = VPLevels(**case.file["cg_model"]["vp"])
    case.expect("out", levels.sigma(torch.tensor(case.spec["t"])))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("case", cases("solvers", "cg_denoise"))
def test_golden_cg_denoise(case, mode):
    field, net = classifier_denoiser(case)
    sigma = case.spec["sigma"]
    with mode():
        case.expect("out", field.data(case.tensor("x") * sigma, torch.tensor(sigma)))
    assert net.sizes == [len(case["x"])]
    assert field.calls_per_evaluation == 1


@pytest.mark.parametrize("case", cases("solvers", "cg_solve"))
def test_golden_cg_solve(case):
    field, _ = classifier_denoiser(case)
    spec = case.spec
    how = {"afs": spec["afs"], "denoise_to_zero": spec["denoise_to_zero"], **spec["options"]}
    case.expect("out", sample(field, case.tensor("latents"), case.tensor("t_steps"), solver=spec["solver"], **how))
    schedule = spec["schedule"]
    ends = schedule["sigma_min"], schedule["sigma_max"]
    own = get_schedule(schedule["num_steps"], *ends, schedule["type"], schedule["rho"] or 7, net=field)
    torch.testing.assert_close(own, case.tensor("t_steps").double(), rtol=1e-3, atol=0)


# ----------------------------------------------------------------------------------------------------------------------
# Noise-predicting networks


def toy_eps(x, time, labels=None):
    out = torch.tanh(x + 0.001 * time.reshape(-1, *[1] * (x.ndim - 1)))
    return out if labels is None else out + 0.1 * labels.sum(1).reshape(-1, *[1] * (x.ndim - 1)) * x


LEVELS = [VPLevels(), VPLevels(beta_d=10, beta_min=0.5, M=50), NoiseTable(scaled_linear_alphas())]


@pytest.mark.parametrize("levels", LEVELS)
def test_levels_invert_and_bound_the_schedule(levels):
    net = EpsDenoiser(toy_eps, levels)
    t = torch.linspace(1e-3, 1, 33, dtype=torch.float64)
    torch.testing.assert_close(net.sigma_inv(net.sigma(t)), t, rtol=0, atol=1e-9)
    sigmas = get_schedule(5, None, None, "discrete", 1, net=net)
    assert sigmas[[0, -1]].tolist() == pytest.approx([net.sigma_max, net.sigma_min], rel=1e-12)
    torch.testing.assert_close(net.sigma_inv(sigmas).diff().diff(), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("levels", LEVELS)
def test_a_level_per_sample_is_each_sample_alone(levels):
    net = EpsDenoiser(toy_eps, levels)
    x, sigma = torch.randn(3, 2, 4, 4, dtype=torch.float64), torch.tensor([0.1, 1.0, 7.0])
    alone = torch.cat([net(x[i : i + 1], sigma[i]) for i in range(3)])
    assert alone.dtype == torch.float64
    torch.testing.assert_close(net(x, sigma), alone, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(net(x, sigma.reshape(3, 1, 1, 1)), alone, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="one noise level per sample, not a map of shape"):
        net(x, torch.ones_like(x))


def test_classifier_guidance_takes_one_hot_rows_and_keeps_gradients():
    net = EpsDenoiser(lambda x, t, y: toy_eps(x, t), VPLevels(), classifier=lambda x, t: x.flatten(1)[:, :3] ** 2)
    net = Field(net).facts.with_classifier(2.0)
    x, index = torch.randn(2, 1, 2, 2, dtype=torch.float64), torch.tensor([2, 0])
    out = net(x, 0.5, index)
    one_hot = torch.nn.functional.one_hot(index, 3)
    torch.testing.assert_close(net(x, 0.5, one_hot), out)
    x.requires_grad_()
    plain = EpsDenoiser(lambda x, t, y: toy_eps(x, t), VPLevels())
    slope = torch.autograd.grad((net(x, 0.5, index) - plain(x, 0.5, index)).sum(), x)[0]
    assert slope.abs().max() > 0.01  # of the classifier's own gradient


# ----------------------------------------------------------------------------------------------------------------------
# Classifier-free guidance

LABELS = torch.eye(3)[[0, 2, 1, 1]]


class Toy:
    """A conditional network in float64 that is nonlinear in everything; predicts and lives where it is told."""

    label_dim = 3

    def __init__(self, path="ve", predicts="data"):
        self.path, self.predicts, self.sizes = path, predicts, []

    def __call__(self, x, level, class_labels=None, shift=None):
        self.sizes.append(len(x))
        level = level.reshape(-1, *[1] * (x.ndim - 1)) if level.ndim == 1 else level
        pull = 0 if class_labels is None else (class_labels.to(x) @ x.new_tensor([0.2, -0.5, 0.8]))[:, None]
        return torch.tanh(x / (1 + level)) * (1 + pull) + pull + (0 if shift is None else shift)


MODELS = [(path, predicts) for path in ("ve", "vp", "linear", "trig") for predicts in ("data", "noise", "velocity")]


@pytest.mark.parametrize(("path", "predicts"), MODELS)
def test_every_prediction_of_every_model_is_guided(path, predicts):
    net = Toy(path, predicts)
    x, level = torch.randn(4, 5, dtype=torch.float64), torch.tensor([0.2, 0.4, 0.6, 0.9], dtype=torch.float64)
    cond, uncond = Field(net).bind(LABELS), Field(net).bind(torch.zeros_like(LABELS))
    for rate in (0, 0.5, 1, 3, -1):
        guided = cfg(Field(net), rate, class_labels=LABELS)
        assert (guided.path, guided.predicts) == (cond.path, predicts)
        for view in ("data", "noise", "velocity", "drift"):
            u, c, g = (getattr(f, view)(x, level) for f in (uncond, cond, guided))
            torch.testing.assert_close(g, u + rate * (c - u), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("rate", "size"), [(0, 4), (1, 4), (2, 8), (0.5, 8)])
def test_only_what_is_needed_is_evaluated(rate, size):
    net = Toy()
    field = cfg(net, rate, class_labels=LABELS)
    field.data(torch.randn(4, 5, dtype=torch.float64), torch.tensor(0.3))
    assert net.sizes == [size]
    assert field.calls_per_evaluation == field.ve().calls_per_evaluation == size // 4
    assert cfg(Toy("linear", "velocity"), rate).ve().calls_per_evaluation == size // 4


@pytest.mark.parametrize(
    "level", [torch.tensor(0.5), torch.full([1], 0.5), torch.full([4, 1], 0.5), torch.full([4, 5], 0.5)]
)
def test_levels_of_every_shape(level):
    x = torch.randn(4, 5, dtype=torch.float64)
    field = cfg(Toy(), 2.5, class_labels=LABELS)
    torch.testing.assert_close(field.data(x, level.double()), field.data(x, torch.full([4], 0.5, dtype=torch.float64)))
    for i in range(4):
        one = field.bind(LABELS[i : i + 1]).data(x[i : i + 1], torch.tensor([0.5], dtype=torch.float64))
        torch.testing.assert_close(one, field.data(x, torch.tensor(0.5, dtype=torch.float64))[i : i + 1])


@pytest.mark.parametrize("batch", ["joint", "split"])
@pytest.mark.parametrize("rate", [2.0, 0.0])
def test_levels_inside_and_outside_of_an_interval_cost_no_third_evaluation(batch, rate):
    net, x = Toy(), torch.randn(4, 5, dtype=torch.float64)
    levels = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64)
    field = cfg(net, rate, class_labels=LABELS, batch=batch, interval=(0.3, 0.7))
    got = field.data(x, levels)
    assert sum(net.sizes) == 8 == 4 * field.calls_per_evaluation
    for i in range(4):
        alone = field.bind(LABELS[i : i + 1]).data(x[i : i + 1], levels[i])
        torch.testing.assert_close(got[i : i + 1], alone, rtol=1e-12, atol=1e-12)


def test_conditions_of_the_call_go_to_both_halves():
    x, shift = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    level = torch.tensor(0.5, dtype=torch.float64)
    field = cfg(Toy(), 3, class_labels=LABELS)
    for s in (shift, shift[0], torch.tensor(0.7), 0.7):
        torch.testing.assert_close(field.bind(LABELS, shift=s).data(x, level), field.data(x, level) + s)


def test_one_condition_for_all_and_another_empty_one():
    x, level = torch.randn(4, 5, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    row, empty = LABELS[:1], torch.full([3], 1 / 3)
    own = cfg(Toy(), 3, class_labels=row, uncond=empty).data(x, level)
    u = Field(Toy()).bind(empty.expand(4, 3)).data(x, level)
    c = Field(Toy()).bind(row.expand(4, 3)).data(x, level)
    torch.testing.assert_close(own, u + 3 * (c - u))
    torch.testing.assert_close(cfg(Toy(), 0, class_labels=row, uncond=empty).data(x, level), u)


@pytest.mark.parametrize(("path", "predicts"), [("ve", "data"), ("linear", "velocity")])
@pytest.mark.parametrize("solver", [name for name, s in SOLVERS.items() if not s.adaptive and name != "calibrated"])
def test_every_solver(solver, path, predicts):
    """Rates 0 and 1 are the plain models, and guidance is what the doubled batch says, in every evaluation."""
    off = {"tau": 0.0} if solver == "sa" else {}
    noise, sigmas = torch.randn(4, 5, dtype=torch.float64), get_schedule(6, 0.01, 10)

    def solve(model, labels=LABELS, rows=slice(0, 4)):
        rng = PerSampleRNG(range(4)[rows])
        return sample(model, noise[rows], sigmas, solver=solver, class_labels=labels, rng=rng, **off)

    net = Toy(path, predicts)
    torch.testing.assert_close(solve(cfg(net, 1)), solve(net), rtol=0, atol=0)
    torch.testing.assert_close(solve(cfg(net, 0)), solve(net, None), rtol=0, atol=0)
    net.sizes = []
    guided = solve(cfg(net, 3))
    assert net.sizes == [8] * SOLVERS[solver].nfe(len(sigmas))

    def by_hand(x, level, labels=None):
        u = net(x, level, torch.zeros_like(labels))
        return u + 3 * (net(x, level, labels) - u)

    torch.testing.assert_close(guided, solve(Field(by_hand, path, predicts)), rtol=1e-9, atol=1e-9)
    parts = [solve(cfg(net, 3), LABELS[s], s) for s in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(torch.cat(parts), guided, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(guided, solve(net), atol=1e-3)


def build(**kwargs):
    torch.manual_seed(0)
    net = networks.build(
        "EDMPrecond", img_resolution=8, img_channels=3, model_type="SongUNet", model_channels=8, channel_mult=[1],
        num_blocks=1, attn_resolutions=[], **kwargs,
    )  # fmt: skip
    for p in net.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=p[0].numel() ** -0.5)
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("how", "each"),
    [
        ({"steps": 3}, 5),
        ({"steps": 3, "disc": "vp", "scaling": "vp"}, 5),
        ({"solver": "unipc", "num_steps": 4}, 3),
        ({"solver": "heun", "num_steps": 3, "afs": True}, 3),
    ],
)
def test_plans_guide_and_count(how, each):
    net = build(label_dim=4, label_dropout=0.1)
    plain = build_plan(net, SamplerOptions(**how))
    assert plain.nfe == each
    assert "Guidance" not in str(plain)
    noise, labels = torch.randn(2, 3, 8, 8), torch.eye(4)[[3, 1]]
    sizes = []
    net.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    for given, calls, same_as in (
        ({"guidance_type": "cfg", "guidance_rate": 4.0}, 2, None),
        ({"guidance_type": "cfg", "guidance_rate": 1.0}, 1, labels),
        ({"guidance_type": "cfg", "guidance_rate": 0.0}, 1, torch.zeros_like(labels)),
        ({"guidance_type": "uncond"}, 1, torch.zeros_like(labels)),
    ):
        plan = build_plan(net, SamplerOptions(**how, **given))
        assert plan.nfe == calls * each
        assert f"{plan.nfe} network evaluations per sample" in str(plan)
        assert given["guidance_type"] in str(plan)
        assert (f"({each} conditional, {each} unconditional)" in str(plan)) == (calls == 2)
        sizes.clear()
        images = plan(net, noise, labels)
        assert sum(sizes) == 2 * plan.nfe
        if same_as is not None:
            torch.testing.assert_close(images, plain(net, noise, same_as), rtol=0, atol=0)
        else:
            assert not torch.allclose(images, plain(net, noise, labels), atol=1e-2)


def test_unconditional_networks_are_what_uncond_says():
    net = build(label_dim=0)
    assert guide(net, "uncond").net is net
    assert guide(net, "uncond", 1.0).net is net
    assert guide(net) is net


# ----------------------------------------------------------------------------------------------------------------------
# Bad input

DROPPED = {"label_dim": 4, "label_dropout": 0.1}


@pytest.mark.parametrize(
    ("network", "given", "message"),
    [
        (DROPPED, ("cfg", None), "guidance type cfg needs a guidance rate"),
        (DROPPED, (None, 2.0), "guidance rate 2 says how strong, not which guidance"),
        (DROPPED, ("best", 2.0), "no guidance type 'best': choose from cfg, cg, uncond"),
        (DROPPED, ("cfg", math.nan), "nan is not possible"),
        (DROPPED, ("cfg", math.inf), "inf is not possible"),
        (DROPPED, ("cg", math.inf), "inf is not possible"),
        (DROPPED, ("cg", 2.0), "comes with a classifier"),
        (DROPPED, ("uncond", 2.0), "nothing to guide towards"),
        ({"label_dim": 0}, ("cfg", 2.0), "needs a conditional network"),
        ({"label_dim": 4}, ("cfg", 2.0), "trained without label dropout"),
        ({"label_dim": 4}, ("uncond", None), "trained without label dropout"),
    ],
)
def test_a_sentence_for_guidance_that_is_not_possible(network, given, message):
    with pytest.raises(ValueError, match=message):
        build_plan(build(**network), SamplerOptions(steps=2, guidance_type=given[0], guidance_rate=given[1]))


def test_without_label_dropout_the_conditional_model_is_possible():
    net = build(label_dim=4)
    assert cfg(net, 1).net is net
    assert cfg(net, 3, uncond=torch.full([4], 0.25)).calls_per_evaluation == 2


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "none was given: pass class_labels"),
        (torch.eye(3)[:2], "shape \\[2, 3\\] do not fit 4 samples"),
        (torch.tensor(1), "shape \\[\\] do not fit"),
        (torch.tensor([0, 1, 2, 0]), "no empty class among class indices"),
    ],
)
def test_a_sentence_for_labels_that_do_not_fit(labels, message):
    with pytest.raises(ValueError, match=message):
        cfg(Toy(), 3, class_labels=labels).data(torch.zeros(4, 5), torch.tensor(1.0))
