"""Running averages against explicit weighted sums; post-hoc averages against directly tracked ones."""

import numpy as np
import pytest
import torch
from torch import nn

from training.loop.ema import (
    halflife_beta,
    posthoc_error,
    power_beta,
    reconstruct,
    sigma_rel_to_gamma,
    solve_posthoc_weights,
    update_ema,
)


def network():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).double()
    net.register_buffer("constant", torch.tensor([1.5, -2.0]))
    return net


def trajectory(steps, seed=0):
    """Parameters after every step of a random walk with a trend: [steps, size] float64."""
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.standard_normal((steps, 8)), 0) * 0.05 + np.log(np.arange(1, steps + 1))[:, None]


def shares(betas):
    """The weight of every step in a running average with these factors."""
    kept = np.append(np.cumprod(np.array(betas)[::-1])[::-1][1:], 1)
    return kept * (1 - np.array(betas))


@pytest.mark.parametrize("beta_of", [lambda n: halflife_beta(n, 4, 40, 0.5), lambda n: power_beta(n, 4, 3.7)])
def test_update_is_the_explicit_weighted_sum(beta_of):
    net, average = network(), network()
    buffers = {k: v.clone() for k, v in average.named_buffers()}
    seen, betas = [], []
    for step in range(30):
        with torch.no_grad():
            for p in net.parameters():
                p.normal_()
            net[1].running_mean.normal_()
        seen.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
        betas.append(beta_of(step * 4))
        update_ema(average, net, betas[-1])
    assert shares(betas).sum() == pytest.approx(1)  # the first factor is 0: nothing is left of the start
    expected = torch.from_numpy(shares(betas)) @ torch.stack(seen)
    torch.testing.assert_close(torch.cat([p.flatten() for p in average.parameters()]), expected)
    assert all(torch.equal(v, buffers[k]) for k, v in average.named_buffers())


def test_halflife():
    share = 1.0
    for step in range(10):
        share *= halflife_beta(step * 8, 8, 80)
    assert share == pytest.approx(0.5)
    assert halflife_beta(0, 8, 80, 0.05) == 0  # a young average is the network
    assert halflife_beta(10**6, 8, 80, 0.05) == halflife_beta(0, 8, 80)


def test_update_leaves_no_graph():
    net, average = network(), network()
    update_ema(average, net, 0.5)
    assert all(p.grad_fn is None and p.is_leaf for p in average.parameters())


def test_power_shares_are_integrals_of_the_profile():
    """Also with a batch size that changes."""
    gamma, sizes = 2.6, [4, 4, 16, 8, 8, 2]
    ends = np.cumsum(sizes)
    betas = [power_beta(int(end - size), size, gamma) for end, size in zip(ends, sizes, strict=True)]
    integrals = np.diff((np.append(0, ends) / ends[-1]) ** (gamma + 1))
    np.testing.assert_allclose(shares(betas), integrals, rtol=1e-12)


@pytest.mark.parametrize("sigma_rel", [1e-3, 0.05, 0.1, 0.2, 0.25, 12**-0.5])
def test_width_and_exponent(sigma_rel):
    gamma = sigma_rel_to_gamma(sigma_rel)
    assert gamma >= 0
    exact = ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5  # of a Beta(gamma + 1, 1) variable
    assert exact == pytest.approx(sigma_rel, rel=1e-9)
    u = (np.arange(2_000_000) + 0.5) / 2_000_000  # standard deviation of the profile itself, on a unit-length run
    p = (gamma + 1) * u**gamma
    mean = (p * u).mean()
    assert np.sqrt((p * (u - mean) ** 2).mean()) == pytest.approx(sigma_rel, rel=1e-4)


def test_published_exponents():
    """The two widths that Karras et al. 2024 track, and their exponents as printed there (section 3.1)."""
    assert sigma_rel_to_gamma(0.05) == pytest.approx(16.97, abs=0.005)
    assert sigma_rel_to_gamma(0.10) == pytest.approx(6.94, abs=0.005)


@pytest.mark.parametrize("sigma_rel", [0, -0.1, 0.2887, 1, float("nan")])
def test_impossible_width(sigma_rel):
    with pytest.raises(ValueError, match="relative EMA width"):
        sigma_rel_to_gamma(sigma_rel)


def track(steps, every, batch, widths, target):
    """Stored averages, their profiles, and the wanted average tracked directly."""
    theta = trajectory(steps)
    gammas = [sigma_rel_to_gamma(width) for width in widths]
    averages = {gamma: np.zeros(8) for gamma in [*gammas, target[1]]}
    states, stored, wanted = [], [], None
    for step in range(steps):
        for gamma, average in averages.items():
            beta = power_beta(step * batch, batch, gamma)
            averages[gamma] = theta[step] + beta * (average - theta[step])
        seen = (step + 1) * batch
        if seen == target[0]:
            wanted = averages[target[1]].copy()
        if (step + 1) % every == 0:
            states += [{"w": torch.tensor(averages[gamma])} for gamma in gammas]
            stored += [(seen, gamma) for gamma in gammas]
    return theta, states, stored, wanted


