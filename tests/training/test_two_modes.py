"""The two-mode experiment: trained models against the numbers of the original code, and the command that prints them.

Slow: a model is trained for every coupling of the golden data, one to two minutes each.
"""

import json
from functools import cache

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from golden_cases import cases

from bench import curvature_2d as bench
from bench.curvature_2d import TOY, mirrored, shaped, starts
from samplers.curvature import trajectory
from samplers.straightness import trajectory_curvature
from torch_utils.rng import TorchRNG
from torch_utils.wasserstein import wasserstein
from training.flow_loss import flow_loss
from training.toys import draw


@cache
def trained(beta, prior_std, iterations, batch):
    return bench.train(beta, prior_std=prior_std, iterations=iterations, batch=batch)


def model(case):
    p = case.spec["params"]
    assert p["optimizer"] == {"name": "adam", "lr": 0.001, "betas": [0.9, 0.999], "eps": 1e-8}
    prior_std = tuple(v**0.5 for v in p["prior_var"])
    return trained(p["beta"], prior_std, p["iterations"], p["batch"])


def start_points(case, net, encoder, seed, num=1000):
    """Where the samples of a case start, `[num, 2, 1, 1]`: the prior, a Gaussian of its moments, or encoded data."""
    name = case.spec["params"].get("start", "prior")
    if name == "encoded":
        data = shaped(draw(TOY, num // 2, 50 + seed)[0])
        return mirrored(lambda eps: encoder(data, eps.float()).z.double(), num, 60 + seed)
    return mirrored(starts(net, encoder)[{"prior": "prior", "moment_matched": "moments"}[name]], num, 70 + seed)


def w2(case, net, encoder, steps, sets=3):
    values = []
    for seed in range(sets):
        states, _ = trajectory(net, start_points(case, net, encoder, seed), steps)
        values.append(wasserstein(states[-1], draw(TOY, 1000, 80 + seed)[0]))
    return np.mean(values)


def moments(net, encoder, prior_std):
    data = shaped(draw(TOY, 20_000, 9)[0])
    rng = TorchRNG(generator=torch.Generator().manual_seed(10))
    std = torch.tensor(prior_std)[:, None, None]
    losses = flow_loss(net, encoder, data, beta=0, prior_std=std, rng=rng)
    found = {"fm_loss": float(losses.flow_matching.double().mean())}
    if encoder is not None:
        z, _, logvar = encoder(data, rng.randn(data.shape))
        found["kl"] = float(losses.kl.double().mean())
        found["z_mean"], found["z_std"] = z.mean(0).flatten().tolist(), z.std(0).flatten().tolist()
        found["posterior_std"] = (logvar / 2).exp().mean(0).flatten().tolist()
    return found


def compare(case, own):
    """Every result of a case that is outside of its tolerance, in words.

    A W2 may be lower, nearer to the data: the last weights of every run lean to one mode by up to half a percent, which
    is a W2 of 1, and some of the original's runs lean more than others.
    """
    wrong = []

    def check(name, value, want):
        value, target = np.array(value), np.array(want["value"])
        tolerance = want["tolerance"]
        excess = value - target if name.startswith("W2") else np.abs(value - target)
        if (excess > tolerance["atol"] + tolerance["rtol"] * np.abs(target)).any():
            wrong.append(f"{name}: {value}, expected {target}")

    for name, want in case.spec["expect"].items():
        if "value" in want:
            check(name, own(name, None), want)
        else:
            for n, one in want.items():
                check(f"{name} at {n} steps", own(name, int(n)), one)
    return wrong


def differences(case):
    net, encoder = model(case)
    points = torch.cat([start_points(case, net, encoder, k) for k in range(20)])
    measured = moments(net, encoder, net.prior_std)

    def own(name, n):
        if name == "W2":
            return w2(case, net, encoder, n)
        if name == "rms_to_N100":
            ends = [trajectory(net, points, k)[0][-1] for k in (n, 100)]
            return float((ends[0] - ends[1]).flatten(1).square().sum(1).mean().sqrt())
        if name.startswith("curvature_N"):
            return float(trajectory_curvature(trajectory(net, points, int(name.removeprefix("curvature_N")))[0]))
        return measured[name]

    return compare(case, own)


@pytest.mark.slow
@pytest.mark.parametrize("case", cases("curvature", "two_mode_trained", "two_mode_start_noise"))
def test_golden(case):
    wrong = differences(case)
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_curvature_grows_with_beta():
    values = []
    for beta in (10.0, 20.0, None):
        net, _ = trained(beta, (6.0, 1.0), 8000, 512)
        values.append(bench.curvature(net, lambda eps, net=net: net.start_noise(eps, "standard"), 100))
    assert values[0] < values[1] < values[2]


def test_command_prints_and_judges(tmp_path):
    """After a few steps nothing is within the spread, and the command says what is not."""
    file = tmp_path / "numbers.json"
    args = ["--beta=10,independent", "--iterations=3", "--sets=1", "--points=60", f"--json={file}"]
    result = CliRunner().invoke(bench.main, args)
    assert result.exit_code == 1, result.output
    assert "Outside of the spread" in result.output
    assert "beta 10.0: curvature" in result.output
    numbers = json.loads(file.read_text())
    assert set(numbers) == {"10.0", "independent"}
    assert set(numbers["10.0"]["w2"]) == {"prior", "moments", "matched"}
    assert set(numbers["independent"]["w2"]) == {"prior"}


def test_expected_numbers_pass_their_own_check():
    for beta, (value, tables) in bench.EXPECTED.items():
        found = {"curvature": value, "w2": {n: dict(zip(bench.STEPS, v, strict=True)) for n, v in tables.items()}}
        assert bench.failures(beta, found) == []
        assert len(bench.failures(beta, {**found, "curvature": 2 * value})) == 1
    assert bench.failures(3.0, {}) == []


def test_bad_beta():
    result = CliRunner().invoke(bench.main, ["--beta=many"])
    assert result.exit_code == 1
    assert "is not a list like 1,10,independent" in result.output
