"""Adaptive solvers: they choose their steps from an estimate of the local error, so they take tolerances, not a grid.

- `rk45` (also called `dopri5`): Dormand and Prince 1980, order 5(4). `rk23`: Bogacki and Shampine 1989, order 3(2).
  `dop853`: Hairer, Norsett and Wanner 1993, section II.5, order 8(5,3). Tableaus, first step, error norm and step
  control are those of scipy's `solve_ivp`: one sample gives its numbers to rounding (but see `_factor`).
- `radau`, `bdf`, `lsoda`: scipy's implicit methods, one sample after the other. They need a matrix of all derivatives
  and are meant for samples of few numbers.

Every sample has steps of its own: a step is accepted where the root mean square over the sample of
error / (atol + rtol |x|) is below 1. So an image does not depend on the others of its batch; those under way are
evaluated together, each at its own level, and leave the batch when they arrive. The state is float64, the network sees
it in the dtype of `x`. Of the levels only the ends count. Any field in any coordinates: native time or VE sigma.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from samplers.field import Field
from samplers.path import VE
from samplers.solvers.base import Step, combine, read_levels

__all__ = ["bdf", "dop853", "dopri5", "lsoda", "radau", "rk23", "rk45"]

Trace = Callable[[Step], Any] | None
Count = Callable[[list[int]], Any] | None
SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0  # of a step size: share of what the estimate allows, least and greatest change
LARGEST = 10_000  # numbers in a sample that an implicit method takes: its matrix then has 800 MB


class _Span(NamedTuple):
    """The way: `start` to `end` in adaptive steps, then `jump` further in one step of first order; 0 = no such step."""

    start: float
    end: float
    jump: float


class _Method(NamedTuple):
    """An embedded Runge-Kutta method whose last stage is the drift at the new state.

    `a[i]` the weights of stage i + 1 at `c[i]`, `b` those of the step, `errors` those of one or two error estimates (of
    orders 5 and 3), `order` that of the estimate.
    """

    a: list[list[float]]
    b: list[float]
    c: list[float]
    errors: list[list[float]]
    order: int


@functools.cache
def _method(name: str) -> _Method:
    import scipy.integrate  # late: a third of a second that only these solvers need

    m = getattr(scipy.integrate, name)
    a = [row[: i + 1].tolist() for i, row in enumerate(m.A[1:])]
    errors = [m.E5, m.E3] if name == "DOP853" else [m.E]
    return _Method(a, m.B.tolist(), m.C[1:].tolist(), [e.tolist() for e in errors], m.error_estimator_order)


class _Right:
    """The right-hand side dy/dt of some samples of the batch: float64 `y [b, n]` at the levels `t [b]`."""

    def __init__(self, field: Field, x: Tensor, span: _Span, index: Tensor | None = None) -> None:
        self.whole, self.x, self.span = field, x, span
        self.field = field if index is None else _of_samples(field, index, len(x))

    def rows(self, index: Tensor) -> _Right:
        """The same for the samples `index` of the whole batch."""
        return _Right(self.whole, self.x, self.span, index)

    def state(self, y: Tensor) -> Tensor:
        return y.to(self.x.dtype).reshape(len(y), *self.x.shape[1:])

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        # the guess of the first step, and rounding, may lie just outside of the interval
        level = t.clamp(self.span.end, self.span.start)
        return self.field.drift(self.state(y), level).double().flatten(1)


def _of_samples(field: Field, index: Tensor, batch: int) -> Field:
    """The field with the conditions of some samples."""

    def pick(v: Any) -> Any:
        return v[index] if isinstance(v, Tensor) and v.ndim and len(v) == batch else v

    return replace(field, class_labels=pick(field.class_labels), cond={k: pick(v) for k, v in field.cond.items()})


def _explicit(
    solver: str,
    method: str,
    field: Field,
    x: Tensor,
    levels: Tensor | Sequence[float | Tensor],
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    count: Count = None,
    trace: Trace = None,
) -> Tensor:
    """An embedded Runge-Kutta method; gradients pass through the states, not through the choice of steps.

    Args:
        solver, method: name for messages, and that of the tableau.
        field: a model, in the coordinates to integrate in.
        x: `[B, ...]` at `levels[0]`.
        levels: numbers that fall. A last level 0 is integrated to where the model predicts a velocity on a path of
            its own; elsewhere it is reached from the level before it by a first-order step.
        rtol, atol: relative and absolute tolerance, the latter in units of the state.
        count: called once with the network evaluations of every sample.
        trace: called once per round in which a sample took a step, with levels `[B]`: samples that took none, because
            their step was rejected or they have arrived, stand where they were.

    Raises:
        ValueError: levels that are not numbers, tolerances that are not positive, or a step size that shrinks to
            nothing (a field that is not smooth or not finite).
    """
    span = _span(field, x, levels, solver, rtol, atol)
    right, tableau, eps = _Right(field, x, span), _method(method), _rounding(field)
    tolerance = max(rtol, 100 * torch.finfo(torch.float64).eps), atol
    y, index = x.double().flatten(1), torch.arange(len(x), device=x.device)
    t = torch.full_like(y[:, 0], span.start, dtype=torch.float64).detach()
    f = right(t, y)
    size = _first_size(right, t, y, f, *tolerance, tableau.order)
    again, used = torch.zeros_like(index, dtype=torch.bool), torch.full_like(index, 2)
    arrived: list[tuple[Tensor, ...]] = []  # (index, used, t, y, f) of samples that are done
    rounds = 0
    while len(index):
        least = 10 * (t - torch.nextafter(t, t.new_tensor(-torch.inf)))
        if bool((again & ~(size >= least)).any()):
            raise ValueError(_stuck(solver, "its steps became too small"))
        t_new = (t - torch.where(again, size, size.maximum(least))).clamp(min=span.end)
        y_new, f_new, error, drift = _attempt(right, tableau, t, t_new, y, f, *tolerance)
        good = error < 1
        factor = _factor(error, eps * drift, tableau.order)
        factor = torch.where(good, factor.clamp(max=torch.where(again, 1.0, GROW)), factor.clamp(min=SHRINK))
        size, again, used = (t - t_new) * factor, ~good, used + len(tableau.b)
        if trace is not None and bool(good.any()):
            at, state, drift = _whole(arrived, (index, used, t, y, f))[2:]
            trace(_step(field, rounds, at, right.state(state), right.state(drift)))
            rounds += 1
        t = torch.where(good, t_new, t)
        y, f = (torch.where(good[:, None], new, old) for new, old in ((y_new, y), (f_new, f)))
        done = good & (t <= span.end)
        if bool(done.any()):  # they leave the batch: nothing is evaluated for them any more
            arrived.append(tuple(v[done] for v in (index, used, t, y, f)))
            index, used, t, y, f, size, again = (v[~done] for v in (index, used, t, y, f, size, again))
            right = right.rows(index)
    _, used, _, y, _ = _whole(arrived)
    return _finish(field, right.state(y), span, used.tolist(), rounds, count, trace)


@torch.no_grad()
def _first_size(right: _Right, t: Tensor, y: Tensor, f: Tensor, rtol: float, atol: float, order: int) -> Tensor:
    """Size of the first step, `[b]` (Hairer, Norsett and Wanner 1993, section II.4), by one more evaluation."""
    length = right.span.start - right.span.end
    scale = atol + rtol * y.abs()
    d0, d1 = _norm(y / scale), _norm(f / scale)
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1).clamp(max=length)
    d2 = _norm((right(t - h0, y - h0[:, None] * f) - f) / scale) / h0
    flat = (d1 <= 1e-15) & (d2 <= 1e-15)
    h1 = torch.where(flat, (1e-3 * h0).clamp(min=1e-6), (0.01 / torch.maximum(d1, d2)) ** (1 / (order + 1)))
    return torch.minimum(100 * h0, h1).clamp(max=length)


def _attempt(
    right: _Right, m: _Method, t: Tensor, t_new: Tensor, y: Tensor, f: Tensor, rtol: float, atol: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """State and drift at `t_new`; sizes of the error and of the step relative to the tolerances, `[b]`."""
    h = (t_new - t)[:, None]
    k = [f]
    for weights, c in zip(m.a, m.c, strict=True):
        k.append(right(t + c * h[:, 0], torch.addcmul(y, h, _sum(weights, k))))
    y_new = torch.addcmul(y, h, _sum(m.b, k))
    k.append(right(t_new, y_new))
    with torch.no_grad():
        scale = atol + rtol * torch.maximum(y.abs(), y_new.abs())
        parts = [_norm(_sum(e, k) / scale) for e in m.errors]
        size = parts[0]
        if len(parts) == 2:  # err5^2 / sqrt(err5^2 + 0.01 err3^2)
            size = (size.square() / (size.square() + 0.01 * parts[1].square()).sqrt()).where(size > 0, size)
        return y_new, k[-1], h[:, 0].abs() * size, _norm(h * f / scale)


def _factor(error: Tensor, rounding: Tensor, order: int) -> Tensor:
    """Change of the step size that the error allows.

    An estimate near the rounding of the network is chance, and differs between batch sizes: it counts as ten times the
    rounding at the least, and up to ten thousand times the factor is rounded down to a half power of 2.
    """
    factor = (SAFETY * torch.maximum(error, (10 * rounding).clamp(max=0.5)) ** (-1 / (order + 1))).nan_to_num(SHRINK)
    return torch.where(error < 1e4 * rounding, 2 ** ((2 * factor.log2()).floor() / 2), factor)


def _rounding(field: Field) -> float:
    """Relative rounding of a network that is less precise than the state; 0 of functions, which are not."""
    net = field.facts.model
    weights = next(net.parameters(), None) if isinstance(net, torch.nn.Module) else None
    return 0.0 if weights is None or weights.dtype == torch.float64 else torch.finfo(torch.float32).eps


def _sum(weights: Sequence[float], k: Sequence[Tensor]) -> Tensor:
    return combine(k[0], weights[0], weights[1:], k[1:])


def _norm(v: Tensor) -> Tensor:
    """Root mean square of every row."""
    return torch.linalg.vector_norm(v, dim=1) / v.shape[1] ** 0.5


def _whole(arrived: list[tuple[Tensor, ...]], under_way: tuple[Tensor, ...] | None = None) -> list[Tensor]:
    """Put the columns of all samples in the order of the samples; the first column is their index."""
    columns = [torch.cat(v) for v in zip(*arrived, *([under_way] if under_way else []), strict=True)]
    order = columns[0].argsort()
    return [v[order] for v in columns]


def _implicit(
    method: str,
    field: Field,
    x: Tensor,
    levels: Tensor | Sequence[float | Tensor],
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    count: Count = None,
    trace: Trace = None,
) -> Tensor:
    """Integrate as `_explicit` does, by an implicit method of scipy, sample by sample on the host; no gradients.

    Raises:
        ValueError: also for samples of too many numbers.
    """
    import scipy.integrate

    span = _span(field, x, levels, method.lower(), rtol, atol)
    size = x[0].numel()
    if size > LARGEST:
        raise ValueError(
            f"solver '{method.lower()}' needs a matrix of {size} x {size} numbers for these samples, at most {LARGEST} "
            "are possible: choose dopri5, dop853 or a solver of fixed steps"
        )
    right, used = _Right(field, x, span), [0] * len(x)

    def of_sample(i: int) -> Callable[[float, Any], Any]:
        def function(t: float, columns: Any) -> Any:  # [n], or [n, k] for k states at once
            y = torch.from_numpy(columns.reshape(size, -1).T.copy()).to(x.device)
            used[i] += len(y)
            rows = right.rows(torch.full([len(y)], i, device=x.device))
            drift = rows(torch.full([len(y)], float(t), dtype=torch.float64, device=x.device), y)
            if not bool(drift.isfinite().all()):  # which not all of these methods notice
                raise ValueError(_stuck(method.lower(), "its drift is not finite"))
            return drift.detach().cpu().numpy().T.reshape(columns.shape)

        return function

    start = x.detach().double().flatten(1).cpu().numpy()
    how = {"rtol": rtol, "atol": atol, "vectorized": True}
    ends, rounds = [None] * len(x), 0
    # Together only where the steps are looked at: the matrices of all samples are then in memory at once.
    for group in [range(len(x))] if trace is not None else [[i] for i in range(len(x))]:
        solvers = {
            i: getattr(scipy.integrate, method)(of_sample(i), span.start, start[i], span.end, **how) for i in group
        }
        while running := [s for s in solvers.values() if s.status == "running"]:
            if trace is not None:
                at = torch.tensor([s.t for s in solvers.values()], dtype=torch.float64, device=x.device)
                y = torch.stack([torch.from_numpy(s.y.copy()) for s in solvers.values()]).to(x.device)
                trace(_step(field, rounds, at, right.state(y), right.state(right(at, y))))
            for s in running:
                message = s.step()
                if s.status == "failed":
                    raise ValueError(_stuck(method.lower(), str(message)))
            rounds += 1
        for i, s in solvers.items():
            ends[i] = torch.from_numpy(s.y)
    return _finish(field, right.state(torch.stack(ends).to(x.device)), span, used, rounds, count, trace)


dopri5 = functools.partial(_explicit, "dopri5", "RK45")
rk45 = functools.partial(_explicit, "rk45", "RK45")
rk23 = functools.partial(_explicit, "rk23", "RK23")
dop853 = functools.partial(_explicit, "dop853", "DOP853")
radau = functools.partial(_implicit, "Radau")
bdf = functools.partial(_implicit, "BDF")
lsoda = functools.partial(_implicit, "LSODA")


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


def _finish(
    field: Field, x: Tensor, span: _Span, evaluations: list[int], steps: int, count: Count, trace: Trace
) -> Tensor:
    if span.jump:
        level = torch.tensor(span.end, dtype=torch.float64, device=x.device)
        data, drift = field.data_and_drift(x, level)
        if trace is not None:
            trace(Step(steps, level, x, data, drift))
        x, evaluations = combine(x, 1, [span.jump], [drift]), [n + 1 for n in evaluations]
    if count is not None:
        count(evaluations)
    return x


def _stuck(solver: str, reason: str) -> str:
    return (
        f"solver '{solver}' cannot go on ({' '.join(reason.split())}): the model's output jumps or is not finite; "
        "raise rtol and atol, or choose a solver of fixed steps"
    )
