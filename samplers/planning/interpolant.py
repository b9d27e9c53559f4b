"""Plans of the stochastic interpolant sampler, for any model (`samplers/solvers/interpolant.py`).

`num_steps` N means N times in equal distance, then the last step: N evaluations, 2 N - 1 of the second order. A model
in sigma coordinates is seen on the linear path, no further out than its noise levels reach.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from samplers.field import Field
from samplers.path import VE, VP, Linear
from samplers.planning.base import Plan, Request, count_of
from samplers.planning.loss_table import LossTable
from samplers.planning.model_options import DIFFUSION_FORMS
from samplers.recipe import path_name
from samplers.schedules.formulas import get_schedule
from samplers.solvers.base import Step
from samplers.solvers.interpolant import LEARNT, interpolant_sde, time_interval
from samplers.start import refuse_score
from torch_utils.rng import TorchRNG

DEFAULT_NUM_STEPS = 250
LAST_STEP_SIZE = 0.04  # ten steps of the published 250
NEAREST = 1e-3  # to the data, without a last step: there is no score at 0


def on_a_path(field: Field) -> Field:
    """A model in a time of its own: as it is, or on the linear path."""
    own = field.native()
    return own.on(Linear()) if isinstance(own.path, VE) else own


def reached_times(field: Field) -> tuple[float, float]:
    """Times at the noise and at the data that the flow of a model `on_a_path` covers."""
    high, low = time_interval(field.path, field.predicts)
    if field.facts.native is None:
        return high, low
    top, bottom = field.path.time_of(get_schedule(2, net=field)).tolist()
    return top, bottom


def sample_interpolant(
    field: Field,
    noise: Tensor,
    times: Tensor,
    *,
    rng: TorchRNG | None = None,
    trace: Callable[[Step], Any] | None = None,
    **options: Any,
) -> Tensor:
    """Sample from unit noise by `interpolant_sde` with its `options`.

    Args:
        noise: `[B, ...]`. A model of finite noise levels starts from as much of it as its first time has.
        times: as `interpolant_sde` takes its levels.
    """
    field = on_a_path(field)
    if field.facts.native is not None:
        noise = noise * field.path.sigma(times[0]).item()
    return interpolant_sde(field, noise, times, rng=rng, trace=trace, **options)


def plan_interpolant(request: Request) -> Plan:
    """Noise of any amount along equal steps of time, and the step that ends it.

    Raises:
        ValueError: evaluations that no number of steps makes, times that do not fall, a model without score.
    """
    given, field = request.given, on_a_path(request.field)
    refuse_score(field, "the stochastic interpolant sampler")
    last_step = given.get("last_step", "mean")
    ends = last_step != "none"
    if not ends and "last_step_size" in given:
        raise ValueError("--last-step-size is the length of the last step, and --last-step=none leaves that out")
    if (order := given.get("sde_order", 1)) not in (1, 2):
        raise ValueError(f"--sde-order={order} is not possible: 1 is Euler's step, 2 Heun's")
    second_order = order == 2
    form, learnt, notes = _form(given, field)
    size = given.get("last_step_size", LAST_STEP_SIZE) if ends else 0.0
    count = _count(given, 1 + second_order, ends)
    times = _times(field, form, size, given.get("sample_eps"), count)
    norm, steps = given.get("diffusion_norm", 1.0), len(times) - 1
    amount = f"{form} of norm {norm:g}" + (f", eta {learnt['eta']:g}" if learnt else "")
    levels = torch.cat([times, torch.zeros(1, dtype=torch.float64)]) if ends else times
    return Plan(
        kind="sde",
        solver="sde",
        sigmas=levels,
        sampler=functools.partial(sample_interpolant, times=levels),
        title=f"stochastic interpolant, order {order}, diffusion {amount}, last step {last_step}"
        + f" of {size:g}" * ends,
        schedule=f"{count_of(steps, 'equal step')} from t = {times[0]:g} to {times[-1]:g}",
        options={"form": form, "norm": norm, "second_order": second_order, "last_step": last_step, **learnt},
        steps=steps,
        each=1 + second_order,
        extra=int(ends),
        stochastic=True,
        notes=notes,
    )


def _form(given: dict[str, Any], field: Field) -> tuple[str, dict[str, Any], tuple[tuple[str, str], ...]]:
    """The form of the noise, of one that follows losses eta and the losses, and what is to be said of these."""
    file, eta = given.get("diffusion_losses"), given.get("diffusion_eta")
    form = DIFFUSION_FORMS[given.get("diffusion_form", LEARNT if file else "sigma")]
    if form == LEARNT and file is None:
        raise ValueError(
            f"--diffusion-form={LEARNT} follows the losses of the model: make a table of them by analyze.py losses, "
            "and give it as --diffusion-losses"
        )
    for name, value in (("losses", file), ("eta", eta)):
        if form != LEARNT and value is not None:
            raise ValueError(f"--diffusion-{name} is of --diffusion-form={LEARNT}, not of {form}: leave it out")
    if form != LEARNT:
        return form, {}, ()
    found = LossTable.load(file)
    if found.path != path_name(field.path):
        raise ValueError(
            f"{file} has losses on the path '{found.path}', and this model is sampled on '{path_name(field.path)}': "
            "give a table of its own"
        )
    other = found.model_hash is not None and found.model_hash != field.weights_hash()
    notes = (("Note", f"{file} has the losses of other weights, which may not be those of these."),) * other
    return form, {"eta": 0.01 if eta is None else eta, "losses": found.pairs}, notes


def _count(given: dict[str, Any], each: int, ends: bool) -> int:
    """Times that the options ask for."""
    if "nfe" not in given:
        return given.get("num_steps", DEFAULT_NUM_STEPS)
    if "num_steps" in given:
        raise ValueError("--num-steps and --nfe both say how many steps: leave one of them out")
    steps, rest = divmod(given["nfe"] - ends, each)
    if rest or steps < 1:
        first = each + ends
        raise ValueError(
            f"--nfe={given['nfe']} is not possible: each step costs {count_of(each, 'evaluation')}"
            f"{', the last one 1' * ends}; give {first}, {first + each}, {first + 2 * each}, ..."
        )
    return steps + 1


def _times(field: Field, form: str, last: float, eps: float | None, count: int) -> Tensor:
    """`[count]` float64 equally spaced times, noisy to clean."""
    if count < 2:
        raise ValueError(f"--num-steps={count} leaves no step to take: give 2 or more times")
    high, low = time_interval(field.path, field.predicts, form=form, last_step=last, eps=eps)
    if field.facts.native is not None and eps is None:  # of a model in sigma coordinates
        top, bottom = reached_times(field)
        high, low = min(high, top), low if last else bottom
    elif eps is not None and isinstance(field.path, VP) and last:
        raise ValueError(
            "--sample-eps is the last time of this model's path without a last step, and changes nothing with one: "
            "leave it out, or say --last-step=none"
        )
    elif eps is not None and not isinstance(field.path, VP):
        high = 1 - eps
    if not last:
        low = max(low, NEAREST)
    if not high > low:
        raise ValueError(
            f"the last step begins at t = {low:g}, where sampling has not begun (t = {high:g}): make it shorter"
        )
    return torch.linspace(high, low, count, dtype=torch.float64)
