"""The stochastic sampler of interpolants, with any amount of noise along the way, for any field.

    dx = (v + D s) du + sqrt(2 D) dW        in the papers' time u = 1 - t, from noise to data

has the same marginals as the flow v for every D(t) >= 0, s the score (Ma et al. 2024, arXiv 2401.08740, whose w is
2 D). Velocity and score come from one network call. Near the data the score is the ratio of two small numbers, so the
last stretch is one step of its own, from `levels[-2]` to 0:

- "mean": along the drift without noise; "euler": along the flow; "tweedie": to the clean estimate;
- "none": there is none, and the levels end above 0.

D may also follow how well the model has learnt a time (paper, w^{KL,eta}): with L(t) its loss there, as `analyze.py
losses` tabulates it, and q = D of the form "SBDM",

    D = q L / (L + 8 eta q^2)       from w = w_KL L / (L + 2 eta w_KL^2), w = 2 D, w_KL = 2 q

so that little noise is added where q grows without bound, at the noise.

A field in sigma coordinates is seen on the linear path first (`Field.on`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from samplers.choices import LAST_STEPS, LEARNT
from samplers.field import Field
from samplers.path import VE, VP, Path
from samplers.solvers.base import Step, read_levels
from torch_utils.misc import expand_to
from torch_utils.noise_table import interpolate
from torch_utils.rng import TorchRNG

__all__ = ["FORMS", "LAST_STEPS", "LEARNT", "interpolant_sde", "time_interval"]

# D(t) without its norm, of (path, t, norm); published names
FORMS: dict[str, Callable[[Path, Tensor, float], Tensor]] = {
    "constant": lambda path, t, norm: torch.full_like(t, norm),
    "SBDM": lambda path, t, norm: norm * path.score_gain(t),
    "sigma": lambda path, t, norm: norm * path.sigma(t),
    "linear": lambda path, t, norm: norm * t,
    "decreasing": lambda path, t, norm: 0.25 * (norm * torch.cos(math.pi * (1 - t)) + 1) ** 2,
    "increasing-decreasing": lambda path, t, norm: norm * torch.sin(math.pi * t) ** 2,
}

EPS = {"vp": (1e-5, 1e-3), "score": (1e-3, 1e-3), "velocity": (0.0, 0.0)}  # of training and of sampling


def time_interval(
    path: Path,
    predicts: str,
    *,
    form: str | None = None,
    last_step: float = 0.0,
    eps: float | None = None,
    training: bool = False,
) -> tuple[float, float]:
    """Times at the noise and at the data between which a model is trained or sampled, in this project's time.

    Where alpha or sigma is 0, noise or score leave one of the two ends undefined.

    Args:
        predicts: "velocity", "noise", "score" or "data".
        form: of the stochastic sampler; None: the flow.
        last_step: of the stochastic sampler, its length.
        eps: distance from the ends; None: as published, 0 for velocities but with the form SBDM.
        training: the interval of training.
    """
    singular = predicts != "velocity"
    if eps is None and predicts == "data" and form is None and not isinstance(path, VP):
        return 1.0, 0.0 if training else EPS["score"][1]  # defined everywhere; but its velocity not at the data
    if eps is None:
        kind = "vp" if isinstance(path, VP) else "score" if singular or form is not None else "velocity"
        eps = EPS[kind][0 if training else 1]
    clean = last_step if form is not None and last_step else eps
    if isinstance(path, VP):
        return 1.0, clean
    return (1 - eps if singular or form in (None, "SBDM") else 1.0), clean


def _learnt(path: Path, t: Tensor, norm: float, eta: float, table: Tensor) -> Tensor:
    """D of the form LEARNT; of `table [n, 2]` times fall. Finite where q is 0 or without bound."""
    times, losses = table.flip(0).T.contiguous()
    loss = interpolate(t.clamp(times[0].item(), times[-1].item()), times, losses)
    q = path.score_gain(t)
    return norm * loss / (loss / q + 8 * eta * q)


def interpolant_sde(
    field: Field,
    x: Tensor,
    levels: Tensor | Sequence[float | Tensor],
    *,
    form: str = "sigma",
    norm: float = 1.0,
    second_order: bool = False,
    last_step: str = "mean",
    eta: float = 0.01,
    losses: Sequence[Sequence[float]] = (),
    rng: TorchRNG | None = None,
    trace: Callable[[Step], Any] | None = None,
) -> Tensor:
    """Integrate from `levels[0]` down to `levels[-1]`, one evaluation per step, two with `second_order`.

    Args:
        field: a model in its own time, see `Field.on`.
        x: `[B, ...]` at `levels[0]`.
        levels: times that fall; the last is 0, reached by the last step, unless that is "none".
        form, norm: key of FORMS or LEARNT, and its factor.
        second_order: Heun's correction of every step but the last.
        last_step: one of LAST_STEPS.
        eta, losses: of LEARNT: the strength, and pairs (time, loss) from the noisy end to the clean one.
        rng: source of one normal draw like `x` per step but the last, drawn before the network call.
        trace: called with a `Step` before each update.

    Raises:
        ValueError: unknown words, a field in sigma coordinates, levels that do not end as the last step needs.
    """
    forms = (*FORMS, LEARNT)
    if form not in forms or last_step not in LAST_STEPS:
        wrong, known = (form, forms) if form not in forms else (last_step, LAST_STEPS)
        raise ValueError(f"'{wrong}' is unknown: choose from {', '.join(known)}")
    if (form == LEARNT) != (len(losses) > 1):
        raise ValueError(f"the form '{LEARNT}' follows a table of losses, at two times or more, and no other form does")
    if isinstance(field.path, VE):
        raise ValueError(
            "the interpolant sampler steps in time, and this model lives in sigma: pass field.on(Linear())"
        )
    grid = read_levels(levels, x)
    if grid.ends_at_zero != (last_step != "none"):
        raise ValueError(
            f"the last step '{last_step}' needs levels that end {'at' if last_step != 'none' else 'above'} 0"
        )
    rng = TorchRNG(x.device) if rng is None else rng
    path, table = field.path, torch.tensor(losses, dtype=torch.float64)

    def amount(level: Tensor) -> Tensor:
        t = level.double()
        found = _learnt(path, t, norm, eta, table) if form == LEARNT else FORMS[form](path, t, norm)
        return expand_to(found, x).to(x.dtype)

    def slope(x: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity, and drift towards the data, by one call."""
        velocity, noise = field.velocity_and_noise(x, level)
        return velocity, amount(level) * noise / expand_to(path.sigma(level), x).to(x.dtype) + velocity

    for i in grid.steps:
        level, h = grid.label[i], grid.s[i] - grid.s[i + 1]
        last = i == len(grid.steps) - 1 and last_step != "none"
        size = h.to(x.dtype) if isinstance(h, Tensor) else h
        fresh = None if last else rng.randn(x.shape, dtype=x.dtype).to(x.device)
        if second_order and not last:
            x = x + (2 * amount(level) * size) ** 0.5 * fresh
        velocity, drift = slope(x, level)
        if trace is not None:
            trace(Step(i, level, x, field.data_of_velocity(velocity, x, level), velocity))
        if last:
            if last_step == "tweedie":
                return field.data_of_velocity(velocity, x, level)
            return x - size * (drift if last_step == "mean" else velocity)
        if not second_order:
            x = x - size * drift + (2 * amount(level) * size) ** 0.5 * fresh
            continue
        _, corrected = slope(x - size * drift, grid.label[i + 1])
        x = x - 0.5 * size * (drift + corrected)
    return x
