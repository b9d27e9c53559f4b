"""Sampling along element-wise levels that a network chooses."""

import math

import pytest
import torch
from golden_cases import cases
from mac_golden import coefficient_config, expect, fill, grad_norms, inputs, precond_config
from solver_variants import curved

import networks
from networks.models.coefficients import CoefficientFamily
from networks.models.mac import MACNetwork
from samplers import get_schedule, sample
from samplers.field import Facts
from samplers.planning.plan import SamplerOptions, build_plan
from samplers.schedules.edm import general_levels
from samplers.solvers.elementwise import nominal_level, sample_mac
from torch_utils.rng import TorchRNG


def generator(case):
    """The network of a golden case, with its weights, and its levels."""
    p = case.spec["params"]
    levels = general_levels(None, p["num_steps"], p["sigma_min"], p["sigma_max"], p["rho"])
    mac = p["mac"]
    net = MACNetwork(
        networks.build(**precond_config(p["V"])), coefficient_config(p["C"]), levels[:-1].tolist(),
        M=mac["M"], rho=mac["rho"], k=mac["k"], t_max=mac["t_max"],
    )  # fmt: skip
    assert net.takes_gamma == p["coefficient_conditioning"]
    net.V.train(p["V"]["train"])
    net.C.train(p["C"]["train"])
    return fill(net, case.spec["state_dict"], case), levels


@pytest.mark.parametrize("case", cases("mac", "generator_sample"))
def test_golden_generator(case):
    p, given = case.spec["params"], inputs(case)
    assert not p["s_churn"]
    net, levels = generator(case)
    expect(case, "t_steps", levels.float())
    steps, z, labels = [], given["z"], given["labels"]
    pred = sample_mac(net, z, levels, class_labels=labels, trace=steps.append)
    expect(case, "pred", pred)
    expect(case, "denoised", torch.cat([s.data for s in steps]))
    expect(case, "c", net.coefficients(z, labels))
    loss = (pred * given["R"]).mean()
    expect(case, "dloss", loss)
    loss.backward()
    expect(case, "gradnorm_V", grad_norms(net.V.parameters()))
    expect(case, "gradnorm_C", grad_norms(net.C.parameters()))
    zero = torch.zeros(1, net.family.maps, 1, 1)
    with torch.no_grad():
        uni = sample_mac(net, z, levels, class_labels=labels, coefficients=zero)
    expect(case, "uni", uni)
    torch.testing.assert_close(uni, sample(net, z, levels, solver="euler", class_labels=labels), rtol=0, atol=2e-4)


def tiny(class_name="EDMPrecond", label_dim=0, **kwargs):
    v = {"class_name": class_name, "img_resolution": 8, "img_channels": 1, "label_dim": label_dim,
         "model_type": "SongUNet", "model_channels": 16, "channel_mult": [1], "num_blocks": 1}  # fmt: skip
    c = {"model_channels": 16, "channel_mult": [1], "num_blocks": 1, "scale": 0.5} | kwargs
    net = networks.build("MACNetwork", network=v, coefficients=c, schedule=[80.0, 2.5, 0.17, 0.002], M=2)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn_like(p) / math.sqrt(max(p[0].numel(), 1)) * 0.7)
    return net.eval().requires_grad_(False)


class Oracle:
    """The exact denoiser of data ~ N(0, 0.25) in every element, along maps that fall everywhere."""

    def __init__(self):
        self.family, self.c = CoefficientFamily(1, M=1), 0.05 * (torch.rand(1, 2, 8, 8) * 2 - 1)

    def coefficients(self, noise, class_labels=None):
        return self.c.expand(len(noise), -1, -1, -1)

    def __call__(self, x, sigma, class_labels=None):
        return x * 0.25 / (0.25 + sigma**2)


