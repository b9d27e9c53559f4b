"""Solvers in the form of k-diffusion: `sample_x(model, x, sigmas, extra_args=None, callback=None, disable=None)`.

`model(x, sigma, **extra_args)` returns the denoised estimate. `sample_schedule` runs the schedule file that this module
was exported from, on the levels of `get_sigmas` or on a part of them; the others run one solver on any levels. The last
level may be 0 or not.

Files for flow models take times in [0, 1] as levels, x = (1 - t) data + t noise, as tools of this form do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from samplers.export.core import FORMULAS, Run, looks, program
from samplers.export.lookup import level_at, levels_by_steps, levels_for, schedule_program, time_at

__all__ = ["SAMPLERS", "STEPS", "get_sigmas", "sample_any", "sample_schedule"]

SCHEDULE: dict[str, Any] = {}  # the content of a schedule file, written here by the exporter
STEPS: list[int] = list(levels_by_steps(SCHEDULE)) if SCHEDULE else []  # of the file's schedules


def _is_flow() -> bool:
    return SCHEDULE.get("path") == "linear"


def get_sigmas(steps: int | None = None, device: str | torch.device = "cpu") -> Tensor:
    """Levels of the file's schedule of `steps` evaluations per evaluation of its solver, float32."""
    levels = levels_for(SCHEDULE, steps)
    if _is_flow():
        levels = [time_at(s) for s in levels]
    return torch.tensor(levels, dtype=torch.float32, device=device)


@torch.no_grad()
def _sample(
    write: Callable[[Sequence[float]], Sequence[Any]],
    order: int,
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], Any] | None = None,
    disable: bool | None = None,
    threshold: bool = False,
) -> Tensor:
    levels = torch.as_tensor(sigmas).double().tolist()
    flow = _is_flow()
    if flow:
        if levels[0] > 1:
            raise ValueError(
                "this schedule file was made for a flow model, whose levels are times of at most 1, and the list "
                f"begins at {levels[0]:g}: sample a flow model, or export a file that was made for this one"
            )
        levels = [level_at(t) for t in levels]

    def alpha(level: float) -> float:  # from data + level * noise to the model's own state
        return 1.0 if level == math.inf or not flow else 1 / (1 + level)

    lines = write(levels)
    run = Run(lines, threshold, lambda: torch.randn_like(x))
    state = run.begin(x / alpha(levels[0]))
    ahead = int(levels[0] == math.inf) if order > 1 else 0  # one evaluation, before steps of several
    for n in tqdm(range(len(looks(lines))), disable=disable):
        level = run.line.level
        sigma = time_at(level) if flow else level
        own = state * alpha(level)
        data = model(own, sigma * x.new_ones([len(x)]), **(extra_args or {}))
        if callback is not None and (n < ahead or (n - ahead) % order == 0):
            i = n if n < ahead else ahead + (n - ahead) // order
            at = torch.tensor(sigma, dtype=x.dtype, device=x.device)
            callback({"x": own, "i": i, "sigma": at, "sigma_hat": at, "denoised": data})
        state = run.feed(state, data)
    return state * alpha(levels[-1])


def sample_schedule(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], Any] | None = None,
    disable: bool | None = None,
) -> Tensor:
    """Sample as the schedule file says, from `x` at `sigmas[0]` to `sigmas[-1]`.

    Coefficients are looked up by level; levels that a calibrated file does not know are sampled without, and a line
    says so.
    """
    threshold = SCHEDULE["options"].get("thresholding") == "dynamic"
    write, order = partial(schedule_program, SCHEDULE), FORMULAS[SCHEDULE["solver"]][1]
    return _sample(write, order, model, x, sigmas, extra_args, callback, disable, threshold)


def sample_any(
    solver: str,
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], Any] | None = None,
    disable: bool | None = None,
    **options: Any,
) -> Tensor:
    """Sample with one solver on any levels; `options` are the solver's own."""

    def write(levels: Sequence[float]) -> Sequence[Any]:
        return program(solver, levels, **options)

    return _sample(write, FORMULAS[solver][1], model, x, sigmas, extra_args, callback, disable)


# sample_euler, sample_ipndm, ...: one for every solver that takes any levels
SAMPLERS = {f"sample_{name}": partial(sample_any, name) for name in FORMULAS if name != "calibrated"}
globals().update(SAMPLERS)
