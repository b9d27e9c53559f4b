"""Figures of angles on trajectories where each is known."""

import numpy as np
import pytest

from training.molecules import (
    autocorrelation,
    compare,
    lifted,
    occupancy,
    one_step,
    ramachandran_kl,
    residues,
    transition_rate,
)

ALPHA, BETA = (-63.0, -42.0), (-130.0, 150.0)


def dwelling(*frames):
    """One trajectory of one residue."""
    return np.array(frames)[None]


def test_wells_are_found_across_the_edge():
    shares = occupancy(dwelling(ALPHA, BETA, (-130, -165), (0, 100)))
    assert shares == {"alpha R": 0.25, "beta": 0.5, "alpha L": 0.0, "elsewhere": 0.25}
    assert transition_rate(dwelling(ALPHA, ALPHA, BETA, (-130, -165))) == pytest.approx(1 / 3)


def test_the_same_trajectories_differ_by_nothing():
    rng = np.random.default_rng(0)
    angles = rng.uniform(-180, 180, (3, 50, 4))
    found = compare(angles, angles)
    assert found["occupancy_distance"] == 0
    assert found["ramachandran_kl"] == pytest.approx(0, abs=1e-12)
    other = compare(dwelling(ALPHA, ALPHA), dwelling(BETA, BETA))
    assert other["occupancy_distance"] == 1
    assert other["ramachandran_kl"] > 10


def test_histograms_by_hand():
    """Half of the data in each of two cells, all of the samples in one."""
    data, made = dwelling(ALPHA, BETA), dwelling(ALPHA, ALPHA)
    floor, total = 1e-6, 1 + 36**2 * 1e-6
    p, q = np.array([0.5, 0.5]) + floor, np.array([1.0, 0.0]) + floor
    assert ramachandran_kl(data, made) == pytest.approx((p / total * np.log(p / q)).sum(), rel=1e-9)


def test_autocorrelation_of_a_wave():
    phi = np.degrees(np.arccos(0.9 * np.cos(2 * np.pi * np.arange(4000) / 40)))
    found = autocorrelation(np.stack([phi, phi], 1)[None], lags=20)
    np.testing.assert_allclose(found, np.cos(2 * np.pi * np.arange(1, 21) / 40), atol=0.01)


def test_errors_wrap():
    members, came = np.array([[[179.0]], [[-170.0]]]), np.array([[-179.0], [-160.0]])
    found = one_step(members, came)
    assert found["RMSE_mean"] == pytest.approx(np.sqrt((2**2 + 10**2) / 2))
    assert found["raw_RMSE_mean"] == pytest.approx(np.sqrt((358**2 + 10**2) / 2))
    assert found["mean_RMSE"] == pytest.approx(found["RMSE_mean"])
    both = one_step(np.array([[[170.0], [-170.0]]]), np.array([[179.0]]))
    assert both["mean_RMSE"] == pytest.approx(1)
    assert lifted(members, came).ravel().tolist() == [-181, -170]


def test_an_odd_number_of_angles_is_no_pairs():
    with pytest.raises(ValueError, match="3 angles are not pairs"):
        residues(np.zeros((1, 2, 3)))
