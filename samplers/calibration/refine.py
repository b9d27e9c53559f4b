"""Refine a calibrated schedule as a whole: Gauss-Newton on its levels and coefficients for the end point alone.

Fitting step by step pulls every state towards the teacher's, which is more than is asked: only the end counts, and an
early step may go wrong in a way that a later one mends. With r = phi(teacher's end) - phi(student's end), phi the
pixels or any features of them (`samplers.calibration.objective`), p the interior levels (as log sigma) and all
coefficients, and J = -dr/dp,

    dp = (J^T W J + mu diag) ^ -1  J^T W r            (Levenberg-Marquardt; Marquardt 1963)

J comes from forward differences: a coefficient of step n changes only what follows it, so J costs about 2 N^2
evaluations per warm-up sample for N steps and one of phi per parameter, no back-propagation through either, and no
memory for it. Between two such J, every step tried mends the one at hand (Broyden 1965),

    J <- J + (dr - J dp) dp^T / |dp|^2,

which costs the N evaluations of the trial alone; J is measured anew when it no longer leads on. From one J to the next
two parametrisations take turns, coefficients as they are and corrections of Adams-Bashforth, which move along with a
level: damping holds each back elsewhere. W is Huber's weight per sample: trajectories that end on another mode of the
data than the teacher's must not rule the fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from samplers.calibration.student import Features, StudentState, advance, classical, end_errors, gram, itself, look
from samplers.start import Chunk
from torch_utils import distributed as dist

__all__ = ["CORRECTIONS", "FREE", "IN_TURN", "Base", "Refined", "refine"]

_EPS = 5e-3  # forward difference, in log sigma and in coefficients: well above the rounding of a float32 network
_HUBER = 3.0  # weight 1 up to three times the typical error
_TRIES, _STALE_TRIES = 6, 2  # dampings tried with a measured J, and with one that Broyden's rule brought along
_WORTHWHILE = 0.1  # measure J anew when a step lowers the objective by less than this share
_ENOUGH = 3e-3  # stop when not even the first step of a measured J lowers it by this share


class Refined(NamedTuple):
    """Levels `N+1`, coefficients per step, and the evaluations per warm-up sample that finding them took."""

    sigmas: list[float]
    coefficients: list[list[float]]
    evaluations: int


class _Parameter(NamedTuple):
    """Coefficient `k` of step `n`, or (k None) the logarithm of level `n`."""

    n: int
    k: int | None


# (levels, step n, order) -> what coefficients are corrections of: where a level moves, it moves along
Base = Callable[[Sequence[float], int, int], Sequence[float]]


def _nothing(sigmas: Sequence[float], n: int, order: int) -> list[float]:
    return [0.0] * order


FREE, CORRECTIONS = (_nothing,), (classical,)
IN_TURN = FREE + CORRECTIONS


class _Problem(NamedTuple):
    """What a refinement has on this process: warm-up samples, first states, and what is wanted of the ends."""

    chunks: Sequence[Chunk]
    starts: list[Tensor]  # [chunk] [b, ...]
    phi: Features
    wanted: list[Tensor]  # [chunk] [b, ...]: phi of the teacher's ends
    order: int
    afs: bool
    base: Base


class _Student(NamedTuple):
    """A schedule with its coefficients, run on this process's chunks: states before each step, phi of the ends."""

    sigmas: list[float]
    rows: list[list[float]]
    states: list[list[StudentState]]  # [chunk][step]
    ends: list[Tensor]  # [chunk] [b, ...]


def _finish(
    problem: _Problem, c: int, state: StudentState, n: int, sigmas: Sequence[float], rows: Sequence[Sequence[float]]
) -> tuple[Tensor, list[StudentState]]:
    """Take the steps from `n` on from a state not yet looked at: phi of the end, and the states on the way."""
    chunk, seen = problem.chunks[c], []
    for i in range(n, len(rows)):
        state = look(chunk, state, sigmas[i], problem.order, problem.afs and i == 0)
        seen.append(state)
        state = advance(state, sigmas[i + 1] - sigmas[i], rows[i])
    return problem.phi(chunk, state.x), seen


def _run(problem: _Problem, sigmas: list[float], rows: list[list[float]]) -> _Student:
    done = [_finish(problem, c, StudentState(x, ()), 0, sigmas, rows) for c, x in enumerate(problem.starts)]
    return _Student(sigmas, rows, [seen for _, seen in done], [end for end, _ in done])


def _changed(
    student: _Student, parameters: Sequence[_Parameter], by: Sequence[float], base: Base
) -> tuple[list, list] | None:
    """Levels and coefficients with some parameters moved; coefficients follow the levels. None: levels cross."""
    sigmas, rows = list(student.sigmas), [list(row) for row in student.rows]
    for (n, k), step in zip(parameters, by, strict=True):
        if k is None:
            sigmas[n] *= math.exp(min(step, 100.0))
        else:
            rows[n][k] += step
    if not all(a > b for a, b in pairwise(sigmas)):
        return None
    for n, row in enumerate(rows):
        before, after = (base(s, n, len(row)) for s in (student.sigmas, sigmas))
        rows[n] = [c + new - old for c, new, old in zip(row, after, before, strict=True)]
    return sigmas, rows


def _derivative(problem: _Problem, student: _Student, c: int, parameter: _Parameter) -> Tensor:
    """d phi(end) / d parameter of one chunk, flat; the steps before the change are not repeated."""
    by = _EPS if parameter.k is not None else _nudge(student.sigmas, parameter.n)
    sigmas, rows = _changed(student, [parameter], [by], problem.base)
    first = parameter.n if parameter.k is not None else parameter.n - 1  # a level ends the step before it
    state = advance(student.states[c][first], sigmas[first + 1] - sigmas[first], rows[first])
    end, _ = _finish(problem, c, state, first + 1, sigmas, rows)
    return ((end - student.ends[c]) / by).flatten()


