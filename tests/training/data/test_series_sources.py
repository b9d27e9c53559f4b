"""Generated series: what is known of each in closed form, and what was measured of each."""

import numpy as np
import pytest

from torch_utils.scores import wrapped
from training.data.series_sources import RESIDUE_WELLS, SOURCES, AdvectedField, langevin


def test_elnino_is_the_public_record():
    values = SOURCES["elnino"](0).values
    assert values.shape == (1, 732, 1, 1, 1)
    assert (values.min(), values.max()) == (18.95, 29.24)
    assert values.mean() == pytest.approx(23.09, abs=0.005)


def test_the_best_forecast_of_the_field():
    """Variances that follow from the decay of each wave; the drawn field has them."""
    field = AdvectedField()
    frames = field.draw(1500, np.random.default_rng(0))
    mean, variance = field.best(frames[:-7], 7)
    assert variance == pytest.approx([0.3997, 0.6148, 0.7468, 0.8312, 0.8864, 0.9229, 0.9474], abs=5e-5)
    came = np.stack([frames[h : len(frames) - 7 + h] for h in range(1, 8)], 1)
    assert np.square(came - mean).mean((0, 2, 3))[0] == pytest.approx(variance[0], rel=0.05)
    kept = np.square(came[:, [0]] - frames[:-7, None]).mean()
    assert kept == pytest.approx(0.5256, rel=0.05)  # persistence
    assert frames.var() == pytest.approx(1, abs=0.15)


def test_langevin_reaches_the_boltzmann_distribution():
    """Of a double well, whose second moment is known by quadrature, from 400 trajectories after 4 units of time."""
    rng = np.random.default_rng(0)
    x = langevin(lambda x: -8 * x * (x**2 - 1), np.repeat([-1.0, 1.0], 200), 6, rng, dt=4e-3, every=100)[2:]
    grid = np.linspace(-3, 3, 4001)
    weight = np.exp(-2 * (grid**2 - 1) ** 2)
    expected = (grid**2 * weight).sum() / weight.sum()
    spread = np.square(x).std() / np.sqrt(400)
    assert np.square(x).mean() == pytest.approx(expected, abs=4 * spread)
    assert (np.sign(x[-1]) != np.repeat([-1, 1], 200)).any()  # the barrier is crossed


def test_peptide_as_measured():
    """Occupancies .37, .33, .07 and steps of 33.7 degrees, within the spread between draws of 10 trajectories."""
    peptide = SOURCES["peptide"](0)
    assert peptide.values.shape == (10, 600, 8, 1, 1)
    pairs = peptide.values[..., 0, 0].reshape(10, 600, 4, 2)
    assert pairs.min() > -180
    assert pairs.max() <= 180
    away = wrapped(pairs[..., None, :] - np.array(list(RESIDUE_WELLS.values())))
    share = (np.abs(away) < 60).all(-1)
    sd = share.mean((1, 2)).std(0) / np.sqrt(9)  # of the mean over independent trajectories
    assert (np.abs(share.mean((0, 1, 2)) - [0.37, 0.33, 0.07]) < 4 * sd + 0.005).all()
    step = wrapped(np.diff(pairs, axis=1))
    assert np.sqrt(np.square(step).mean()) == pytest.approx(33.7, abs=0.5)
    assert np.abs(step).mean() == pytest.approx(26.8, abs=0.4)
    nearest = np.square(away).sum(-1).argmin(-1)
    assert (np.diff(nearest, axis=1) != 0).mean() == pytest.approx(0.079, abs=0.008)


@pytest.mark.parametrize(("name", "rates"), [("lorenz", 0.035), ("rossler", 0.05)])
def test_chaos_follows_its_equations(name, rates):
    x, y, z = SOURCES[name](0).values[0, :, :, 0, 0].T
    middle = slice(1, -1)
    slope = (x[2:] - x[:-2]) / (2 * (70 / 1999 if name == "lorenz" else 0.05))
    rate = 10 * (y - x) if name == "lorenz" else -y - z
    assert np.corrcoef(slope, rate[middle])[0, 1] > 0.98
    assert len(x) == 2000


@pytest.mark.parametrize("name", ["advected", "doublewell"])
def test_seeds(name):
    one, same, other = (SOURCES[name](seed).values for seed in (0, 0, 1))
    assert (one == same).all()
    assert (one != other).any()
