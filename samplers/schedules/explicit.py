"""What a list of noise levels must be, wherever it comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def validate_t_steps(t_steps: Tensor | Sequence[float], zero_end: bool = False) -> Tensor:
    """Explicit noise levels as `[N+1]` float64 on the CPU.

    Args:
        t_steps: from noisy to clean.
        zero_end: allow the last level to be 0.

    Raises:
        ValueError: fewer than two levels, a level that is not positive and finite, levels that do not fall strictly.
    """
    levels = torch.as_tensor(t_steps, dtype=torch.float64).detach().cpu()
    if levels.ndim != 1 or len(levels) < 2:
        raise ValueError(
            f"a schedule is a list of two or more noise levels from noisy to clean, "
            f"got {f'{len(levels)} of them' if levels.ndim == 1 else f'shape {list(levels.shape)}'}"
        )
    values = levels.tolist()
    for v in values[:-1] if zero_end and values[-1] == 0 else values:
        if not 0 < v < math.inf:
            raise ValueError(
                f"noise level {v:g} is not possible: every level of a schedule must be positive and finite"
            )
    for a, b in pairwise(values):
        if a <= b:
            raise ValueError(f"noise level {a:g} is followed by {b:g}: list the levels in strictly falling order")
    return levels
