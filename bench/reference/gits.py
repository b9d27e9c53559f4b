"""The cost matrix of GITS pair by pair (Chen et al., ICML 2024, arXiv 2405.11326, section 4): one jump at a time."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cost_matrix"]


def _deviation(points: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Distance of each point from the chord start -> end, per sample: `[P, B, D], [B, D], [B, D] -> [P, B]`."""
    chord = end - start
    unit = chord / torch.linalg.vector_norm(chord, dim=1, keepdim=True)
    to_end = end - points
    along = (to_end * unit).sum(dim=2, keepdim=True)
    return torch.linalg.vector_norm(to_end - along * unit, dim=2)


def cost_matrix(trajectory: Tensor, directions: Tensor, levels: Tensor, metric: str) -> Tensor:
    """`trajectory [T, B, ...]`, `directions [T-1, B, ...]`, `levels [T]` -> `[T, T]`, zero for j <= i."""
    x, e = trajectory.flatten(2), directions.flatten(2)
    T = len(levels)
    cost = torch.zeros(T, T)
    for i in range(T - 1):
        for j in range(i + 1, T):
            jump = x[i] + (levels[j] - levels[i]) * e[i]
            if metric == "dev":
                both = _deviation(torch.stack([jump, x[j]]), x[0], x[-1]).mean(dim=1)
                cost[i, j] = both[0] - (both[1] if j < T - 1 else 0)
            else:
                order = {"l1": 1, "l2": 2}[metric]
                cost[i, j] = torch.linalg.vector_norm(jump - x[j], ord=order, dim=1).mean()
    return cost
