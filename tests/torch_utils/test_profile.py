"""Counted costs against hand counts."""

import torch
from torch import nn

from torch_utils.profile import forward_cost, peak_flops, time_it


def test_flops_and_activations_of_a_linear_stack():
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    cost = forward_cost(net, lambda twin: twin(torch.zeros(2, 8, device="meta")), batch=2)
    assert cost.flops == 2 * (8 * 16 + 16 * 4)
    # kept for backward: the input (8 floats) and the ReLU's output (16), per sample
    assert cost.activation_bytes == 4 * (8 + 16)
    assert next(net.parameters()).device.type == "cpu"


def test_unknown_device_has_no_peak():
    assert peak_flops(torch.device("cpu"), torch.float32) is None


def test_time_it_excludes_warmup():
    calls = []
    seconds = time_it(lambda: calls.append(0), torch.device("cpu"), repeats=3, warmup=2)
    assert len(seconds) == 3
    assert len(calls) == 5
