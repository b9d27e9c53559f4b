"""Pictures of points: where the ink is, and what cannot be drawn."""

import pytest
import torch

from torch_utils.report.scatter import scatter


def blue(picture):
    return (picture[2].int() - picture[0].int()) > 60


def test_ink_lies_where_the_points_are():
    square = torch.rand(4000, 2) * 2 - 1
    left = square[square[:, 0] < 0]
    picture = scatter(left[:, :, None, None], reference=square)
    assert picture.dtype == torch.uint8
    assert picture.shape[0] == 3
    ink = blue(picture).sum(0)
    middle = ink.shape[0] // 2
    assert ink[: middle - 20].sum() > 500
    assert ink[middle + 40 :].sum() == 0


def test_one_stray_point_does_not_shrink_the_rest():
    points = torch.cat([torch.rand(5000, 2), torch.full((1, 2), 1e4)])
    columns = blue(scatter(points)).any(0).nonzero()
    assert columns.max() - columns.min() > 350  # of 500 pixels


def test_bad_input():
    with pytest.raises(ValueError, match="two dimensions"):
        scatter(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="no finite point"):
        scatter(torch.full((4, 2), torch.nan))
