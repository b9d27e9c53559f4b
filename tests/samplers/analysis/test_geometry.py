"""Trajectory geometry: golden numbers and curves with known bends."""

import math

import pytest
import torch
from golden_cases import cases

from samplers.analysis import geometry


@pytest.mark.parametrize("case", cases("solvers", "trajectory_analysis"))
def test_golden_geometry(case):
    x, t = case.tensor("x"), case.tensor("t")
    drift = _drift(case, x, t)
    data = x[:-1] - t[:-1].reshape(-1, *[1] * (x.ndim - 1)) * drift
    case.expect("dev_x", geometry.chord_deviation(x)[1:-1].T)
    case.expect("dev_denoised", geometry.chord_deviation(data)[1:-1].T)
    case.expect("norm_x", geometry.norms(x))
    case.expect("norm_denoised", geometry.norms(data))
    case.expect("norm_eps", geometry.norms(drift))
    case.expect("dist_x", geometry.distance_to_end(x))
    case.expect("dist_denoised", geometry.distance_to_end(data))
    case.expect("cos", geometry.cosine_to_end(x, drift))
    case.expect("explained", geometry.explained_variance(x))
    projected = geometry.project3(x)
    case.expect("proj3", projected)
    bend = geometry.bend(projected, case.spec["window"])
    case.expect("arclen", bend.arclength)
    case.expect("curvature", bend.curvature)
    case.expect("torsion", bend.torsion)


def _drift(case, x, t):
    from gaussian_mixture import denoiser_of

    denoise = denoiser_of(case)
    return torch.stack([(x[i] - denoise(x[i], t[i])) / t[i] for i in range(len(t) - 1)])


def test_helix_has_constant_curvature_and_torsion():
    a, b, s = 2.0, 0.5, torch.linspace(0, 6, 401, dtype=torch.float64)
    helix = torch.stack([a * s.cos(), a * s.sin(), b * s], dim=-1)[:, None]
    bend = geometry.bend(helix, 11)
    inner = slice(30, -30)
    torch.testing.assert_close(
        bend.curvature[inner], torch.full_like(bend.curvature[inner], a / (a**2 + b**2)), rtol=1e-3, atol=0
    )
    torch.testing.assert_close(
        bend.torsion[inner], torch.full_like(bend.torsion[inner], b / (a**2 + b**2)), rtol=1e-2, atol=0
    )


def test_half_circle_deviates_by_its_radius():
    angle = torch.linspace(0, math.pi, 101, dtype=torch.float64)
    x = torch.stack([angle.cos(), angle.sin()], dim=-1)[:, None]
    deviation = geometry.chord_deviation(x)[:, 0]
    assert deviation.max() == pytest.approx(1)
    assert deviation[0] == deviation[-1] == 0


def test_straight_line_is_explained_by_one_component():
    x = torch.linspace(1, 0, 11, dtype=torch.float64)[:, None, None] * torch.randn(1, 3, 20, dtype=torch.float64)
    torch.testing.assert_close(geometry.explained_variance(x)[:, 0], torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("window", [4, 3, 11])
def test_window_out_of_range(window):
    with pytest.raises(ValueError, match=f"window={window}"):
        geometry.bend(torch.randn(9, 1, 3), window)
