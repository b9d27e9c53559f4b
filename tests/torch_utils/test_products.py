"""Matrix products by oneDNN: F.linear to rounding, with derivatives of any order, and when they are taken."""

import pytest
import torch
import torch.nn.functional as F

from torch_utils import products

ROWS, INPUTS, OUTPUTS = (3, 70), 384, 200


def operands(bias=True):
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(*ROWS, INPUTS, generator=g), torch.randn(OUTPUTS, INPUTS, generator=g)
    return [v.requires_grad_(True) for v in (x, weight, *([torch.randn(OUTPUTS, generator=g)] if bias else []))]


def near(result, expected, terms, size):
    """Sums of `terms` products of float32 that are at most `size` in all: half a unit of rounding a term."""
    assert ((result.double() - expected).abs() <= terms * 2**-24 * size).all()


@pytest.mark.parametrize("bias", [True, False])
def test_products_and_their_gradients(bias):
    given = operands(bias)
    exact = [v.detach().double().requires_grad_(True) for v in given]
    out, expected = products.linear(*given), F.linear(*exact)
    assert out.shape == (*ROWS, OUTPUTS)
    near(out, expected, INPUTS + 1, F.linear(*(v.abs() for v in exact)))
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    out.backward(grad)
    expected.backward(grad.double())
    rows = ROWS[0] * ROWS[1]
    x, weight, size = *(v.detach().abs() for v in exact[:2]), grad.double().abs()
    near(given[0].grad, exact[0].grad, OUTPUTS, size @ weight)
    near(given[1].grad, exact[1].grad, rows, size.flatten(0, 1).T @ x.flatten(0, 1))
    if bias:
        near(given[2].grad, exact[2].grad, rows, size.sum((0, 1)))


def test_second_derivatives():
    """Of the squared norm of the gradient, as penalties on gradients take them."""

    def penalty(x, weight, linear):
        (g,) = torch.autograd.grad(linear(x, weight).sin().sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), (x, weight))

    given = [v / 8 for v in operands(bias=False)]
    own, expected = penalty(*given, products.linear), penalty(*(v.double() for v in given), F.linear)
    for a, b in zip(own, expected, strict=True):
        # three products in a row of some hundred terms each, whose roundings add like a random walk
        assert (a - b).norm() <= 3 * INPUTS**0.5 * 2**-24 * b.norm() * 4


def test_what_is_taken():
    x, weight, _ = operands()
    assert products.pays(x, weight) == products._available()
    assert not products.pays(x[:, :2], weight), "few rows a sample"
    assert not products.pays(x.flatten(0, 1), weight), "one row a sample"
    assert not products.pays(x.double(), weight.double())
    assert not products.pays(x.bfloat16(), weight.bfloat16())
    assert not products.pays(x[:0], weight)
    assert not products.pays(x.to("meta"), weight.to("meta"))
    with torch.autocast("cpu"):
        assert not products.pays(x, weight)
    _, slope = torch.func.jvp(lambda v: products.linear(v, weight), (x,), (x,))
    torch.testing.assert_close(slope, F.linear(x, weight))


@pytest.mark.parametrize("one_by_one", [True, False])
def test_products_without_derivatives(one_by_one, monkeypatch):
    if one_by_one and not products._available():
        pytest.skip("this PyTorch has no such operator, or none for this processor")
    monkeypatch.setattr(products, "fast_in_batches", lambda: one_by_one)
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 50, 40, generator=g), torch.randn(3, 40, 70, generator=g)
    expected, size = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    near(products.matmul(a[0], b[0]), expected[0], 41, size[0])
    turned = b.mT.contiguous().mT
    for right in (b, turned):
        near(products.batched(a, right), expected, 41, size)
        total = torch.ones(3, 50, 70)
        products.add_batched(total, a.mT.contiguous().mT, right)
        near(total, expected + 1, 42, size + 1)


def test_a_sample_does_not_depend_on_its_batch():
    x, weight, bias = operands()
    for i in range(len(x)):
        assert products.pays(x[i : i + 1], weight) == products.pays(x, weight)
    whole = products.linear(x, weight, bias)
    parts = torch.cat([products.linear(x[i : i + 1], weight, bias) for i in range(len(x))])
    near(parts, whole.double(), INPUTS + 1, F.linear(x.abs(), weight.abs(), bias.abs()))
