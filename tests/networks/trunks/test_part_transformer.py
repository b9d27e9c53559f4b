"""The set transformer: parts have no order, times may differ between them, and the published size is built."""

import math

import pytest
import torch

import networks
from networks.models.interpolant import part_config
from networks.trunks.part_transformer import PartTimeEmbedder, PartTransformer
from torch_utils.parts import PartLayout

GROUPS = (1, 6, 4)
V = sum(GROUPS)


def unit(groups):
    size = sum(groups)
    return PartLayout(groups, (0.5,) + (0.0,) * (size - 1), (0.5,) + (1.0,) * (size - 1))


@pytest.fixture(scope="module")
def trunk():
    torch.manual_seed(0)
    net = PartTransformer(5, GROUPS, label_dim=3, width=32, depth=2, num_heads=2).double().eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return net


def test_parts_in_another_order_are_the_same(trunk):
    x, order = torch.randn(3, 5, V, dtype=torch.float64), torch.randperm(5)
    t, labels = torch.rand(3, 5, V, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    permuted = trunk(x[:, order], t[:, order], labels)
    torch.testing.assert_close(permuted, trunk(x, t, labels)[:, order], rtol=0, atol=1e-12)
    assert not torch.allclose(permuted, trunk(x[:, order], t, labels), atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1), (3, 5, 1), (3, 1, V), (1, 5, V)])
def test_times_that_are_shared_equal_times_of_every_number(trunk, shape):
    x, t = torch.randn(3, 5, V, dtype=torch.float64), torch.rand(shape, dtype=torch.float64)
    torch.testing.assert_close(trunk(x, t), trunk(x, t.expand(3, 5, V).contiguous()), rtol=0, atol=1e-12)


def test_rows_of_one_time_may_be_told(trunk):
    x, t = torch.randn(4, 5, V, dtype=torch.float64), torch.rand(4, 5, V, dtype=torch.float64)
    t[2:] = t[2:, :1]
    torch.testing.assert_close(trunk(x, t, synchronous=2), trunk(x, t), rtol=0, atol=1e-12)


def test_each_number_has_its_time(trunk):
    x, t = torch.randn(1, 5, V, dtype=torch.float64), torch.full((1, 5, V), 0.5, dtype=torch.float64)
    base = trunk(x, t)
    for part, number in ((0, 0), (2, 3), (4, 10)):
        other = t.clone()
        other[0, part, number] = 0.6
        assert not torch.allclose(trunk(x, other), base, atol=1e-6)


def test_one_time_a_sample():
    net = PartTransformer(5, GROUPS, element_times=False, width=16, depth=1, num_heads=1)
    assert not isinstance(net.t_embedder, PartTimeEmbedder)
    assert net(torch.randn(2, 5, V), torch.rand(2, 1, 1)).shape == (2, 5, V)


def test_the_published_size():
    """12 blocks of width 384, 6 heads, 256 parts of 519 numbers: the count of parameters, and one training step."""
    groups, d, size = (1, 6, 512), 384, 519
    net = networks.build(**part_config("Set-S", 256, unit(groups), 2, label_dropout=0.1))
    inputs, times = size * d + 3 * d, (256 * 4 + 4) + (4 * 4 + 4) + 4 * size * d + 3 * d
    block = (4 * d * d + 4 * d) + (8 * d * d + 5 * d) + (6 * d * d + 6 * d)
    final = d * size + size + 2 * d * d + 2 * d
    expected = inputs + times + 12 * block + final + (2 + 1) * d
    assert sum(p.numel() for p in net.parameters()) == expected == 33_416_095
    assert math.isclose(expected, 33.4e6, rel_tol=1e-3)
    x = torch.randn(1, 256, size)
    loss = (net(x, torch.rand(1, 256, size), torch.eye(2)[:1]) - x).square().mean()
    loss.backward()
    assert loss.isfinite()
    assert net.model.final_layer.linear.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"path": "bridge"}, "lives on the path"), ({"predicts": "image"}, "predicts velocity"),
        ({"num_heads": 5}, "cannot be split"), ({"groups": [6, 1]}, "are no parts"),
        ({"std": [0.0] * V}, "deviations above 0"), ({"model_type": "Transformer"}, "model_type"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit(change, words):
    config = part_config("Set-S", 5, unit(GROUPS), 0, width=32, depth=1, num_heads=2) | change
    with pytest.raises(ValueError, match=words):
        networks.build(**config)


def test_names_of_sizes():
    with pytest.raises(ValueError, match="is no transformer of parts"):
        part_config("SiT-S/2", 5, unit(GROUPS), 0)
