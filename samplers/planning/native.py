"""Plans of flow models in the time that they were trained in, as they are published (`samplers/solvers/native.py`)."""

from __future__ import annotations

import functools

from samplers.planning.base import Plan, Request, count_of, said, settled
from samplers.planning.options import MethodOptions
from samplers.solvers.interpolant import time_interval
from samplers.solvers.native import DRIFT_SOLVERS, last_step_cost, sample_native, uniform_times
from samplers.solvers.table import SOLVERS

DEFAULT_EVALUATIONS = 20


def _default(solver: str, defined_at_zero: bool) -> int:
    """The largest number of evaluations, up to the default, that the solver can make in whole steps."""
    if solver not in DRIFT_SOLVERS or not SOLVERS[solver].reaches_zero:
        return DEFAULT_EVALUATIONS
    last, each = last_step_cost(solver, defined_at_zero), SOLVERS[solver].evaluations
    return last + (DEFAULT_EVALUATIONS - last) // each * each


def plan_native(request: Request) -> Plan:
    """Equal steps from t = 1 to 0, or a solver that chooses its own.

    Raises:
        ValueError: a solver or option that native time does not know, or an N that the solver cannot use.
    """
    given = request.given
    solver = given.get("solver", "euler")
    adaptive = solver in DRIFT_SOLVERS and SOLVERS[solver].adaptive
    if adaptive and "N" in given:
        raise ValueError(f"solver '{solver}' chooses its steps itself: leave out --N, or give tolerances")
    at_zero = request.field.native().defined_at_zero
    if adaptive and not at_zero:
        raise ValueError(
            f"solver '{solver}' would integrate to t = 0, where the drift of this model is not defined: leave out "
            "--coordinates=native, then it steps in sigma"
        )
    evaluations = given["N"] if "N" in given else _default(solver, at_zero)
    own = request.field.native()
    top = time_interval(own.path, own.predicts)[0]  # noise and score say nothing of data where there is noise alone
    times = top * uniform_times(evaluations, solver, defined_at_zero=at_zero)
    entry, steps = SOLVERS[solver], len(times) - 1
    options = settled(entry, request.of(MethodOptions))
    made: list[int] = []
    calls = request.field.facts.calls
    counted = {"count": lambda new: made.extend(calls * n for n in new)} if adaptive else {}
    span = f"from t = {top:g} to 0"
    return Plan(
        kind="native",
        solver=solver,
        sigmas=times,
        sampler=functools.partial(sample_native, times=times, solver=solver, **counted),
        title=f"{solver}, native time{said(options)}",
        schedule=f"chosen by the solver, {span}" if adaptive else f"{count_of(steps, 'equal step')} {span}",
        options=options,
        steps=None if adaptive else steps,
        each=entry.evaluations,
        extra=0 if adaptive else last_step_cost(solver, at_zero) - entry.evaluations,
        stochastic=entry.adds_noise(options),
        evaluations=made,
    )
