"""Learning rate and averaging factor against golden numbers, and the ends of the ramp."""

import pytest
from golden_cases import cases

from training.loop.ema import halflife_beta
from training.loop.step import lr_rampup


@pytest.mark.parametrize("case", cases("edm", "lr_ema_schedule"))
def test_golden(case):
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


def test_halflife():
    share = 1.0
    for step in range(10):
        share *= halflife_beta(step * 8, 8, 80)
    assert share == pytest.approx(0.5)
    assert halflife_beta(0, 8, 80, 0.05) == 0  # a young average is the network
    assert halflife_beta(10**6, 8, 80, 0.05) == halflife_beta(0, 8, 80)
