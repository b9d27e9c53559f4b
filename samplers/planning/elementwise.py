"""Plans of networks that choose a noise level for every element (`samplers.solvers.elementwise`).

By default Euler along the nominal levels that the network was trained with, the last step to 0; any solver and any
levels can be asked for instead, and added noise with solvers of one step.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from samplers.planning.base import Plan, Request, churn_of, count_of, said, settled, shown_levels
from samplers.planning.options import ChurnOptions, MethodOptions
from samplers.solvers.elementwise import ONE_STEP, coefficient_cost, sample_mac
from samplers.solvers.entry import Solver
from samplers.solvers.table import SOLVERS
from samplers.start import refuse_guess


def check_elementwise(solver: str, options: dict[str, object], S_churn: float | None) -> None:
    """Refuse what cannot be, before any levels are searched for it.

    Raises:
        ValueError: a solver of single levels, options that it does not take, noise between steps that belong together.
    """
    entry = SOLVERS[solver]
    if entry.adaptive or entry.stochastic:
        raise ValueError(
            f"solver '{solver}' takes single noise levels, and this network chooses maps: use euler or heun"
        )
    entry.resolve(options)
    if S_churn and solver not in ONE_STEP:
        raise ValueError(f"--S_churn goes with solvers of one step, {', '.join(ONE_STEP)}, not with {solver}")


def plan_elementwise(request: Request) -> Plan:
    """Any solver of fixed steps along maps of levels; `request.chosen` holds nominal levels, or None.

    Raises:
        ValueError: see `check_elementwise`.
    """
    facts, chosen, churn = request.field.facts, request.chosen, request.of(ChurnOptions)
    if chosen is None:
        levels, about = torch.tensor(facts.model.schedule, dtype=torch.float64), "as trained"
        solver, options = request.given.get("solver", "euler"), request.of(MethodOptions)
    else:
        levels, about, solver, options = chosen.sigmas, chosen.about, chosen.solver, dict(chosen.options)
    check_elementwise(solver, options, churn.get("S_churn"))
    afs = {"afs": True} if request.given.get("afs") or (chosen is not None and chosen.afs) else {}
    refuse_guess(bool(afs), facts.start == "exact")
    if churn.get("S_churn") and afs:
        raise ValueError(
            "--afs guesses the drift before the first step, where --S_churn adds noise: leave one of them out"
        )
    if churn.get("S_churn") and facts.start == "exact":
        raise ValueError("noise can be added along the family edm only: leave out --S_churn")
    if request.to_zero:
        levels = torch.cat([levels, torch.zeros(1, dtype=torch.float64)])
    if facts.start == "exact" and levels[0] < math.inf:
        levels = torch.cat([torch.full([1], math.inf, dtype=torch.float64), levels])
    entry, steps = SOLVERS[solver], len(levels) - 1
    nfe = _nfe(entry, levels, request.to_zero, **afs)
    v, c = coefficient_cost(facts.model)
    share = f"{c / v:.2f}"
    return Plan(
        kind="elementwise",
        solver=solver,
        sigmas=levels,
        sampler=functools.partial(sample_mac, sigmas=levels, solver=solver),
        title=f"{solver}, {count_of(steps, 'step')}{said(options | churn | afs)}",
        schedule=f"{about}: {shown_levels(levels)}, for every element as the coefficient network says",
        options={**settled(entry, options), **churn_of(churn), **afs},
        steps=steps,
        each=entry.evaluations,
        extra=nfe - steps * entry.evaluations,
        notes=(
            ("Cost", f"{nfe} + {share} network evaluations per sample: the coefficient network costs {share}"),
            *(("Note", note) for note in (chosen.notes if chosen is not None else ())),
        ),
        stochastic=churn.get("S_churn", 0) > 0,
        chosen=chosen,
    )


def _nfe(entry: Solver, levels: Tensor, to_zero: bool, **ends: bool) -> int:
    """Evaluations of the model: from infinite sigma the first step is one, whatever the solver."""
    at_once = int(levels[0] == math.inf)
    steps = len(levels) - at_once
    return at_once + (entry.nfe(steps, ends_at_zero=to_zero, **ends) if steps > 1 else 0)
