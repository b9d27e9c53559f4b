"""The cost matrix of the schedule search: 64 samples of 3x32x32, a teacher of 61 levels."""

from __future__ import annotations

from functools import partial

import torch

from bench.reference import gits as reference
from bench.rows.row import Row, Work
from samplers import get_schedule
from samplers.gits.costs import cost_matrix

__all__ = ["ROWS"]

SHAPE = (3, 32, 32)
SAMPLES, LEVELS = 64, 61


def _prepare(metric: str) -> Work:
    """Trajectories of a Gaussian with components of different width: they bend as those of images do."""
    torch.manual_seed(0)
    levels = get_schedule(LEVELS)
    width = torch.logspace(-2, 0.5, SHAPE[0] * SHAPE[1] * SHAPE[2], dtype=torch.float64).reshape(SHAPE)
    scale = (width**2 + levels.reshape(-1, 1, 1, 1) ** 2).sqrt()  # [T, ...]
    noise = torch.randn(SAMPLES, *SHAPE, dtype=torch.float64)
    states = (scale[:, None] * noise).float()  # [T, B, ...]
    drifts = (levels[:-1].reshape(-1, 1, 1, 1, 1) / scale[:-1, None] * noise).float()
    single = levels.float()
    return Work(
        lambda: reference.cost_matrix(states, drifts, single, metric),
        lambda: cost_matrix(states, drifts, levels, metric).float(),
    )


GOALS = {"dev": 40, "l2": 5, "l1": 3}

ROWS = [Row(f"GITS cost matrix, {m}", partial(_prepare, m), goal, agree=1e-4, repeats=3) for m, goal in GOALS.items()]
