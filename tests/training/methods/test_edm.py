"""Options of `train.py edm` that a run cannot show by its numbers alone."""

import pytest
import torch

from bench.presets import SyntheticDataset
from training.loop.ema import halflife_beta
from training.methods.edm import EDMOptions, build


@pytest.mark.parametrize(
    ("more", "ramp"),
    [
        ({}, 0.05),
        ({"transfer": "net.pkl"}, None),
        ({"transfer": "net.pkl", "ema_rampup": 0.05}, 0.05),
        ({"ema_rampup": 0.2}, 0.2),
        ({"ema_rampup": 0}, None),
    ],
)
def test_ema_rampup_is_heard_beside_transfer(more, ramp):
    options = EDMOptions(outdir="runs", data="digits.zip", cbase=8, cres=(1,), num_blocks=1, augment=0, **more)
    average = build(options, SyntheticDataset(8, 1, 0), torch.device("cpu")).averages["ema"]
    assert average.beta(20_000, 100) == halflife_beta(20_000, 100, 500_000, ramp)
