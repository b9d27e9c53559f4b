"""Exact transport: against closed forms, an assignment solver, and bad input."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from torch_utils.wasserstein import wasserstein


def test_translation():
    x = torch.randn(200, 2)
    assert wasserstein(x, x + torch.tensor([3.0, 4.0])) == pytest.approx(5, rel=1e-5)
    assert wasserstein(x, x + torch.tensor([3.0, 4.0]), power=1) == pytest.approx(5, rel=1e-5)
    assert wasserstein(x, x.flip(0)) == pytest.approx(0, abs=1e-6)


def test_one_dimension_pairs_sorted_points():
    x, y = torch.randn(101, 1, dtype=torch.float64), 2 * torch.randn(101, 1, dtype=torch.float64)
    want = (x.sort(0).values - y.sort(0).values).square().mean().sqrt()
    assert wasserstein(x, y) == pytest.approx(float(want))


@pytest.mark.parametrize("power", [1, 2])
def test_assignment(power):
    x, y = torch.randn(60, 3, dtype=torch.float64), torch.randn(60, 3, dtype=torch.float64) + 1
    cost = torch.cdist(x, y) ** power
    rows, columns = linear_sum_assignment(cost.numpy())
    want = float(cost[rows, columns].mean()) ** (1 / power)
    assert wasserstein(x, y, power) == pytest.approx(want)
    assert wasserstein(x, torch.cat([y, y]), power) == pytest.approx(want)  # sets may differ in size


def test_images_count_as_points():
    x, y = torch.randn(20, 2, 1, 1), torch.randn(20, 2, 1, 1)
    assert wasserstein(x, y) == pytest.approx(wasserstein(x.flatten(1), y.flatten(1)))


@pytest.mark.parametrize(
    ("x", "y", "power", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 3), 2, "points of one dimension"),
        (torch.zeros(0, 2), torch.zeros(3, 2), 2, "points of one dimension"),
        (torch.full((3, 2), torch.nan), torch.zeros(3, 2), 2, "not finite"),
        (torch.zeros(3, 2), torch.zeros(3, 2), 3, "choose 1 or 2"),
    ],
)
def test_bad_input(x, y, power, message):
    with pytest.raises(ValueError, match=message):
        wasserstein(x, y, power)
