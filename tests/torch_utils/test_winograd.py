"""Winograd's 3x3 convolution is PyTorch's: exactly on paper, to rounding in float32, with its gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from torch_utils import products, winograd

SIZES = [(1, 3, 5, 8, 8), (3, 16, 8, 16, 16), (2, 8, 8, 9, 14), (70, 4, 4, 8, 12)]


def test_matrices_filter_exactly():
    at, g, bt = winograd.matrices()
    rng = np.random.default_rng(0)
    data, weights = rng.standard_normal(6), rng.standard_normal(3)
    expected = [data[i : i + 3] @ weights for i in range(4)]
    np.testing.assert_allclose(at @ ((g @ weights) * (bt @ data)), expected, rtol=0, atol=1e-14)


def problem(n, channels, outputs, height, width):
    torch.manual_seed(0)
    x, weight = torch.randn(n, channels, height, width), torch.randn(outputs, channels, 3, 3) / (9 * channels) ** 0.5
    return [t.requires_grad_() for t in (x, weight, torch.randn(outputs))], torch.randn(n, outputs, height, width)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients(size, memory_format):
    inputs, seed = problem(*size)
    inputs = [t.detach().contiguous(memory_format=memory_format).requires_grad_() for t in inputs[:2]] + inputs[2:]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    own, expected = winograd.convolve(*inputs), F.conv2d(*exact, padding=1)
    assert own.is_contiguous(memory_format=torch.channels_last)
    gradients = torch.autograd.grad(own, inputs, seed)
    wanted = torch.autograd.grad(expected, exact, seed.double())
    for a, b in [(own, expected), *zip(gradients, wanted, strict=True)]:
        # about ten roundings of unit 6e-8, amplified by the transforms: 1e-6 of the norm is usual, 5e-6 a mistake
        assert (a.double() - b).norm() <= 5e-6 * b.norm()


def test_wide_layers_are_as_accurate_as_the_direct_convolution():
    (x, weight, bias), _ = problem(2, 256, 128, 16, 16)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    error = [
        (y.double() - exact).norm() for y in (winograd.convolve(x, weight, bias), F.conv2d(x, weight, bias, padding=1))
    ]
    assert error[0] <= 3 * error[1] + 1e-6 * exact.norm()


def test_without_bias_and_with_frozen_parts():
    (x, weight, _), seed = problem(2, 8, 8, 8, 8)
    out = winograd.convolve(x.detach(), weight)
    (gradient,) = torch.autograd.grad(out, weight, seed)
    (expected,) = torch.autograd.grad(F.conv2d(x, weight, padding=1), weight, seed)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_second_derivatives():
    (x, weight, bias), seed = problem(2, 4, 4, 8, 8)

    def second(convolve):
        (first,) = torch.autograd.grad((convolve().square() * seed).sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [x, weight, bias])

    own = second(lambda: winograd.convolve(x, weight, bias))
    for a, b in zip(own, second(lambda: F.conv2d(x, weight, bias, padding=1)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5 * b.abs().max().item())


def test_one_sample_is_the_same_in_any_batch():
    (x, weight, bias), _ = problem(40, 8, 8, 16, 16)
    assert winograd.pays(x, weight) == winograd.pays(x[:1], weight)
    whole = winograd.convolve(x, weight, bias)
    torch.testing.assert_close(whole[7:8], winograd.convolve(x[7:8], weight, bias), rtol=0, atol=1e-5)


def test_pays_only_where_it_is_the_same_convolution():
    wide, weight = torch.empty(1, 256, 32, 32), torch.empty(256, 256, 3, 3)
    pays = torch.backends.cpu.get_cpu_capability() == "AVX2" or products.fast_in_batches()
    assert winograd.pays(wide, weight) == pays
    assert not winograd.pays(wide[..., :8], weight)
    assert not winograd.pays(wide.double(), weight.double())
    assert not winograd.pays(wide.bfloat16(), weight.bfloat16())
    assert not winograd.pays(wide.to("meta"), weight.to("meta"))
    assert not winograd.pays(wide, torch.empty(256, 256, 1, 1))
    assert not winograd.pays(wide[:, :32], torch.empty(256, 32, 3, 3))
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd.pays(wide, weight)