@pytest.mark.parametrize(
    ("solver", "options"),
    [("euler", {}), ("heun", {}), ("dpm", {}), ("ipndm", {}), ("ipndm_v", {}), ("ab", {}), ("dpmpp", {}),
     ("deis", {"deis_mode": "rhoab"})],
)  # fmt: skip
def test_every_solver_finds_the_exact_solution(solver, options):
    """The flow of Gaussian data ends at x * sqrt((0.25 + end^2) / (0.25 + start^2)), element by element."""
    net = Oracle()
    noise = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    end = net.family.gamma(torch.tensor(0.002, dtype=torch.float64), net.c)
    assert end.std() > 0.01
    exact = noise * 80 * ((0.25 + end**2) / (0.25 + 80**2)).sqrt()
    errors = [
        (sample_mac(net, noise, get_schedule(n, 0.002, 80), solver=solver, **options) - exact).abs().max()
        for n in (21, 81)
    ]
    assert errors[1] < min(0.06, errors[0] / 2.5), errors


@pytest.mark.parametrize("solver", ["unipc", "deis"])
def test_solvers_of_single_levels_say_so(solver):
    with pytest.raises(ValueError, match="one number for the whole batch"):
        sample_mac(Oracle(), torch.randn(2, 1, 8, 8), get_schedule(5, 0.002, 80), solver=solver)


def test_zero_coefficients_are_plain_sampling():
    """The same arithmetic in two ways: in float64, with a denoiser that computes in it, because networks do not."""
    net, noise = tiny(), torch.randn(2, 1, 8, 8, dtype=torch.float64)
    net.V.forward = curved
    levels = torch.tensor([80, 2.5, 0.17, 0.002])
    zero = torch.zeros(1, net.family.maps, 1, 1)
    for solver in ("euler", "heun", "ipndm"):
        plain = sample(net.V, noise, levels, solver=solver)
        own = sample_mac(net, noise, levels, solver=solver, coefficients=zero)
        torch.testing.assert_close(own, plain, rtol=0, atol=1e-9)
        assert (plain - plain.mean()).abs().max() > 0.1


def test_denoising_to_zero_is_a_step_to_zero():
    for class_name in ("EDMPrecond", "EDMGammaPrecond"):
        net, noise = tiny(class_name), torch.randn(2, 1, 8, 8, dtype=torch.float64)
        a = sample_mac(net, noise, net.schedule, denoise_to_zero=True)
        b = sample_mac(net, noise, [*net.schedule, 0.0])
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("solver", ["heun", "dpm", "ipndm"])
def test_network_that_is_told_gamma_hears_the_nominal_level(solver):
    net, heard = tiny("EDMGammaPrecond"), []
    inner = net.V.forward

    def listen(x, sigma, class_labels=None, **kwargs):
        heard.append(torch.as_tensor(sigma).clone())
        return inner(x, sigma, class_labels, **kwargs)

    net.V.forward = listen
    sample_mac(net, torch.randn(2, 1, 8, 8), net.schedule, solver=solver)
    heard = torch.stack(heard)
    for level in net.schedule[:-1]:
        assert torch.isclose(heard, torch.tensor(level, dtype=heard.dtype), rtol=1e-6).any(0).all(), level
    assert ((heard > 0.0019) & (heard < 80.1)).all()


def test_nominal_level_between_maps_is_geometric():
    family, c = CoefficientFamily(1, M=3), torch.rand(4, 6, 5, 5) * 0.4 - 0.2
    times = [80.0, 17.5, 2.5, 0.17, 0.002]
    maps = [family.gamma(torch.tensor(t, dtype=torch.float64), c) for t in times]
    for t, m in zip(times, maps, strict=True):
        torch.testing.assert_close(nominal_level(m, times, maps), torch.full((4,), t, dtype=torch.float64))
    middle = nominal_level((maps[1] * maps[2]).sqrt(), times, maps)
    torch.testing.assert_close(middle, torch.full((4,), math.sqrt(17.5 * 2.5), dtype=torch.float64))


