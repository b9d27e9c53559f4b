"""Forecast, trajectory and two-sample scores: golden numbers and what is known in closed form."""

import math

import numpy as np
import pytest
from golden_cases import cases

from torch_utils.scores import (
    crps,
    ensemble_scores,
    kl_of_kernel_densities,
    mmd,
    mmd_multiscale,
    regression_scores,
    trajectory_scores,
    wrapped,
)


@pytest.mark.parametrize("case", cases("idff", "ensemble_scores"))
def test_ensemble_scores(case):
    ensemble, observed = case.input("ens").numpy(), case.input("obs").numpy()
    own = {**ensemble_scores(ensemble, observed), "crps_map": crps(ensemble, observed)}
    for role in case.roles:
        case.check(role, own[role])


@pytest.mark.parametrize("case", cases("idff", "trajectory_scores"))
def test_trajectory_scores(case):
    period = 360.0 if case.spec["params"]["wrap_angles"] else None
    own = trajectory_scores(case.input("generated").numpy(), case.input("data").numpy(), period)
    for role in case.roles:
        case.check(role, own[role])


@pytest.mark.parametrize("case", cases("idff", "regression_scores"))
def test_regression_scores(case):
    generated = case.input("generated").numpy()[:, case.spec["params"]["trajectory"]]
    own = regression_scores(generated, case.input("data").numpy())
    for role in case.roles:
        case.check(role, own[role])


@pytest.mark.parametrize("case", cases("idff", "two_sample"))
def test_two_samples(case):
    params, x, y = case.spec["params"], case.input("x").numpy(), case.input("y").numpy()
    rbf = mmd(x, y, params["sigma"])
    own = {
        "mmd_rbf": rbf, "mmd_rbf_again": rbf,
        "kl_kde": kl_of_kernel_densities(x, y, params["kde_bandwidth"], params["kde_floor"]),
        "mmd_multiscale": mmd_multiscale(x, y, tuple(params["multiscale_a"])),
        "mmd_rbf4": mmd_multiscale(x, y, tuple(params["rbf4_a"]), "rbf"),
    }  # fmt: skip
    for role in case.roles:
        case.check(role, own[role])


def test_a_perfect_ensemble():
    """M members of N(0, 1) forecast N(0, 1): CRPS (1 + 1/M) / sqrt(pi), fair 1 / sqrt(pi), spread as large as error."""
    g, members, n = np.random.default_rng(0), 10, 100_000
    ensemble, observed = g.standard_normal((n, members)), g.standard_normal(n)
    scores = ensemble_scores(ensemble, observed)
    error = 4 / math.sqrt(n)  # four standard errors, of terms of about unit deviation
    assert abs(scores["crps"] - (1 + 1 / members) / math.sqrt(math.pi)) < error
    assert abs(scores["crps_fair"] - 1 / math.sqrt(math.pi)) < error
    assert abs(scores["mse"] - (1 + 1 / members)) < 2 * error
    assert abs(scores["ssr"] - math.sqrt((1 - 1 / members) / (1 + 1 / members))) < error


def test_one_member_is_the_absolute_error():
    g = np.random.default_rng(0)
    ensemble, observed = g.standard_normal((50, 1)), g.standard_normal(50)
    np.testing.assert_allclose(crps(ensemble, observed), np.abs(ensemble[:, 0] - observed), rtol=1e-14)
    assert math.isnan(ensemble_scores(ensemble, observed)["crps_fair"])
    with pytest.raises(ValueError, match="2 members or more"):
        crps(ensemble, observed, fair=True)
    with pytest.raises(ValueError, match="is no forecast of"):
        crps(ensemble, observed[:-1])


def test_angles_wrap():
    np.testing.assert_allclose(wrapped(np.array([-350.0, 350.0, 180.0, 179.0])), [10, -10, -180, 179])
    data = np.full((5, 2), 179.0)
    scores = trajectory_scores(np.full((5, 3, 2), -179.0), data, period=360)
    assert scores["RMSE_mean"] == scores["MAE_mean"] == 2


def test_bandwidth_by_the_median():
    g = np.random.default_rng(0)
    x, y, far = g.standard_normal((200, 5)), g.standard_normal((200, 5)), g.standard_normal((200, 5)) + 1
    assert mmd(100 * x, 100 * y) < 0.02 < 0.1 < mmd(100 * x, 100 * far)
    assert mmd(100 * x, 100 * far, sigma=1) < 0.02  # as a fixed one far below it, blind to any difference
