"""Pictures of flows of points: what is drawn is what training and sampling do."""

import numpy as np
import pytest
import torch
from PIL import Image

import networks
from samplers.path import VP
from training.pictures.plane import LINES, draw_planes, look


def flow(**options):
    torch.manual_seed(0)
    net = networks.build("VelocityNetwork", img_resolution=1, img_channels=2, model_type="MLP", hidden=8, **options)
    return net.eval().requires_grad_(False)


def points(num, seed):
    return torch.randn(num, 2, 1, 1, generator=torch.Generator().manual_seed(seed))


def seen(net, num=200):
    data, noise = points(num, 1), points(num, 2)
    return look("a row", net, (data, 3 * noise), data, points(num, 3), 5), data.flatten(1), 3 * noise.flatten(1)


def test_lines_join_pairs_and_trajectories_end_at_samples():
    plane, data, noise = seen(flow(prior_std=[2.0, 1.0]))
    assert plane.lines.shape[1:] == (LINES, 2)
    assert plane.states.shape == (6, LINES, 2)
    for x, z, middle in zip(plane.lines[0], plane.lines[-1], plane.lines[len(plane.lines) // 2], strict=True):
        row = int(np.abs(data.numpy() - x).sum(1).argmin())
        np.testing.assert_allclose(x, data[row], atol=1e-6)
        np.testing.assert_allclose(z, noise[row], atol=1e-6)
        np.testing.assert_allclose(middle, (x + z) / 2, atol=1e-6)
    start = points(200, 3).flatten(1)[:LINES] * torch.tensor([2.0, 1.0])
    np.testing.assert_allclose(plane.states[0], start, atol=1e-6)
    np.testing.assert_array_equal(plane.states[-1], plane.samples[:LINES])


def test_lines_follow_the_path():
    plane, *_ = seen(flow(path="vp"))
    half = torch.tensor(0.5, dtype=torch.float64)
    want = float(VP().alpha(half)) * plane.lines[0] + float(VP().sigma(half)) * plane.lines[-1]
    np.testing.assert_allclose(plane.lines[len(plane.lines) // 2], want, atol=0.02)  # its ends are at t = 0 and 1


def test_a_row_of_panels_each(tmp_path):
    plane, *_ = seen(flow())
    sizes = []
    for rows in (1, 2):
        draw_planes([plane] * rows, tmp_path / "rows.png")
        with Image.open(tmp_path / "rows.png") as picture:
            sizes.append(picture.size)
    assert sizes[0][0] == sizes[1][0]
    assert sizes[1][1] > 1.7 * sizes[0][1]


def test_points_that_are_not_finite(tmp_path):
    net = flow()
    net.model.fc3.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        draw_planes([seen(net)[0]], tmp_path / "rows.png")
