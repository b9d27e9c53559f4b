"""Minibatch couplings against brute force, and in the flow loss."""

import itertools

import pytest
import torch

from samplers.path import Linear
from torch_utils.rng import TorchRNG
from training.couplings import COUPLINGS, independent, minibatch_ot
from training.losses.flow import flow_loss


@pytest.mark.parametrize("shape", [(5, 2, 1, 1), (6, 3)])
def test_optimal_among_all_permutations(shape):
    data, noise = torch.randn(shape), torch.randn(shape)
    paired = minibatch_ot(data, noise)

    def cost(z):
        return (data - z).square().sum()

    best = min(cost(noise[list(order)]) for order in itertools.permutations(range(shape[0])))
    torch.testing.assert_close(cost(paired), best)
    assert sorted(paired.flatten(1).tolist()) == sorted(noise.flatten(1).tolist())


def test_independent_is_as_drawn():
    data, noise = torch.randn(4, 2), torch.randn(4, 2)
    assert independent(data, noise) is noise
    assert list(COUPLINGS) == ["independent", "ot"]


def test_no_gradient_through_the_assignment():
    data, noise = torch.randn(4, 2, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    assert not minibatch_ot(data, noise).requires_grad


@pytest.mark.parametrize("coupling", COUPLINGS.values())
def test_flow_loss_uses_the_pairs(coupling):
    """A network that knows the target of its pairs has no loss."""
    data, seen = torch.randn(32, 2, 1, 1), {}

    class Knows(Linear):
        def mix(self, data, noise, t):
            seen["noise"] = noise
            return super().mix(data, noise, t)

    def net(x, t, labels):
        return seen["noise"] - data

    rng = [TorchRNG("cpu", torch.Generator().manual_seed(1)) for _ in range(2)]
    out = flow_loss(net, None, data, beta=0, rng=rng[0], path=Knows(), coupling=coupling)
    assert out.total.max() < 1e-10
    torch.testing.assert_close(seen["noise"], coupling(data, rng[1].randn_like(data)))


def test_pairs_cross_less_in_one_dimension():
    data, noise = torch.randn(64, 1), torch.randn(64, 1)
    order = data.flatten().argsort()
    z = minibatch_ot(data, noise).flatten()[order]
    assert (z.diff() >= 0).all(), "in one dimension the optimal pairing is the sorted one"
