"""Refine a calibrated schedule as a whole: Gauss-Newton on its knots and coefficients for the end point alone.

Fitting step by step pulls every state towards the teacher's, which is more than is asked: only the end counts, and an
early step may go wrong in a way that a later one mends. With r the distance of the student's end points from the
teacher's, p the interior levels (as log sigma) and all coefficients, and J = dr/dp,

    dp = (J^T W J + mu diag) ^ -1  J^T W r            (Levenberg-Marquardt; Marquardt 1963)

J comes from forward differences: a coefficient of step n changes only what follows it, so an iteration costs about
N^2 evaluations per warm-up sample for N steps, no back-propagation and no memory for it. W is Huber's weight per
sample: trajectories that end on another mode of the data than the teacher's must not rule the fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from samplers.fitting import State, advance, gram, look
from samplers.warmup import Chunk
from torch_utils import distributed as dist

__all__ = ["Refined", "end_errors", "refine"]

_EPS = 5e-3  # forward difference, in log sigma and in coefficients: well above the rounding of a float32 network
_HUBER = 3.0  # weight 1 up to so many times the typical error
_TRIES = 6  # dampings tried per iteration
_ENOUGH = 3e-3  # stop when an iteration lowers the objective by less than this share


class Refined(NamedTuple):
    """Levels `N+1`, coefficients per step, and the evaluations per warm-up sample that finding them took."""

    sigmas: list[float]
    coefficients: list[list[float]]
    evaluations: int


class _Parameter(NamedTuple):
    """Coefficient `k` of step `n`, or (k None) the logarithm of level `n`."""

    n: int
    k: int | None


class _Student(NamedTuple):
    """A schedule with its coefficients, run on this process's chunks: states looked at before each step, and ends."""

    sigmas: list[float]
    rows: list[list[float]]
    states: list[list[State]]  # [chunk][step]
    ends: list[Tensor]  # [chunk] [b, ...]


def _finish(
    chunk: Chunk, state: State, n: int, sigmas: Sequence[float], rows: Sequence[Sequence[float]], order: int, afs: bool
) -> tuple[Tensor, list[State]]:
    """Take the steps from `n` on from a state not yet looked at: the end, and the states looked at on the way."""
    seen = []
    for i in range(n, len(rows)):
        state = look(chunk, state, sigmas[i], order, afs and i == 0)
        seen.append(state)
        state = advance(state, sigmas[i + 1] - sigmas[i], rows[i])
    return state.x, seen


def _run(
    chunks: Sequence[Chunk], teacher: Sequence[Tensor], sigmas: list[float], rows: list[list[float]], afs: bool
) -> _Student:
    order = max(map(len, rows))
    done = [_finish(c, State(x[0], ()), 0, sigmas, rows, order, afs) for c, x in zip(chunks, teacher, strict=True)]
    return _Student(sigmas, rows, [seen for _, seen in done], [end for end, _ in done])


def _changed(student: _Student, parameters: Sequence[_Parameter], by: Sequence[float]) -> tuple[list, list]:
    """Levels and coefficients with some parameters moved."""
    sigmas, rows = list(student.sigmas), [list(row) for row in student.rows]
    for (n, k), step in zip(parameters, by, strict=True):
        if k is None:
            sigmas[n] *= math.exp(step)
        else:
            rows[n][k] += step
    return sigmas, rows


def _derivative(chunk: Chunk, student: _Student, c: int, parameter: _Parameter, order: int, afs: bool) -> Tensor:
    """d end / d parameter of one chunk, `[b * D]`; the steps before the change are not repeated."""
    sigmas, rows = _changed(student, [parameter], [_EPS])
    first = parameter.n if parameter.k is not None else parameter.n - 1  # a level ends the step before it
    state = advance(student.states[c][first], sigmas[first + 1] - sigmas[first], rows[first])
    end, _ = _finish(chunk, state, first + 1, sigmas, rows, order, afs)
    return ((end - student.ends[c]) / _EPS).flatten()


