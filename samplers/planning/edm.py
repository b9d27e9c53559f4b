"""Plans of EDM's samplers: `steps` N means N noise levels and a last step to 0 (Karras et al. 2022, arXiv 2206.00364).

The general form, its ablation sampler, is planned where another solver, discretization, schedule or scaling is meant.
"""

from __future__ import annotations

from samplers.planning.base import Plan, Request, churn_of, count_of, said, shown_levels
from samplers.planning.options import ChurnOptions, EDMSamplerOptions, flag
from samplers.schedules.edm import general_levels, general_range
from samplers.solvers.churn import ablation_sampler, edm_sampler

FORMS = {"solver": "heun", "disc": "edm", "form": "linear", "scaling": "none"}  # EDM's own; others: the general form
NAMES = {"disc": "discretization", "form": "schedule"}  # of options -> of arguments


def plan_edm(request: Request) -> Plan:
    """The EDM sampler, or its general form where that is asked for.

    Raises:
        ValueError: another solver than euler or heun, `rho` where it shapes nothing, levels that are not possible.
    """
    given, churn = request.given, request.of(ChurnOptions)
    solver = given.get("solver", "heun")
    if solver not in ("euler", "heun"):
        name = next(n for n in given if n in ("form", *request.of(EDMSamplerOptions, ChurnOptions)))
        instead = "say --num-steps" if name == "steps" else "leave it out"
        raise ValueError(
            f"{flag(name)} belongs to EDM's samplers, which know the solvers euler and heun: "
            f"{instead} with --solver={solver}"
        )
    if "rho" in given and given.get("disc", "edm") != "edm":
        raise ValueError(f"--rho shapes the time steps of --disc=edm, not of --disc={given['disc']}")
    forms = {**FORMS, **{name: given[name] for name in FORMS if name in given}}
    general = forms != FORMS
    count, ends = given.get("steps", 18), (given.get("sigma_min"), given.get("sigma_max"))
    low, high = general_range(request.field.facts, count, *ends, forms["disc"])
    how = {"num_steps": count, "sigma_min": low, "sigma_max": high, "rho": given.get("rho", 7)}
    levels = general_levels(request.field, **how, discretization=forms["disc"])
    renamed = {NAMES.get(name, name): value for name, value in forms.items()}
    shown = {name: value for name, value in renamed.items() if name != "solver"}
    steps = len(levels) - 1
    return Plan(
        kind="edm",
        solver=solver if general else "edm",
        sigmas=levels,
        sampler=ablation_sampler if general else edm_sampler,
        title=f"EDM{' general' * general}, {solver}, {count_of(steps, 'step')}{said(churn)}",
        schedule=(said(shown)[2:] + ": " if general else "") + shown_levels(levels),
        options={**how, **(renamed if general else {}), **churn_of(churn), "start": request.start},
        steps=steps,
        each=2 if solver == "heun" else 1,
        extra=-1 if solver == "heun" else 0,
        stochastic=churn.get("S_churn", 0) > 0,
    )
