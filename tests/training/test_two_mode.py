"""Two Gaussians in the plane: exact numbers, and those of training runs with the settings of the original.

Targets of the golden files, met within their tolerances; the runs take a minute each and are marked slow.
"""

from functools import cache

import numpy as np
import pytest
import torch
from golden_cases import cases
from scipy.optimize import linear_sum_assignment

from networks.encoder import CouplingEncoder
from networks.velocity import VelocityNetwork
from samplers.native import sample_native, uniform_times
from samplers.straightness import trajectory_curvature
from torch_utils.rng import TorchRNG
from training.flow_loss import flow_loss, gaussian_kl
from training.prior import measure_prior, with_prior

MIRROR = torch.tensor([-1.0, 1.0])  # mirror image in the first coordinate


def close(own, spec):
    want, tol = np.asarray(spec["value"]), spec["tolerance"]
    return np.abs(np.asarray(own, dtype=np.float64) - want) <= tol["atol"] + tol["rtol"] * np.abs(want)


def check(case, own):
    """Every number that the case holds; a dictionary is keyed by step counts."""
    wrong = []
    for role, spec in case.spec["expect"].items():
        entries = {"": spec} if "value" in spec else spec
        for key, entry in entries.items():
            got = own[role](int(key)) if key else own[role]
            if not np.all(close(got, entry)):
                wrong.append(f"{role} {key}: {np.asarray(got)} instead of {entry['value']}")
    assert not wrong, f"{case}: {'; '.join(wrong)}"


def data_of(p, mode, n, generator):
    noise = torch.randn(n, 2, generator=generator)
    return torch.tensor(p["mode_means"][mode]) + torch.tensor(p["mode_var"]).sqrt() * noise