def end_errors(ends: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean square distance to the teacher's last states per sample, chunk after chunk: `[samples]` float64."""
    parts = [(x[-1] - e).double().square().flatten(1).mean(1) for e, x in zip(ends, teacher, strict=True)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def _huber(errors: Tensor) -> Tensor:
    """Weight per sample: 1 up to `_HUBER` times the geometric mean of the root-mean-square errors, then falling."""
    root = errors.sqrt().clamp(min=1e-12)
    sums = dist.all_reduce_sum(torch.stack([root.log().sum(), torch.ones_like(root).sum()]))
    typical = (sums[0] / sums[1]).exp()
    return (_HUBER * typical / root).clamp(max=1)


@torch.no_grad()
def refine(
    chunks: Sequence[Chunk],
    teacher: Sequence[Tensor],
    sigmas: Sequence[float] | Tensor,
    coefficients: Sequence[Sequence[float]],
    *,
    afs: bool = False,
    iterations: int = 10,
    progress: Callable[[int], Any] | None = None,
) -> Refined:
    """Lower the error of the end point from a calibrated schedule on; both ends of the schedule stay.

    Memory: 2 N states per warm-up sample of this process, and one chunk's end points per parameter.

    Args:
        chunks: this process's warm-up samples.
        teacher: per chunk the teacher's states `[2 or more, b, ...]`: the first and the last are used.
        sigmas: N+1 levels, falling and positive.
        coefficients: where to begin, for example from `fit_coefficients`.
        afs: the student takes the analytical first step.
        iterations: at most so many.
        progress: called with the number of each iteration done.
    """
    student = _run(chunks, teacher, [float(s) for s in sigmas], [list(row) for row in coefficients], afs)
    N, order = len(student.rows), max(map(len, student.rows))
    parameters = [_Parameter(n, k) for n, row in enumerate(student.rows) for k in range(len(row))]
    parameters += [_Parameter(n, None) for n in range(1, N)]
    per_iteration = sum(N - 1 - p.n + (p.k is None) for p in parameters)
    damping, evaluations = 1e-3, N
    for iteration in range(iterations):
        errors = end_errors(student.ends, teacher)
        weights = _huber(errors)
        before = float(dist.all_reduce_sum((weights * errors).sum()))
        system = _normal_equations(chunks, teacher, student, parameters, weights, order, afs)
        evaluations += per_iteration
        for _ in range(_TRIES):
            step = _solve(system, damping)
            sigmas, rows = _changed(student, parameters, step)
            if all(a > b for a, b in pairwise(sigmas)) and all(map(math.isfinite, step)):
                trial = _run(chunks, teacher, sigmas, rows, afs)
                evaluations += N
                after = float(dist.all_reduce_sum((weights * end_errors(trial.ends, teacher)).sum()))
                if after < before:
                    break
            damping = max(8 * damping, 1e-4)
        else:
            break
        student, damping = trial, damping / 5
        if progress is not None:
            progress(iteration + 1)
        if after > (1 - _ENOUGH) * before:
            break
    return Refined(student.sigmas, student.rows, evaluations)


def _normal_equations(
    chunks: Sequence[Chunk], teacher: Sequence[Tensor], student: _Student, parameters: Sequence[_Parameter],
    weights: Tensor, order: int, afs: bool,
) -> Tensor:  # fmt: skip
    """`[P+1, P+1]`: J^T W J with J^T W r as last column, summed over samples and processes."""
    size = len(parameters) + 1
    device = chunks[0].noise.device if chunks else weights.device
    sums, done = torch.zeros(size, size, dtype=torch.float64, device=device), 0
    for c, (chunk, path) in enumerate(zip(chunks, teacher, strict=True)):
        target = path[-1]
        columns = [_derivative(chunk, student, c, p, order, afs) for p in parameters]
        columns.append((target - student.ends[c]).flatten())
        root = weights[done : done + len(target)].sqrt().to(target.dtype)
        root = root.repeat_interleave(target[0].numel())
        sums += gram(torch.stack(columns).mul_(root))
        done += len(target)
    return dist.all_reduce_sum(sums).cpu()


def _solve(system: Tensor, damping: float) -> list[float]:
    matrix, right = system[:-1, :-1], system[:-1, -1]
    scale = matrix.diagonal().clamp(min=1e-300)
    return torch.linalg.lstsq(matrix + damping * scale.diag(), right).solution.tolist()
