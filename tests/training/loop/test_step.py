"""The pieces of an optimiser step that are not the optimiser; golden learning rates and factors of averages."""

import pytest
import torch
from golden_cases import cases
from torch import nn

from training.loop import step
from training.loop.ema import halflife_beta
from training.loop.step import lr_rampup, nonfinite_count, sanitize_gradients, set_lr

BAD = [float("nan"), float("inf"), float("-inf"), 3e7, -2.5, 0.0]
GOOD = [0.0, 1e5, -1e5, 3e7, -2.5, 0.0]


def parameters(*gradients):
    result = []
    for gradient in gradients:
        p = nn.Parameter(torch.zeros_like(gradient) if gradient is not None else torch.zeros(2))
        p.grad = gradient
        result.append(p)
    return result


@pytest.mark.parametrize("chunk", [1, 7, 1 << 25])
def test_sanitize_gradients(monkeypatch, chunk):
    monkeypatch.setattr(step, "_CHUNK", chunk)
    strided = torch.tensor(BAD).reshape(2, 3).t()
    params = parameters(
        torch.tensor(BAD), None, strided, torch.tensor(BAD, dtype=torch.float64), torch.zeros(0), torch.ones(4)
    )
    held = [p.grad for p in params]
    sanitize_gradients(params)
    assert all(p.grad is g for p, g in zip(params, held, strict=True))  # in place: fused optimisers and DDP hold them
    assert params[0].grad.tolist() == GOOD
    assert params[1].grad is None
    assert torch.equal(params[2].grad, torch.tensor(GOOD).reshape(2, 3).t())
    assert torch.equal(params[3].grad, torch.tensor(GOOD, dtype=torch.float64))
    assert torch.equal(params[5].grad, torch.ones(4))
    sanitize_gradients([])


def test_nonfinite_count():
    params = parameters(torch.tensor(BAD), None, torch.ones(3), torch.tensor([1e38, 1e38]), torch.zeros(0))
    assert nonfinite_count(params).item() == 1
    params[2].grad[1] = float("-inf")
    assert nonfinite_count(params).item() == 2
    sanitize_gradients(params)
    assert nonfinite_count(params).item() == 0
    assert nonfinite_count([]).item() == 0


def test_set_lr():
    a, b = parameters(torch.ones(2), torch.ones(3))
    held = torch.tensor(0.5)
    optimizer = torch.optim.Adam([{"params": [a]}, {"params": [b], "lr": held}], lr=0.1)
    set_lr(optimizer, 0.25)
    assert [float(g["lr"]) for g in optimizer.param_groups] == [0.25, 0.25]
    assert optimizer.param_groups[1]["lr"] is held


@pytest.mark.parametrize("case", cases("edm", "lr_ema_schedule"))
def test_golden_schedules(case):
    spec = case.spec
    rampup, halflife = spec["lr_rampup_kimg"] * 1000, spec["ema_halflife_kimg"] * 1000
    nimg = case["nimg"].tolist()
    case.expect("lr", [lr_rampup(n, spec["base_lr"], rampup) for n in nimg])
    case.expect("ema_beta", [halflife_beta(n, spec["batch_size"], halflife, spec["ema_rampup_ratio"]) for n in nimg])


def test_ramp_ends():
    assert lr_rampup(0, 2.0, 100) == 0
    assert lr_rampup(50, 2.0, 100) == 1
    assert lr_rampup(1000, 2.0, 100) == 2
    assert lr_rampup(0, 2.0, 0) == 0  # without a ramp only the very first step stands still
    assert lr_rampup(1, 2.0, 0) == 2