def w2(p, generated):
    g = torch.Generator().manual_seed(5)
    data = torch.cat([data_of(p, mode, len(generated) // 2, g) for mode in (0, 1)])
    cost = torch.cdist(generated.double(), data.double()).square().numpy()
    rows, columns = linear_sum_assignment(cost)
    return float(np.sqrt(cost[rows, columns].mean()))


def mirrored(n, generator):
    noise = torch.randn(n // 2, 2, generator=generator)
    return torch.cat([noise, noise * MIRROR])


class Exact:
    """Velocity of the independent coupling in closed form."""

    path, predicts = "linear", "velocity"

    def __init__(self, p):
        self.m, self.s2 = torch.tensor(p["mode_means"]).double(), torch.tensor(p["mode_var"]).double()
        self.w, self.prior = torch.tensor(p["mode_weights"]).double(), torch.tensor(p["prior_var"]).double()

    def __call__(self, x, t, labels=None):
        t = t.double().reshape(-1, 1)
        v = (1 - t) ** 2 * self.s2 + t**2 * self.prior  # [1 or B, 2]
        d = x[:, None] - ((1 - t)[..., None] * self.m)  # [B, K, 2]
        share = (-(d.square() / v[:, None]).sum(-1) / 2 + self.w.log()).softmax(1)[..., None]
        slope = (t * self.prior - (1 - t) * self.s2) / v
        return (share * (-self.m + slope[:, None] * d)).sum(1)


@pytest.mark.parametrize("case", cases("curvature", "two_mode_exact"))
def test_two_mode_exact(case):
    p, g = case.spec["params"], torch.Generator().manual_seed(0)
    net, std = Exact(p), torch.tensor(p["prior_var"]).double().sqrt()
    z = mirrored(p["particles"], g).double() * std
    few = mirrored(1000, g).double() * std

    def curvature(n):
        states = []
        end = sample_native(net, z, uniform_times(n), trace=lambda step: states.append(step.x))
        return trajectory_curvature([*states, end])

    def distance(n):
        return w2(p, sample_native(net, few, uniform_times(n)))

    x = torch.cat([data_of(p, mode, p["particles"], g) for mode in (0, 1)]).double()
    eps = torch.randn(x.shape, generator=g).double() * std
    t = torch.linspace(0, 1, len(x), dtype=torch.float64)[torch.randperm(len(x), generator=g)]
    error = (eps - x) - net((1 - t[:, None]) * x + t[:, None] * eps, t)
    check(case, {"curvature": curvature, "W2": distance, "fm_loss_min": error.square().mean()})


@cache
def trained(beta, prior_var, iterations, batch, lr, betas, eps, modes):
    """Velocity network, encoder (None: independent) and the mean flow-matching loss of the last steps."""
    p = dict(modes)
    torch.manual_seed(0)
    std = torch.tensor(prior_var).sqrt()
    net = VelocityNetwork(1, 2, model_type="MLP", prior_std=std.tolist())
    net.config = {"class_name": "VelocityNetwork", "img_resolution": 1, "img_channels": 2, "model_type": "MLP",
                  "prior_std": std.tolist()}  # fmt: skip
    encoder = None if beta is None else CouplingEncoder(1, 2, model_type="MLP")
    parameters = [*(encoder.parameters() if encoder else ()), *net.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=lr, betas=betas, eps=eps, fused=True)
    g, rng, last = torch.Generator().manual_seed(1), TorchRNG("cpu"), []
    for i in range(iterations):
        optimizer.zero_grad()
        x = data_of(p, i % 2, batch, g)
        out = flow_loss(net, encoder, x, beta=beta or 0.0, rng=rng, prior_std=std)
        out.total.mean().backward()
        optimizer.step()
        if i >= iterations - 1000:
            last.append(float(out.flow_matching.mean().detach()))
    return net.requires_grad_(False), encoder and encoder.requires_grad_(False), float(np.mean(last))


def run_of(p):
    o = p["optimizer"]
    modes = tuple(
        (k, tuple(map(tuple, p[k])) if k == "mode_means" else tuple(p[k])) for k in ("mode_means", "mode_var")
    )
    return trained(p["beta"], tuple(p["prior_var"]), p["iterations"], p["batch"], o["lr"], tuple(o["betas"]), o["eps"],
                   modes)  # fmt: skip


def results(p, net, z, few):
    ends = {}

    def end(n):
        if n not in ends:
            ends[n] = sample_native(net, few, uniform_times(n))
        return ends[n]

    def curvature(n):
        states = []
        last = sample_native(net, z, uniform_times(n), trace=lambda step: states.append(step.x))
        return trajectory_curvature([*states, last])

    return {
        "W2": lambda n: w2(p, end(n)),
        "rms_to_N100": lambda n: (end(n) - end(100)).square().sum(1).mean().sqrt(),
        "curvature_N20": curvature(20), "curvature_N100": curvature(100),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", cases("curvature", "two_mode_trained"))
def test_two_mode_trained(case):
    p, g = case.spec["params"], torch.Generator().manual_seed(2)
    net, encoder, loss = run_of(p)
    std = torch.tensor(p["prior_var"]).sqrt()
    own = results(p, net, mirrored(2000, g) * std, mirrored(1000, g) * std) | {"fm_loss": loss}
    if encoder is not None:
        x = torch.cat([data_of(p, mode, 5000, g) for mode in (0, 1)])
        z, mu, logvar = encoder(x, torch.randn(x.shape, generator=g))
        own |= {"kl": gaussian_kl(mu, logvar, std**2).mean(), "z_mean": z.mean(0), "z_std": z.std(0),
                "posterior_std": (logvar / 2).exp().mean(0)}  # fmt: skip
    check(case, own)


@pytest.mark.slow
@pytest.mark.parametrize("case", cases("curvature", "two_mode_start_noise"))
def test_two_mode_start_noise(case):
    p, g = case.spec["params"], torch.Generator().manual_seed(3)
    net, encoder, _ = run_of(p)
    x = torch.cat([data_of(p, mode, 5000, g) for mode in (0, 1)])
    if p["start"] == "encoded":
        few = torch.cat([data_of(p, mode, 500, g) for mode in (0, 1)])
        starts = [encoder(v, torch.randn(v.shape, generator=g)).z for v in (x, few)]
    else:
        moments = measure_prior(encoder, x[:, :, None, None].split(1000))
        start = with_prior(net, moments).start_noise
        prior = {"prior": "standard", "moment_matched": "matched"}[p["start"]]
        starts = [start(mirrored(n, g)[:, :, None, None], prior)[:, :, 0, 0] for n in (2000, 1000)]
    check(case, results(p, net, *starts))
