"""What `samplers.planning.plan` decides for a network that chooses its own noise levels
(`samplers.solvers.elementwise`).

By default Euler along the nominal schedule that the network was trained with, the last step to 0; any solver and any
time stamps can be asked for instead, and added noise with solvers of one step.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from samplers.field import Field
from samplers.planning.levels import CHURN, DEFAULT_SOLVER, FORMULA, choose_stamps, flag
from samplers.solvers.base import Solver
from samplers.solvers.elementwise import ONE_STEP, coefficient_cost, sample_mac
from samplers.solvers.table import SOLVERS

__all__ = ["mac_plan"]

EDM_ONLY = ("disc", "form", "scaling", "rho")
GRID = (*FORMULA, "schedule", "nfe", "t_steps", "dp")


def mac_plan(net: Any, given: dict[str, Any], to_zero: bool, **search: Any) -> dict[str, Any]:
    """Arguments of the `Plan` for a network (or its field).

    Args:
        given: the options that were asked for, without guidance.
        to_zero: take a last step to noise level 0.
        search: for a schedule search, see `build_plan`.

    Raises:
        ValueError: options that do not go together.
    """
    inner = net.net if isinstance(net, Field) else net
    if wrong := [name for name in EDM_ONLY if name in given]:
        raise ValueError(
            f"{flag(wrong[0])} belongs to EDM's samplers, but this network chooses its noise levels itself: leave it "
            "out, or give --steps to sample its denoiser without them"
        )
    churn = {name: given[name] for name in CHURN if name in given}
    given = {name: value for name, value in given.items() if name not in (*CHURN, "denoise_to_zero")}
    if any(name in given for name in GRID):
        stamps = choose_stamps(net, {"solver": DEFAULT_SOLVER} | given, {}, **search)
        sigmas, about, solver, options = stamps.sigmas, stamps.about, stamps.solver, dict(stamps.options)
    else:
        sigmas, about = torch.tensor(inner.schedule, dtype=torch.float64), "as trained"
        solver, options = given.get("solver", "euler"), {}
    entry = SOLVERS[solver]
    options |= {n: v for n, v in given.items() if n in entry.options}
    if unknown := [n for n in given if n not in (*options, *GRID, "solver", "coeff", "afs") and n not in entry.options]:
        entry.resolve({unknown[0]: given[unknown[0]]})
    entry.resolve(options)
    if entry.adaptive or entry.stochastic:
        raise ValueError(
            f"solver '{solver}' takes single noise levels, and this network chooses maps: use euler or heun"
        )
    if churn.get("S_churn") and solver not in ONE_STEP:
        raise ValueError(f"--S_churn goes with solvers of one step, {', '.join(ONE_STEP)}, not with {solver}")
    afs = {"afs": True} if given.get("afs") else {}
    if to_zero:
        sigmas = torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])
    if getattr(inner, "start", "scaled") == "exact" and sigmas[0] < math.inf:
        sigmas = torch.cat([torch.full([1], math.inf, dtype=torch.float64), sigmas])
    nfe = _nfe(entry, sigmas, to_zero, **afs, **options)
    v, c = coefficient_cost(inner)
    said = "".join(f", {name} {value}" for name, value in (options | churn | afs).items())
    levels = ", ".join(f"{s:.4g}" for s in sigmas.tolist())
    return {
        "solver": solver,
        "sigmas": sigmas,
        "nfe": nfe,
        "summary": (
            ("Solver", f"{solver}, {len(sigmas) - 1} steps{said}"),
            ("Schedule", f"{about}: {levels}, for every element as the coefficient network says"),
            ("NFE", f"{nfe} network evaluation{'' if nfe == 1 else 's'} per image"),
            ("Cost", f"{nfe} + {c / v:.2f} network evaluations per image: the coefficient network costs {c / v:.2f}"),
        ),
        "run": functools.partial(_run, sigmas=sigmas, solver=solver, **options, **churn, **afs),
        "stochastic": churn.get("S_churn", 0) > 0,
    }


def _nfe(entry: Solver, sigmas: Tensor, to_zero: bool, **options: Any) -> int:
    """From infinite sigma the first step is one evaluation, whatever the solver."""
    at_once = int(sigmas[0] == math.inf)
    steps = len(sigmas) - at_once
    return at_once + (entry.nfe(steps, ends_at_zero=to_zero, **options) if steps > 1 else 0)


def _run(net: Any, noise: Tensor, class_labels: Tensor | None, **options: Any) -> Tensor:
    sigmas = options.pop("sigmas")
    return sample_mac(net, noise.double(), sigmas, class_labels=class_labels, **options)