def _nudge(sigmas: Sequence[float], n: int) -> float:
    """A forward difference of log sigma that keeps level `n` between its neighbours."""
    up, down = math.log(sigmas[n - 1] / sigmas[n]), math.log(sigmas[n] / sigmas[n + 1])
    return min(_EPS, up / 2) if up >= down else -min(_EPS, down / 2)


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
    iterations: int = 4,
    phi: Features = itself,
    bases: Sequence[Base] = IN_TURN,
) -> Refined:
    """Lower the error of the end point from a calibrated schedule on; both ends of the schedule stay.

    Memory per warm-up sample of this process: phi of an end for each of the fewer than 5 N parameters, and 2 N states.

    Args:
        chunks: this process's warm-up samples.
        teacher: per chunk the teacher's states `[2 or more, b, ...]`: the first and the last are used.
        sigmas: N+1 levels, falling and positive.
        coefficients: where to begin, for example from `fit_coefficients`.
        afs: the student takes the analytical first step.
        iterations: most measurements of J.
        phi: what is compared of the ends, see `samplers.calibration.objective`.
        bases: what coefficients are corrections of, from one measurement of J to the next in turn.
    """
    rows, pairs = [list(row) for row in coefficients], list(zip(chunks, teacher, strict=True))
    wanted = [phi(chunk, x[-1]) for chunk, x in pairs]
    problem = _Problem(chunks, [x[0] for x in teacher], phi, wanted, max(map(len, rows)), afs, bases[0])
    student = _run(problem, [float(s) for s in sigmas], rows)
    N = len(rows)
    parameters = [_Parameter(n, k) for n, row in enumerate(rows) for k in range(len(row))]
    parameters += [_Parameter(n, None) for n in range(1, N)]
    cost_of_jacobian = sum(N - 1 - p.n + (p.k is None) for p in parameters)
    damping, evaluations = 1e-3, N
    for i in range(iterations):
        problem = problem._replace(base=bases[i % len(bases)])
        jacobian = [_jacobian(problem, student, c, parameters) for c in range(len(chunks))]
        evaluations += cost_of_jacobian
        gains: list[float] = []
        while not gains or gains[-1] > _WORTHWHILE:
            tries = _STALE_TRIES if gains else _TRIES
            found = _step(problem, student, jacobian, parameters, damping, tries)
            student, damping, evaluations = found.student, found.damping, evaluations + N * found.runs
            gains.append(found.gain)
        if gains[0] < _ENOUGH:
            break
    return Refined(student.sigmas, student.rows, evaluations)


class _Step(NamedTuple):
    """The student after a step (the same if none was better), the share by which it is better, the next damping, and
    the students run to find it."""

    student: _Student
    gain: float
    damping: float
    runs: int


def _step(
    problem: _Problem, student: _Student, jacobian: Sequence[Tensor], parameters: Sequence[_Parameter],
    damping: float, tries: int,
) -> _Step:  # fmt: skip
    """One step of Levenberg-Marquardt, more damped at each of `tries`; each mends `jacobian` in place."""
    errors = end_errors(student.ends, problem.wanted)
    weights = _huber(errors)
    before, runs = _objective(errors, weights), 0
    for _ in range(tries):
        step = _solve(_normal_equations(problem, student, jacobian, weights, len(parameters) + 1), damping)
        if all(map(math.isfinite, step)) and (changed := _changed(student, parameters, step, problem.base)) is not None:
            trial, runs = _run(problem, *changed), runs + 1
            after = _objective(end_errors(trial.ends, problem.wanted), weights)
            if math.isfinite(after):
                _broyden(jacobian, student, trial, step)
            if after < before:
                return _Step(trial, 1 - after / before, damping / 5, runs)
        damping = max(8 * damping, 1e-4)
    return _Step(student, 0.0, damping, runs)


def _objective(errors: Tensor, weights: Tensor) -> float:
    """Weighted sum of the end points' errors over samples and processes."""
    return float(dist.all_reduce_sum((weights * errors).sum()))


def _jacobian(problem: _Problem, student: _Student, c: int, parameters: Sequence[_Parameter]) -> Tensor:
    """dr/dp of one chunk, a row per parameter: `[P, b * F]`."""
    return torch.stack([_derivative(problem, student, c, p) for p in parameters])


def _broyden(jacobian: Sequence[Tensor], student: _Student, trial: _Student, step: Sequence[float]) -> None:
    """Make every chunk's J give the change of the end points that a step really made."""
    for J, old, new in zip(jacobian, student.ends, trial.ends, strict=True):
        dp = J.new_tensor(step)
        J.addr_(dp / (dp @ dp), (new - old).flatten() - dp @ J)


def _normal_equations(
    problem: _Problem, student: _Student, jacobian: Sequence[Tensor], weights: Tensor, size: int
) -> Tensor:
    """`[P+1, P+1]`: J^T W J with J^T W r as last column, summed over samples and processes."""
    sums, done = torch.zeros(size, size, dtype=torch.float64, device=weights.device), 0
    for J, end, wanted in zip(jacobian, student.ends, problem.wanted, strict=True):
        root = weights[done : done + len(end)].sqrt().to(J.dtype).repeat_interleave(end[0].numel())
        sums += gram(torch.cat([J, (wanted - end).flatten()[None]]) * root)
        done += len(end)
    return dist.all_reduce_sum(sums).cpu()


def _solve(system: Tensor, damping: float) -> list[float]:
    matrix, right = system[:-1, :-1], system[:-1, -1]
    scale = matrix.diagonal().clamp(min=1e-300)
    return torch.linalg.lstsq(matrix + damping * scale.diag(), right).solution.tolist()