def test_churn_keeps_the_distribution():
    """Gaussian data: with and without added noise, the exact denoiser gives the data's variance."""
    net = Oracle()
    noise = torch.randn(4000, 1, 8, 8)
    levels = [*get_schedule(64, 0.01, 80).tolist(), 0.0]
    out = sample_mac(net, noise, levels, solver="heun", S_churn=10, rng=TorchRNG())
    plain = sample_mac(net, noise, levels, solver="heun")
    assert out.isfinite().all()
    assert out.std() == pytest.approx(0.5, abs=0.02)
    assert plain.std() == pytest.approx(0.5, abs=0.02)
    correlation = torch.corrcoef(torch.stack([out.flatten(), plain.flatten()]))[0, 1]
    assert correlation < 0.9


def test_churn_outside_its_range_adds_nothing():
    noise = torch.randn(2, 1, 8, 8)
    for class_name in ("EDMPrecond", "EDMGammaPrecond"):
        net = tiny(class_name)
        plain = sample_mac(net, noise, [*net.schedule, 0.0])
        torch.testing.assert_close(sample_mac(net, noise, [*net.schedule, 0.0], S_churn=3, S_min=100), plain)
        assert not torch.allclose(sample_mac(net, noise, [*net.schedule, 0.0], S_churn=3), plain)


def test_labels_reach_both_networks():
    net, noise = tiny(label_dim=3), torch.randn(1, 1, 8, 8)
    a, b = (sample_mac(net, noise, net.schedule, class_labels=torch.eye(3)[i : i + 1]) for i in (0, 1))
    assert not torch.allclose(a, b)


def test_what_chooses_levels():
    assert Facts.of(tiny()).chooses_levels
    assert not Facts.of(tiny().V).chooses_levels
    with pytest.raises(ValueError, match="does not choose"):
        sample_mac(tiny().V, torch.randn(1, 1, 8, 8), [1.0, 0.1])
    with pytest.raises(ValueError, match="use euler, heun, dpm"):
        sample_mac(tiny(), torch.randn(1, 1, 8, 8), [1.0, 0.1], solver="ipndm", S_churn=1)


@pytest.mark.parametrize(
    ("options", "solver", "steps", "nfe"),
    [
        ({}, "euler", 4, 4),
        ({"solver": "heun"}, "heun", 4, 7),
        ({"solver": "ipndm", "num_steps": 6}, "ipndm", 6, 6),
        ({"num_steps": 6, "solver": "dpmpp", "denoise_to_zero": False, "max_order": 2}, "dpmpp", 5, 5),
        ({"t_steps": (80.0, 1.0)}, "ipndm", 2, 2),
        ({"S_churn": 2.0}, "euler", 4, 4),
    ],
)
def test_plans(options, solver, steps, nfe):
    net, noise = tiny(), torch.randn(2, 1, 8, 8)
    plan = build_plan(net, SamplerOptions(**options))
    assert (plan.solver, len(plan.sigmas) - 1, plan.nfe) == (solver, steps, nfe)
    assert f"{nfe} + " in dict(plan.summary)["Cost"]
    seen = []
    images = plan(net, noise, rng=TorchRNG(), trace=seen.append)
    assert images.dtype == torch.float64
    assert len(seen) == steps
    assert (seen[-1].level.flatten(1).std(1) > 0).all()


def test_steps_sample_the_denoiser_alone():
    net, noise = tiny(), torch.randn(2, 1, 8, 8)
    options = SamplerOptions(steps=3)
    torch.testing.assert_close(build_plan(net, options)(net, noise), build_plan(net.V, options)(net.V, noise))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"disc": "vp"}, "give --steps"),
        ({"guidance_type": "uncond"}, "chooses its noise levels"),
        ({"solver": "ipndm", "S_churn": 1.0}, "solvers of one step"),
        ({"max_order": 3}, "has no option max_order"),
        ({"solver": "rk45"}, "takes single noise levels"),
    ],
)
def test_plans_that_cannot_be(options, words):
    with pytest.raises(ValueError, match=words):
        build_plan(tiny(), SamplerOptions(**options))
