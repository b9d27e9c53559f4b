"""Features of point clouds: of no order, random ones fixed, and weights of a file."""

import pytest
import torch

from networks.features.pointnet import PointNet, load_point_features
from torch_utils.checkpoint import save_safetensors


def test_random_features_are_fixed_and_know_no_order():
    net, points = load_point_features("random"), torch.randn(2, 30, 3)
    assert torch.equal(net(points), load_point_features("random")(points))
    torch.testing.assert_close(net(points[:, torch.randperm(30)]), net(points))
    assert net(points).shape == (2, 256)


def test_weights_of_a_file(tmp_path):
    path = str(tmp_path / "net.safetensors")
    own = PointNet((4, 5))
    save_safetensors(path, {}, own.state_dict())
    points = torch.randn(2, 6, 3)
    assert torch.equal(load_point_features(path)(points), own(points))
    for wrong in ({"other": torch.zeros(2)}, {"layers.0.weight": torch.zeros(4, 2), "layers.0.bias": torch.zeros(4)}):
        save_safetensors(path, {}, wrong)
        with pytest.raises(ValueError, match="is no feature network of points"):
            load_point_features(path)
