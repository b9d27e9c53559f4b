"""Plans of the solvers of `SOLVERS`: over given noise levels, or in steps of their own between two.

`num_steps` N means N levels that end at sigma_min, no step to 0 (the way of GITS; Chen et al. 2024, arXiv 2405.11326).
"""

from __future__ import annotations

import functools

from samplers.planning.base import Plan, Request, count_of, said, settled, shown_levels
from samplers.planning.options import ChurnOptions, MethodOptions
from samplers.schedules.formulas import get_schedule
from samplers.solvers.table import SOLVERS, sample
from samplers.start import refuse_guess


def plan_grid(request: Request) -> Plan:
    """Any solver of fixed steps over `request.chosen`.

    Raises:
        ValueError: options that the solver does not take.
    """
    chosen = request.chosen
    entry = SOLVERS[chosen.solver]
    used = settled(entry, chosen.options)
    ends = {"afs": chosen.afs, "denoise_to_zero": bool(request.given.get("denoise_to_zero"))}
    refuse_guess(chosen.afs, request.start == "exact")
    steps = len(chosen.sigmas) - 1
    shown = {k: v for k, v in chosen.options.items() if k != "coefficients"} | {k: v for k, v in ends.items() if v}
    return Plan(
        kind="grid",
        solver=chosen.solver,
        sigmas=chosen.sigmas,
        sampler=functools.partial(sample, sigmas=chosen.sigmas, solver=chosen.solver),
        title=f"{chosen.solver}, {count_of(steps, 'step')}{said(shown)}",
        schedule=f"{chosen.about}: {shown_levels(chosen.sigmas)}",
        options={**used, **ends, "start": request.start},
        steps=steps,
        each=entry.evaluations,
        extra=entry.nfe(steps + 1, **ends) - steps * entry.evaluations,
        notes=tuple(("Note", note) for note in chosen.notes),
        stochastic=entry.adds_noise(chosen.options),
        chosen=chosen,
    )


def plan_adaptive(request: Request) -> Plan:
    """A solver that chooses its steps, from the highest to the lowest level.

    Raises:
        ValueError: options that the solver does not take.
    """
    given = request.given
    entry = SOLVERS[given["solver"]]
    entry.check_first("afs" in given)
    used = settled(entry, request.of(MethodOptions, ChurnOptions))
    levels = get_schedule(2, given.get("sigma_min"), given.get("sigma_max"), net=request.field)
    ends = {"denoise_to_zero": True} if given.get("denoise_to_zero") else {}
    evaluations: list[int] = []
    calls, more = request.field.facts.calls, len(ends) + (request.start == "exact")
    return Plan(
        kind="adaptive",
        solver=entry.name,
        sigmas=levels,
        sampler=functools.partial(
            sample,
            sigmas=levels,
            solver=entry.name,
            count=lambda made: evaluations.extend(calls * (n + more) for n in made),
        ),
        title=f"{entry.name}, rtol {used['rtol']:g}, atol {used['atol']:g}{said(ends)}",
        schedule=f"chosen by the solver, from {levels[0]:.4g} to {levels[-1]:.4g}",
        options={**used, **ends, "start": request.start},
        steps=None,
        evaluations=evaluations,
    )
