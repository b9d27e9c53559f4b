"""Minibatch couplings against brute force, and in the flow loss."""

import itertools
import math

import numpy as np
import pytest
import torch
from golden_cases import cases
from scipy.optimize import linear_sum_assignment

from samplers.path import Linear
from torch_utils.rng import BatchRNG, TorchRNG
from torch_utils.wasserstein import wasserstein
from training.couplings import (
    COUPLINGS,
    Coupling,
    draw_pairs,
    independent,
    minibatch_ot,
    same_label_ot,
    squared_distances,
    transport_plan,
)
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


@pytest.mark.parametrize("spread", [0.0, 1.0, 1e4])
def test_a_shorter_search_finds_the_same(spread):
    """Potentials taken off first leave the best assignment as it is, also of clusters far apart, or in one point."""
    g = torch.Generator().manual_seed(0)
    data, noise = spread * torch.randn(64, 2, generator=g) ** 3, torch.randn(64, 2, generator=g)
    cost = squared_distances(data, noise)
    best = cost[linear_sum_assignment(cost.numpy())].sum()
    torch.testing.assert_close((data.double() - minibatch_ot(data, noise)).square().sum(), best)


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


# --- golden: plans and draws from them --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases("idff", "ot_cost"))
def test_cost(case):
    case.check("cost", squared_distances(case.input("x0"), case.input("x1")))


def golden_cost(case):
    """In float64: the original's float32 costs agree with it to far less than what the plans' tolerances allow."""
    return squared_distances(case.input("x0"), case.input("x1")).numpy()


@pytest.mark.parametrize("case", cases("idff", "ot_plan"))
def test_plan(case):
    params = case.spec["params"]
    assert params["marginals"] == "uniform"
    given = {k: params[k] for k in ("reg", "reg_m") if params[k] is not None}
    case.check("plan", transport_plan(golden_cost(case), params["method"], normalize=params["normalize_cost"], **given))


@pytest.mark.parametrize("case", cases("idff", "ot_assignment"))
def test_assignment(case):
    x0, x1 = case.input("x0"), case.input("x1")
    column = np.arange(len(x1))[case.reference("column_of_row")]
    assert torch.equal(minibatch_ot(x0, x1), x1[torch.from_numpy(column)])


@pytest.mark.parametrize("case", cases("idff", "ot_sample"))
def test_draws_from_a_plan(case):
    params = case.spec["params"]
    rng = np.random.RandomState(params["numpy_seed"])
    rows, columns = draw_pairs(case.input("plan").numpy(), params["size"], rng, params["replace"])
    case.check("i", rows)
    case.check("j", columns)


@pytest.mark.parametrize("case", cases("idff", "wasserstein"))
def test_wasserstein(case):
    case.check("distance", wasserstein(case.input("x0"), case.input("x1"), case.spec["params"]["power"]))


class _Told:
    """Uniform numbers that are known."""

    def __init__(self, u):
        self.u = u

    def rand(self, shape):
        return torch.from_numpy(self.u)


def test_pairs_in_training_are_drawn_alike():
    """The same uniform numbers give the pairs of the published draws."""
    random = np.random.RandomState(0)
    data, noise = (torch.from_numpy(random.standard_normal((7, 2))) for _ in range(2))
    plan = transport_plan(squared_distances(data, noise).numpy(), "sinkhorn", reg=1.0)
    rows, columns = draw_pairs(plan, 7, np.random.RandomState(3))
    told = _Told(np.random.RandomState(3).random_sample(7))
    x, z, _ = Coupling("ot", "sinkhorn", 1.0, replacement=True)(data, noise, None, told)
    assert torch.equal(x, data[rows])
    assert torch.equal(z, noise[columns])


def test_noise_is_drawn_by_the_row_of_the_plan():
    random = np.random.RandomState(0)
    data, noise = (torch.from_numpy(random.standard_normal((3, 2))) for _ in range(2))
    plan = transport_plan(squared_distances(data, noise).numpy(), "sinkhorn", reg=2.0)
    rng, count, n = TorchRNG(generator=torch.Generator().manual_seed(0)), np.zeros((3, 3)), 2000
    for _ in range(n):
        _, z, _ = Coupling("ot", "sinkhorn", 2.0)(data, noise, None, rng)
        count[np.arange(3), (z[:, None] == noise).all(2).int().argmax(1).numpy()] += 1
    np.testing.assert_allclose(count / n, 3 * plan, atol=4 * 0.5 / math.sqrt(n))


# --- labels, bad input ------------------------------------------------------------------------------------------------


def test_pairs_among_equal_labels():
    g = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    noise, data = torch.randn(6, 2, generator=g), torch.randn(6, 2, generator=g)
    paired = same_label_ot(data, noise, labels, labels)
    assert torch.equal(paired[:3], minibatch_ot(data[:3], noise[:3]))
    assert torch.equal(paired[3:], minibatch_ot(data[3:], noise[3:]))
    one_hot = torch.nn.functional.one_hot(labels, 2)
    assert torch.equal(same_label_ot(data, noise, one_hot, one_hot), paired)
    with pytest.raises(ValueError, match="do not match up"):
        same_label_ot(data, noise, labels, 1 - labels.clamp(max=0))


def test_batches_of_one_are_refused():
    with pytest.raises(ValueError, match="this batch has one"):
        minibatch_ot(torch.zeros(1, 2), torch.zeros(1, 2))


@pytest.mark.filterwarnings("ignore")  # POT's own words on what is an error here
def test_plans_that_are_no_plan():
    cost = np.ones((3, 3))
    with pytest.raises(ValueError, match="no transport plan 'best'"):
        transport_plan(cost, "best")
    with pytest.raises(ValueError, match="empty or not finite"):
        transport_plan(1e6 * cost, "unbalanced", reg=1e-3)


def test_entropic_plans_have_the_weights_they_should():
    g = np.random.RandomState(0)
    cost = g.random_sample((5, 7))
    plan = transport_plan(cost, "sinkhorn", reg=0.1)
    np.testing.assert_allclose(plan.sum(1), 1 / 5, atol=1e-8)
    np.testing.assert_allclose(plan.sum(0), 1 / 7, atol=1e-6)  # POT stops at 1e-9 of the other margin
    assert transport_plan(cost, "partial", reg=0.1).sum() <= 1 + 1e-6


def test_labels_go_with_their_data():
    """Pairs drawn with replacement keep label and data together."""
    labels = torch.eye(6)
    data = torch.arange(6.0).reshape(6, 1) * torch.ones(6, 2)
    noise = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    for kind, method in (("ot", "exact"), ("ot", "sinkhorn")):
        for replacement in (False, True):
            coupling = Coupling(kind, method, 5.0, replacement=replacement)
            x, z, y = coupling(data, noise, labels, BatchRNG(0, 0, 0, 6))
            assert torch.equal(x[:, 0], y.argmax(1).float())
            assert set(map(tuple, z.tolist())) <= set(map(tuple, noise.tolist()))
            assert np.array_equal(np.sort(x[:, 0]), np.arange(6)) or replacement
