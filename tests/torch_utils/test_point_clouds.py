"""Points on boxes and distances of point clouds, against plain loops."""

import pytest
import torch

from torch_utils.point_clouds import chamfer, set_distances, surface_points


def box(centre, size, exists=1.0):
    return [exists, *centre, *size]


def test_points_lie_on_the_surfaces_in_proportion_to_their_areas():
    parts = torch.tensor([[box((0, 0, 0), (2, 2, 2)), box((5, 0, 0), (1, 1, 1)), box((9, 9, 9), (3, 3, 3), 0.0)]])
    points = surface_points(parts, 5000)[0]
    second = points[:, 0] > 3
    assert second.double().mean() == pytest.approx(6 / 30, abs=0.03)
    for own, centre, half in ((~second, 0, 1), (second, 5, 0.5)):
        local = points[own] - torch.tensor([centre, 0, 0])
        torch.testing.assert_close(local.abs().amax(1), torch.full((len(local),), float(half)), atol=1e-6, rtol=0)
        assert local.mean(0).abs().max() < 0.1
    sides = (points[~second].abs() > 1 - 1e-6).double().mean(0)
    torch.testing.assert_close(sides, torch.full((3,), 1 / 3, dtype=torch.float64), atol=0.03, rtol=0)


def test_equal_shapes_have_equal_points():
    parts = torch.tensor([[box((0, 0, 0), (1, 2, 3))]]).repeat(3, 1, 1)
    points = surface_points(parts, 50, seed=4)
    assert torch.equal(points[0], points[2])
    assert not torch.equal(points[0], surface_points(parts, 50, seed=5)[0])
    with pytest.raises(ValueError, match="no box with a surface"):
        surface_points(0 * parts, 10)


@pytest.mark.parametrize("chunk", [1 << 24, 1])
def test_chamfer(monkeypatch, chunk):
    monkeypatch.setattr("torch_utils.point_clouds.CHUNK", chunk)
    a, b = torch.randn(3, 7, 3), torch.randn(4, 5, 3)
    plain = [
        [
            sum(min(((p - q) ** 2).sum() for q in y) for p in x) / len(x)
            + sum(min(((p - q) ** 2).sum() for p in x) for q in y) / len(y)
            for y in b.double()
        ]
        for x in a.double()
    ]
    torch.testing.assert_close(chamfer(a, b).double(), torch.tensor(plain).double(), atol=1e-5, rtol=0)
    assert chamfer(a[:0], b).shape == (0, 4)


def test_distances_of_sets():
    reference = torch.randn(6, 20, 3)
    same = set_distances(reference[torch.randperm(6)], reference)
    assert same["mmd"] == same["cov_distance"] == pytest.approx(0, abs=1e-5)
    assert (same["coverage"], same["fidelity"]) == (1, pytest.approx(0, abs=1e-5))
    one = set_distances(reference[:1].repeat(5, 1, 1), reference)  # all alike: near data, and far from most of them
    assert (one["coverage"], one["fidelity"]) == (1 / 6, pytest.approx(0, abs=1e-5))
    assert one["mmd"] > 0.1
