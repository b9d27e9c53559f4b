"""Masks are functions of (seed, counter, position), fair, independent, and the same in any layout or compiled."""

import ast
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from torch_utils.dropout import PLACES, Dropout, dropout, keyed, rand_rows, reordered
from torch_utils.rng import BatchRNG, TorchRNG

ROOT = Path(__file__).parents[2]


def draw(function, start, stop, seed=0, counter=0):
    with keyed(BatchRNG(seed, counter, start, stop, stream=9), stop - start):
        return function(stop - start)


def masks(n, p=0.3, shape=(3, 4, 5), places=3):
    return torch.stack([dropout(torch.ones(n, *shape), p, True) for _ in range(places)], dim=1)


@pytest.mark.parametrize("function", [masks, lambda n: rand_rows(torch.ones(n, 2))], ids=["masks", "rows"])
def test_any_cut_of_the_batch_draws_the_same(function):
    whole = draw(function, 0, 150)
    for cut in ([0, 150], [0, 1, 2, 63, 64, 65, 150], range(0, 151, 10)):
        parts = [draw(function, a, b) for a, b in zip(cut, list(cut)[1:], strict=False)]
        assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(draw(function, 0, 150, seed=1), whole)
    assert not torch.equal(draw(function, 0, 150, counter=64), whole)


@pytest.mark.parametrize("p", [0.05, 0.13, 0.5, 0.9])
def test_fair_and_scaled(p):
    kept = draw(lambda n: masks(n, p, (16, 8, 8), 4), 0, 64)
    assert kept.unique().tolist() == pytest.approx([0, 1 / (1 - p)])
    share = (kept > 0).double()
    assert share.mean().item() == pytest.approx(1 - p, abs=5 * math.sqrt(p * (1 - p) / kept.numel()))
    for dims in ((0, 1), (2, 3, 4)):  # of an element over samples and places, of a sample and place over elements
        means = share.mean(dims)
        count = kept.numel() / means.numel()
        assert means.std().item() == pytest.approx(math.sqrt(p * (1 - p) / count), rel=0.2)


def test_samples_places_and_elements_are_uncorrelated():
    kept = (draw(lambda n: masks(n, 0.3, (64, 8, 8), 6), 0, 40) > 0).double() - 0.7
    rows = kept.flatten(2).flatten(0, 1)  # [samples * places, elements]
    for vectors in (rows, rows.T[::17]):
        correlation = torch.corrcoef(vectors)
        correlation.fill_diagonal_(0)
        bound = 6 / math.sqrt(vectors.shape[1])
        assert correlation.abs().max().item() < bound
    assert correlation.square().mean().item() == pytest.approx(1 / vectors.shape[1], rel=0.1)


def test_layout_and_type_do_not_change_a_mask():
    x = torch.randn(6, 8, 4, 4)
    expected = draw(lambda n: dropout(x, 0.3, True), 0, 6)
    last = draw(lambda n: dropout(x.contiguous(memory_format=torch.channels_last), 0.3, True), 0, 6)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, expected)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        got = draw(lambda n, dtype=dtype: dropout(x.to(dtype), 0.3, True), 0, 6)
        assert got.dtype == dtype
        assert torch.equal(got == 0, expected == 0)


def test_gradient_is_the_mask():
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    y = draw(lambda n: dropout(x, 0.5, True), 0, 4)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(y, x * grad)
    assert set(grad.unique().tolist()) == {0.0, 2.0}


def test_more_places_than_are_drawn_at_once():
    kept = draw(lambda n: masks(n, places=2 * PLACES + 3), 5, 9)
    assert torch.equal(kept, draw(lambda n: masks(n, places=2 * PLACES + 3), 0, 64)[5:9])
    assert len({tuple(row.tolist()) for row in kept[0].flatten(1)}) == 2 * PLACES + 3


def test_torchs_own_draws_elsewhere():
    x = torch.randn(3, 7)
    torch.manual_seed(1)
    own = [dropout(x, 0.4, True), rand_rows(x), Dropout(0.4)(x)]
    torch.manual_seed(1)
    for drawn in own:
        assert torch.equal(drawn, torch.rand(3, 1) if drawn.shape[1] == 1 else F.dropout(x, 0.4))
    assert dropout(x, 0.4, False) is x
    with keyed(BatchRNG(0, 0, 0, 3), 3):
        assert not dropout(x, 1.0, True).any()
        with pytest.raises(ValueError, match="3 samples"):
            dropout(torch.randn(6, 7), 0.4, True)


@pytest.mark.slow
def test_compiled_masks_are_the_same():
    class Net(torch.nn.Module):
        def forward(self, x):
            for _ in range(3):
                x = dropout(x, 0.3, self.training) + 1
            return x * (rand_rows(x) < 0.5)[:, :, None, None]

    net = Net()
    x = torch.randn(4, 8, 4, 4)
    compiled = torch.compile(net)
    for counter in range(3):
        one, other = (draw(lambda n, f=f: f(x), 0, 4, counter=counter) for f in (net, compiled))
        torch.testing.assert_close(other, one, rtol=1e-6, atol=0)


def test_networks_draw_nowhere_else():
    """A draw in a forward pass that is not keyed would make results depend on --batch-gpu."""
    unkeyed = {"dropout", "Dropout", "dropout2d", "Dropout2d", "rand", "rand_like", "randn_like", "bernoulli"}
    initial = ROOT / "networks" / "trunks" / "layers.py"  # draws weights
    for path in {*(ROOT / "networks").rglob("*.py"), *(ROOT / "training" / "losses").rglob("*.py")} - {initial}:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name != "__init__":
                for call in ast.walk(node):
                    if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                        owner = getattr(call.func.value, "id", "")
                        assert not (owner in ("F", "nn", "torch") and call.func.attr in unkeyed), (path, call.lineno)


def test_masks_stay_with_their_samples():
    """In another order, samples have the masks and rows that they have in their own."""
    x, order = torch.ones(6, 50), torch.tensor([3, 0, 5, 1, 2, 4])
    found = []
    for how in (torch.arange(6), order):
        with keyed(TorchRNG(generator=torch.Generator().manual_seed(0)), 6), reordered(how):
            found.append((dropout(x, 0.5, True), rand_rows(x)))
    for own, other in zip(*found, strict=True):
        assert torch.equal(own[order], other)
        assert not torch.equal(own, other)
    with reordered(order):  # outside of a keyed pass nothing is ordered
        assert rand_rows(x).shape == (6, 1)
