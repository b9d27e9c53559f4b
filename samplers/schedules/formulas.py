"""Noise schedules: `num_steps` levels sigma from sigma_max down to sigma_min, float64.

With u_i = i / (num_steps - 1):

- `polynomial`: (smax^(1/rho) + u (smin^(1/rho) - smax^(1/rho)))^rho (Karras et al. 2022, arXiv 2206.00364, Eq. 5).
- `logsnr`: geometric, equal steps in -log sigma (Lu et al. 2022, arXiv 2206.00927).
- `time_uniform`: tau = (1 + u (eps^(1/rho) - 1))^rho in the time of a variance-preserving process
  (`VP.through`); rho = 1 is uniform, 2 quadratic (Song et al. 2021, arXiv 2011.13456; Zhang and Chen 2023, arXiv
  2204.13902).
- `discrete`: the same in the time of the model's own table of noise levels. The network (or its wrapper) has the
  methods `sigma(t)`, from time in [0, 1] to noise level, and its inverse `sigma_inv(sigma)`;
  `torch_utils.noise_table` has them.

Lists that others published are in `samplers.schedules.published`; `get_schedule` knows both by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from samplers.field import Facts
from samplers.path import VE, VP
from samplers.schedules.published import PUBLISHED

VP_EPS = 1e-3  # the VP time of sigma_min; sigma_max is at time 1


def polynomial(u: Tensor, start: float, end: float, rho: float) -> Tensor:
    """Values from `start` at u = 0 to `end` at u = 1, in equal steps of the power 1 / rho."""
    return (start ** (1 / rho) + u * (end ** (1 / rho) - start ** (1 / rho))) ** rho


def _logsnr(u: Tensor, sigma_min: float, sigma_max: float, rho: float, facts: Facts) -> Tensor:
    return torch.exp(math.log(sigma_max) + u * (math.log(sigma_min) - math.log(sigma_max)))


def _time_uniform(u: Tensor, sigma_min: float, sigma_max: float, rho: float, facts: Facts) -> Tensor:
    return VP.through(sigma_min, sigma_max, VP_EPS).level_at(polynomial(u, 1.0, VP_EPS, rho))


def _discrete(u: Tensor, sigma_min: float, sigma_max: float, rho: float, facts: Facts) -> Tensor:
    table = facts.noise_table
    if table is None:
        raise ValueError(
            "the discrete schedule follows the model's own table of noise levels, and this model has none: "
            "use polynomial, logsnr or time_uniform"
        )
    ends = torch.tensor([sigma_min, sigma_max], dtype=torch.float64)
    t_min, t_max = torch.as_tensor(table.sigma_inv(ends)).double().cpu().tolist()
    return torch.as_tensor(table.sigma(polynomial(u, t_max, t_min, rho))).double().cpu()


# name -> (u [num_steps] in [0, 1], sigma_min, sigma_max, rho, facts) -> levels
FORMULAS: dict[str, Callable[[Tensor, float, float, float, Facts], Tensor]] = {
    "polynomial": lambda u, sigma_min, sigma_max, rho, facts: polynomial(u, sigma_max, sigma_min, rho),
    "logsnr": _logsnr,
    "time_uniform": _time_uniform,
    "discrete": _discrete,
}

# every name that `get_schedule` knows -> what it is, in words
SCHEDULES: dict[str, str] = {
    "polynomial": "polynomial in sigma with exponent rho (EDM)",
    "logsnr": "equal steps in log sigma",
    "time_uniform": "steps in the time of a variance-preserving process, exponent rho",
    "discrete": "steps in the time of the model's own noise table, exponent rho",
    **{name: entry.about for name, entry in PUBLISHED.items()},
}


def get_schedule(
    num_steps: int,
    sigma_min: float | None = 0.002,
    sigma_max: float | None = 80,
    schedule_type: str = "polynomial",
    schedule_rho: float = 7,
    net: Any = None,
) -> Tensor:
    """Noise levels by formula or by the name of a published list.

    Args:
        num_steps: levels, one more than the steps between them.
        sigma_min, sigma_max: ends of the schedule, in units of the data in [-1, 1]; drawn into the range of `net` where
            that is narrower; None: that range (0.002 and 80 where it is open). Published lists have their own ends.
        schedule_type: key of `SCHEDULES`.
        schedule_rho: exponent; of polynomial, time_uniform and discrete.
        net: the network or its field; discrete needs its noise table.

    Returns:
        `[num_steps]` float64 on the CPU, strictly falling.

    Raises:
        ValueError: unknown name, `num_steps` below 2 or not published, an empty range, rho not positive, a published
            list for other noise levels than the network's.
    """
    facts = Facts.of(net)
    if num_steps < 2:
        raise ValueError(f"num_steps={num_steps} leaves no step to take: give 2 or more noise levels")
    if schedule_type in PUBLISHED:
        entry = PUBLISHED[schedule_type]
        return _check_range(entry.levels(num_steps), schedule_type, facts, entry.whole)
    if schedule_type not in FORMULAS:
        known = f"{', '.join(FORMULAS)}, or a published list, as {', '.join(list(PUBLISHED)[:3])}"
        raise ValueError(f"there is no schedule '{schedule_type}': give a file (.json), {known}")
    if schedule_rho <= 0:
        raise ValueError(f"schedule_rho={schedule_rho:g} must be positive")
    lowest, highest = facts.sigma_min, facts.sigma_max
    sigma_min = max(lowest or 0.002 if sigma_min is None else sigma_min, lowest)
    sigma_max = min((highest if highest < math.inf else 80.0) if sigma_max is None else sigma_max, highest)
    if not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"the range of noise levels from sigma_min={sigma_min:g} to sigma_max={sigma_max:g} is empty: "
            "give 0 < sigma_min < sigma_max"
            + (f" within {lowest:g} to {highest:g}, the range of the network" if net is not None else "")
        )
    u = torch.arange(num_steps, dtype=torch.float64) / (num_steps - 1)
    return FORMULAS[schedule_type](u, float(sigma_min), float(sigma_max), schedule_rho, facts)


def _check_range(levels: Tensor, name: str, facts: Facts, whole: bool) -> Tensor:
    lowest, highest = facts.sigma_min, facts.sigma_max
    # Published levels are rounded to 4 decimals.
    outside = levels[0] > highest * (1 + 1e-3) or levels[-1] < lowest * (1 - 5e-3)
    another = facts.model is not None and not (isinstance(facts.path, VE) and levels[0] > highest * (1 - 1e-3))
    if outside or (whole and another):
        raise ValueError(
            f"schedule '{name}' runs from {levels[0]:g} to {levels[-1]:g}, {'outside of' if outside else 'unlike'} the "
            f"network's range {lowest:g} to {highest:g}: it was made for another model"
        )
    return levels
