"""Convolutions take the fastest way and stay the same convolution."""

import pytest
import torch
import torch.nn.functional as F

from networks.trunks.convolution import convolve
from torch_utils import winograd


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("n", "size", "kernel"), [(4, 8, 1), (1, 4, 1), (20, 4, 1), (2, 16, 3), (2, 16, 5)])
def test_same_as_pytorch(n, size, kernel, memory_format):
    torch.manual_seed(0)
    x = torch.randn(n, 8, size, size).contiguous(memory_format=memory_format).requires_grad_()
    weight = torch.randn(6, 8, kernel, kernel, requires_grad=True)
    bias = torch.randn(6, requires_grad=True)
    seed = torch.randn(n, 6, size, size)
    own, expected = convolve(x, weight, bias, kernel // 2), F.conv2d(x, weight, bias, padding=kernel // 2)
    pairs = [(own, expected)]
    pairs += zip(*(torch.autograd.grad(y, [x, weight, bias], seed) for y in (own, expected)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * b.abs().max().item())


def test_winograd_where_it_pays(monkeypatch):
    calls = []
    monkeypatch.setattr(winograd, "pays", lambda x, weight: True)
    monkeypatch.setattr(winograd, "convolve", lambda *args: calls.append(args))
    convolve(torch.zeros(1, 4, 8, 8), torch.zeros(4, 4, 3, 3), None, 1)
    assert len(calls) == 1
    convolve(torch.zeros(1, 4, 8, 8), torch.zeros(4, 4, 3, 3), None, 2)  # another padding
    assert len(calls) == 1
