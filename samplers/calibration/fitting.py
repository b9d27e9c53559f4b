"""Fit the coefficients of the calibrated solver to a schedule, in closed form, one step after the other.

The student runs on warm-up noise; at step n its coefficients solve a k x k least-squares problem,

    min_c  E |x_n + h_n sum_k c_k d_{n-k} - x*_{n+1}|^2 + ridge * sum_k E|h_n d_{n-k}|^2 (c_k - c_AB,k)^2

with x* the teacher's state at the next level and c_AB the Adams-Bashforth weights of equal steps; it then steps with
them and goes on. So each step mends what the steps before it left (the fit is on-policy), at the cost of one sampling
of the warm-up noise and without a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from samplers.calibration.student import StudentState, advance, gram, look
from samplers.solvers.weights import EQUAL_STEPS
from samplers.start import Chunk
from torch_utils import distributed as dist

__all__ = ["RIDGE", "Fit", "fit_coefficients"]

RIDGE = 1e-5  # relative to the Gram diagonal; 1e-6 to 1e-4 fit equally well, 1e-3 up to 8 % worse


class Fit(NamedTuple):
    """Coefficients per step, and the root-mean-square distance to the teacher after each step on the warm-up noise."""

    coefficients: list[list[float]]
    errors: list[float]


@torch.no_grad()
def fit_coefficients(
    chunks: Sequence[Chunk],
    teacher: Sequence[Tensor],
    sigmas: Sequence[float] | Tensor,
    *,
    max_order: int = 4,
    ridge: float = RIDGE,
    afs: bool = False,
) -> Fit:
    """Fit the coefficients of a schedule, one step after the other.

    Memory: the state and `max_order` drifts of every warm-up sample of this process. The sums over samples are float64
    and added up over processes.

    Args:
        chunks: this process's warm-up samples.
        teacher: per chunk the teacher's states `[N+1, b, ...]` at `sigmas`; the student starts at the first.
        sigmas: N+1 levels, falling and positive.
        max_order: the most drifts per step, 1 to 4; step n has min(n + 1, max_order).
        ridge: pull towards the weights of equal steps, relative to the Gram diagonal.
        afs: the student takes the analytical first step.

    Raises:
        ValueError: an order out of range or a negative ridge.
    """
    if not 1 <= max_order <= len(EQUAL_STEPS):
        raise ValueError(f"max_order={max_order} is not possible: give 1 to {len(EQUAL_STEPS)}")
    if ridge < 0:
        raise ValueError(f"ridge={ridge:g} must not be negative")
    levels = [float(s) for s in sigmas]
    states = [StudentState(path[0], ()) for path in teacher]
    device = chunks[0].noise.device if chunks else torch.device("cpu")
    rows, errors = [], []
    for n, (s, after) in enumerate(pairwise(levels)):
        h, order = after - s, min(n + 1, max_order)
        sums = torch.zeros(order + 1, order + 1, dtype=torch.float64, device=device)
        count = torch.zeros((), dtype=torch.float64, device=device)
        states = [look(c, state, s, max_order, afs and n == 0) for c, state in zip(chunks, states, strict=True)]
        for state, path in zip(states, teacher, strict=True):
            # Drifts and the wanted direction side by side: one product gives matrix, right side and the rest.
            wanted = (path[n + 1] - state.x) / h
            sums += gram(torch.stack([d.flatten() for d in (*state.history, wanted)]))
            count += wanted.numel()
        sums = dist.all_reduce_sum(sums).cpu()
        count = float(dist.all_reduce_sum(count))
        row, left = _solve(sums, EQUAL_STEPS[order - 1], ridge)
        rows.append(row)
        errors.append(abs(h) * (max(left, 0.0) / count) ** 0.5)
        states = [advance(state, h, row) for state in states]
    return Fit(rows, errors)


def _solve(sums: Tensor, prior: Sequence[float], ridge: float) -> tuple[list[float], float]:
    """Ridge regression from the Gram matrix of the drifts and (last) the wanted direction; also what is left over."""
    gram, right = sums[:-1, :-1], sums[:-1, -1]
    pull = ridge * gram.diagonal()
    prior = torch.tensor(prior, dtype=torch.float64)
    c = torch.linalg.lstsq(gram + pull.diag(), right + pull * prior).solution
    return c.tolist(), float(sums[-1, -1] - 2 * c @ right + c @ gram @ c)