@pytest.mark.parametrize(("end", "width"), [(1000, 0.075), (1000, 0.15), (950, 0.06), (500, 0.1)])
def test_posthoc_equals_direct_tracking(end, width):
    """The error falls quickly with the number of stored averages; the average itself lies about 0.5 off the weights."""
    batch, target = 8, (end * 8, sigma_rel_to_gamma(width))
    errors = []
    for every in (100, 25):
        _, states, stored, wanted = track(1000, every, batch, (0.05, 0.1), target)
        weights = solve_posthoc_weights(stored, target)
        own = reconstruct(states, weights)["w"].numpy()
        errors.append(np.abs(own - wanted).max())
        assert weights.sum() == pytest.approx(1, abs=0.01)
    assert errors[1] < max(errors[0] / 20, 1e-9)
    assert errors[1] < 2e-3


def test_posthoc_is_the_explicit_weighted_sum():
    """Reconstruction = sum over steps of the combined profile's integral times the weights of that step."""
    target = (4000.0, sigma_rel_to_gamma(0.08))
    theta, states, stored, _ = track(500, 50, 8, (0.05, 0.1), target)
    weights = solve_posthoc_weights(stored, target)
    edges = np.arange(501) * 8
    profile = sum(
        w * np.diff(np.minimum(edges / t, 1) ** (gamma + 1)) for w, (t, gamma) in zip(weights, stored, strict=True)
    )
    np.testing.assert_allclose(reconstruct(states, weights)["w"].numpy(), profile @ theta, rtol=1e-8)


def test_weights_minimise_the_distance_between_profiles():
    stored = [(300.0, 16.97), (300.0, 6.94), (1000.0, 16.97), (1000.0, 6.94)]
    target = (900.0, 4.0)
    u = (np.arange(400_000) + 0.5) / 400

    def profile(t, gamma):
        return np.where(u <= t, (gamma + 1) * (u / t) ** gamma / t, 0)

    basis = np.stack([profile(*pair) for pair in stored], 1)
    expected = np.linalg.lstsq(basis, profile(*target), rcond=None)[0]
    np.testing.assert_allclose(solve_posthoc_weights(stored, target), expected, rtol=1e-3, atol=1e-4)


def test_a_stored_average_is_its_own_reconstruction():
    stored = [(t, gamma) for t in (1e6, 2e6, 3e6) for gamma in (16.97, 6.94)]
    np.testing.assert_allclose(solve_posthoc_weights(stored, stored[3]), np.eye(6)[3], atol=1e-8)
    twice = solve_posthoc_weights([*stored, stored[3]], stored[3])  # a duplicate shares the weight
    np.testing.assert_allclose(twice[[3, 6]], [0.5, 0.5], atol=1e-8)


def test_reconstruct_keeps_types_and_constants():
    a = {"w": torch.tensor([1.0, 2.0]).half(), "freqs": torch.tensor([0.1]), "count": torch.tensor(3)}
    b = {"w": torch.tensor([3.0, 6.0]).half(), "freqs": torch.tensor([0.1]), "count": torch.tensor(5)}
    out = reconstruct([a, b], [0.5, 0.25])
    assert out["w"].dtype == torch.float16
    assert out["w"].tolist() == [1.25, 2.5]
    assert torch.equal(out["freqs"], b["freqs"])  # a constant is no trained weight: not scaled by 0.75
    assert out["count"].item() == 5
    out["freqs"].zero_()
    assert b["freqs"].item() > 0  # a copy


def test_bad_input():
    pair = (1000.0, 6.94)
    for stored, target, words in [
        ([], pair, "no stored averages"),
        ([(0, 6.94)], pair, "t > 0"),
        ([pair], (1000, -1), "gamma >= 0"),
        ([pair], (1001, 6.94), "choose an earlier end"),
    ]:
        with pytest.raises(ValueError, match=words):
            solve_posthoc_weights(stored, target)
    state = {"w": torch.ones(2)}
    with pytest.raises(ValueError, match="2 stored averages need as many weights, got 1"):
        reconstruct([state, state], [1.0])
    with pytest.raises(ValueError, match="different keys"):
        reconstruct([state, {"v": torch.ones(2)}], [0.5, 0.5])


def test_posthoc_error_is_the_distance_of_the_profiles():
    """Against the integral on a fine grid, for weights that are not the best ones."""
    stored, weights, target = [(0.5, 3.0), (1.0, 8.0)], [0.3, 0.6], (1.0, 5.0)
    u = (np.arange(200_000) + 0.5) / 200_000

    def profile(t, gamma):
        return np.where(u <= t, (gamma + 1) * u**gamma / t ** (gamma + 1), 0)

    combined = sum(w * profile(*p) for w, p in zip(weights, stored, strict=True))
    expected = np.sqrt(((combined - profile(*target)) ** 2).mean() / (profile(*target) ** 2).mean())
    assert posthoc_error(stored, weights, target) == pytest.approx(expected, rel=1e-4)
    assert posthoc_error(stored, solve_posthoc_weights(stored, target), target) < expected
    assert posthoc_error(stored, [0, 1], stored[1]) == 0
