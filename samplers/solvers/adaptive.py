"""Adaptive solvers: they choose their steps from an estimate of the local error, so they take tolerances, not a grid.

- `dopri5`: Dormand and Prince 1980, order 5(4), by torchdiffeq (Chen et al. 2018, arXiv 1806.07366). Runs on the
  device of the state, in its dtype, and lets gradients through.
- `rk45`, `rk23`, `dop853`: the explicit methods of scipy's `solve_ivp`, for parity with published samplers that call
  it: the state is one flat float64 vector on the host, the network sees it in the dtype of `x`. No gradients.

A step is accepted where the root mean square over the whole batch of error / (atol + rtol |x|) is at most 1. So the
steps, and within the tolerance the results, depend on the batch; solvers of fixed steps have no such dependence.
Of the levels only the ends count. Any field in any coordinates: native time or VE sigma.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from samplers.field import Field
from samplers.path import VE
from samplers.solvers.base import Step, combine, read_levels

__all__ = ["dop853", "dopri5", "rk23", "rk45"]

Trace = Callable[[Step], Any] | None
Count = Callable[[int], Any] | None


class _Span(NamedTuple):
    """From `start` to `end` by adaptive steps, then `jump` further by one step of first order; 0 = no such step."""

    start: float
    end: float
    jump: float


def dopri5(
    field: Field,
    x: Tensor,
    levels: Tensor | Sequence[float | Tensor],
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    count: Count = None,
    trace: Trace = None,
) -> Tensor:
    """Order 5(4), six evaluations per accepted or rejected step, and two to begin with.

    Args:
        field: a model, in the coordinates to integrate in.
        x: `[B, ...]` at `levels[0]`.
        levels: numbers that fall. A last level 0 is integrated to where the model predicts a velocity on a path of
            its own; elsewhere it is reached from the level before it by a first-order step.
        rtol, atol: relative and absolute tolerance, the latter in units of the state.
        count: called once with the number of network evaluations.
        trace: called once per accepted step.

    Raises:
        ValueError: levels that are not numbers, tolerances that are not positive, or a step size that shrinks to
            nothing (a field that is not smooth or not finite).
    """
    with torch.inference_mode(False):  # its tables are made when it is imported, and must serve outside as well
        from torchdiffeq import odeint  # late: half a second that only this solver needs

    span = _span(field, x, levels, "dopri5", rtol, atol)
    right = _Right(field, span, trace)
    ends = torch.tensor([span.start, span.end], dtype=torch.float64, device=x.device)
    try:  # step_t: without it torchdiffeq steps beyond the end and interpolates back
        x = odeint(right, x, ends, rtol=rtol, atol=atol, method="dopri5", options={"step_t": ends[1:]})[-1]
    except AssertionError as error:
        raise ValueError(_stuck("dopri5", str(error))) from error
    return _finish(field, x, span, right.evaluations, right.steps, count, trace)


class _Right:
    """The right-hand side as torchdiffeq calls it, with its hook for accepted steps."""

    def __init__(self, field: Field, span: _Span, trace: Trace) -> None:
        self.field, self.span, self.trace = field, span, trace
        self.evaluations = self.steps = 0
        self._first: Tensor | None = None  # drift at the start of the step under way
        self._last: Tensor | None = None

    def __call__(self, level: Tensor, x: Tensor) -> Tensor:
        self.evaluations += 1
        # the guess of the first step, and rounding, may lie just outside of the interval
        self._last = self.field.drift(x, level.clamp(self.span.end, self.span.start))
        self._first = self._last if self._first is None else self._first
        return self._last

    def callback_accept_step(self, level: Tensor, x: Tensor, step: Tensor) -> None:
        if self.trace is not None:
            self.trace(_step(self.field, self.steps, level, x, self._first))
        self.steps += 1
        self._first = self._last  # the last stage of an accepted step is the drift at its end


def _scipy(
    field: Field,
    x: Tensor,
    levels: Tensor | Sequence[float | Tensor],
    *,
    method: str,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    count: Count = None,
    trace: Trace = None,
) -> Tensor:
    """As `dopri5`, by the method of scipy of that name."""
    import scipy.integrate

    span = _span(field, x, levels, method.lower(), rtol, atol)

    def state(y: Any) -> Tensor:
        return torch.from_numpy(y).to(x.device, x.dtype).reshape(x.shape)

    def right(level: float, y: Any) -> Any:
        inside = min(max(level, span.end), span.start)
        drift = field.drift(state(y), torch.tensor(inside, dtype=torch.float64, device=x.device))
        return drift.detach().double().flatten().cpu().numpy()

    start = x.detach().double().flatten().cpu().numpy()
    solver = getattr(scipy.integrate, method)(right, span.start, start, span.end, rtol=rtol, atol=atol)
    steps = 0
    while solver.status == "running":
        level, y, drift = solver.t, solver.y, solver.f
        message = solver.step()
        if solver.status == "failed":
            raise ValueError(_stuck(method.lower(), str(message)))
        if trace is not None:
            at = torch.tensor(level, dtype=torch.float64, device=x.device)
            trace(_step(field, steps, at, state(y), state(drift)))
        steps += 1
    return _finish(field, state(solver.y), span, solver.nfev, steps, count, trace)


rk45 = functools.partial(_scipy, method="RK45")
rk23 = functools.partial(_scipy, method="RK23")
dop853 = functools.partial(_scipy, method="DOP853")


def _span(
    field: Field, x: Tensor, levels: Tensor | Sequence[float | Tensor], solver: str, rtol: float, atol: float
) -> _Span:
    grid = read_levels(levels, x)
    if grid.is_map:
        raise ValueError(
            f"solver '{solver}' chooses one step for all elements, and the levels given differ between them: "
            "choose a solver of fixed steps"
        )
    if not (rtol > 0 and atol > 0):
        raise ValueError(f"rtol={rtol:g} and atol={atol:g} must both be above 0, for example 1e-5")
    if not grid.ends_at_zero or (field.predicts == "velocity" and not isinstance(field.path, VE)):
        return _Span(grid.s[0], grid.s[-1], 0.0)
    if len(grid.s) < 3:
        raise ValueError(
            f"solver '{solver}' cannot integrate to level 0 of this model, where its drift is not defined: give a "
            "small level before the 0, for example 0.002, from where one step of first order ends at 0"
        )
    return _Span(grid.s[0], grid.s[-2], -grid.s[-2])


def _step(field: Field, i: int, level: Tensor, x: Tensor, drift: Tensor) -> Step:
    return Step(i, level, x, field.data_of_velocity(drift, x, level), drift)


def _finish(field: Field, x: Tensor, span: _Span, evaluations: int, steps: int, count: Count, trace: Trace) -> Tensor:
    if span.jump:
        level = torch.tensor(span.end, dtype=torch.float64, device=x.device)
        data, drift = field.data_and_drift(x, level)
        if trace is not None:
            trace(Step(steps, level, x, data, drift))
        x, evaluations = combine(x, 1, [span.jump], [drift]), evaluations + 1
    if count is not None:
        count(evaluations)
    return x


def _stuck(solver: str, reason: str) -> str:
    return (
        f"solver '{solver}' cannot go on ({' '.join(reason.split())}): the model's output jumps or is not finite; "
        "raise rtol and atol, or choose a solver of fixed steps"
    )
