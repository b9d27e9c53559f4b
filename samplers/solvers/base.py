"""What every solver shares: the record of a step, noise levels, and linear updates of the state.

A solver is a pure function `fn(field, x, levels, *, first=None, trace=None, **options) -> x`: it integrates
dx/ds = drift(x, s) from `levels[0]` to `levels[-1]` (N+1 noise levels, noisy to clean). It evaluates the network with
whatever gradients the caller has switched on, shows no progress, and never waits for the device inside its loop.

- `first` is the clean estimate at `levels[0]` where it is known already; it saves the first evaluation. The analytical
  first step (AFS; Dockhorn, Vahdat, Kreis 2022, arXiv 2210.05475) is such an estimate.
- `trace` is called with a `Step` before each update.
- A last level of 0 is reached by a first-order step; no network is ever evaluated at level 0.

Coefficients are worked out in float64: as Python numbers when a level is one value for the whole batch, else as maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from samplers.field import Field
from samplers.path import VE
from samplers.schedules.explicit import validate_t_steps
from samplers.solvers.scalar import Scalar
from torch_utils.misc import expand_to

__all__ = [
    "Levels", "Scalar", "Step", "analytical_first", "combine", "evaluate", "minus", "network_levels",
    "read_levels", "recorded", "require_ve", "steps_from_data", "towards", "traced_estimate",
]  # fmt: skip


class Step(NamedTuple):
    """What `trace` is given once per step: the state before the step and the first estimates used in it."""

    i: int
    level: Tensor  # [] or the shape of the map, as given to the network
    x: Tensor  # [B, ...]
    data: Tensor  # [B, ...] clean estimate
    drift: Tensor  # [B, ...] dx/ds


class Levels(NamedTuple):
    """Noise levels read once per solve, N+1 of each.

    Attributes:
        raw: numbers, or float64 tensors in the shape given.
        s: numbers, or float64 tensors that broadcast against the state: for arithmetic.
        label: what the network is given: [] float64 on the state's device, or the map in the state's dtype.
        ends_at_zero: the last level is 0 somewhere.
    """

    raw: list[Scalar]
    s: list[Scalar]
    label: list[Tensor]
    ends_at_zero: bool

    @property
    def steps(self) -> range:
        return range(len(self.s) - 1)

    @property
    def h(self) -> list[Scalar]:
        """`s[i+1] - s[i]`, negative."""
        return [b - a for a, b in pairwise(self.s)]

    @property
    def is_map(self) -> bool:
        return any(isinstance(s, Tensor) for s in self.s)

    def stops_at_zero(self, i: int) -> bool:
        """Step i ends at level 0 and must be of first order."""
        return self.ends_at_zero and i == len(self.s) - 2


def read_levels(levels: Tensor | Sequence[float | Tensor], x: Tensor) -> Levels:
    """Levels in every form that a solver needs.

    Args:
        levels: numbers, `[N+1]`; or `[N+1, B]`, `[N+1, B, 1, 1, 1]`, ... or a list of such maps (a last number 0 is
            allowed in it). Numbers are moved to the host once and must fall strictly, to 0 at the least. Maps stay
            where they are, keep their gradients and are not checked, but for zeros in the last one (one read-back).
        x: the state, `[B, ...]`.

    Raises:
        ValueError: fewer than two levels, numbers that do not fall, maps that do not fit `x`.
    """
    rows = list(torch.atleast_1d(levels).unbind() if isinstance(levels, Tensor) else levels)
    if not any(isinstance(r, Tensor) and (r.ndim or r.requires_grad) for r in rows):
        numbers = levels.tolist() if isinstance(levels, Tensor) else [float(r) for r in rows]
        values: list[Scalar] = validate_t_steps(numbers, zero_end=True).tolist()
        return Levels(values, values, network_levels(values, x), values[-1] == 0)
    if len(rows) < 2:
        raise ValueError(f"{len(rows)} noise levels leave no step to take: give 2 or more")
    ends_at_zero = bool((torch.as_tensor(rows[-1]) == 0).any())
    raw: list[Scalar] = [torch.as_tensor(r, dtype=torch.float64, device=x.device) for r in rows]
    return Levels(raw, [expand_to(r, x) for r in raw], network_levels(raw, x), ends_at_zero)


def network_levels(values: Sequence[Scalar], x: Tensor) -> list[Tensor]:
    """Levels as the network is given them: one transfer for all numbers."""
    if all(isinstance(v, float) for v in values):
        return list(torch.tensor(values, dtype=torch.float64).to(x.device).unbind())
    return [v if v.ndim == 0 else v.to(x.dtype) for v in values]


def evaluate(
    field: Field,
    x: Tensor,
    level: Tensor,
    data: Tensor | None = None,
    *,
    trace: Callable[[Step], Any] | None = None,
    i: int = 0,
) -> tuple[Tensor, Tensor]:
    """Clean estimate and drift by one network call, or by none where `data` is known, shown to `trace` as step i."""
    data, drift = field.data_and_drift(x, level) if data is None else (data, field.velocity_of(data, x, level))
    if trace is not None:
        trace(Step(i, level, x, data, drift))
    return data, drift


def traced_estimate(
    field: Field,
    x: Tensor,
    level: Tensor,
    data: Tensor | None = None,
    *,
    trace: Callable[[Step], Any] | None = None,
    i: int = 0,
) -> Tensor:
    """The clean estimate alone, or the one known, shown to `trace` as step i; perhaps in the network's own dtype."""
    if data is None:
        data = field.prediction(x, level) if field.predicts == "data" else field.data(x, level)
    return data if trace is None else evaluate(field, x, level, data.to(x.dtype), trace=trace, i=i)[0]


def steps_from_data(field: Field) -> bool:
    """The clean estimate is what the network returns and the drift is (x - data) / s: `towards` then makes a step."""
    return field.predicts == "data" and isinstance(field.path, VE)


def recorded(*values: Any) -> bool:
    """A gradient will be asked for through one of the values, so none of them may be written to."""
    return torch.is_grad_enabled() and any(isinstance(v, Tensor) and v.requires_grad for v in values)


def towards(x: Tensor, data: Tensor, share: Scalar) -> Tensor:
    """`x + share * (data - x)`, the Euler step in VE coordinates where share = -h / s: one pass over memory.

    In the dtype of `x`. Data of another dtype are converted once, and the copy becomes the result.
    """
    share = share.to(x.dtype) if isinstance(share, Tensor) else share
    end = data.to(x.dtype)
    if recorded(x, end, share):
        return torch.lerp(x, end, share)
    return torch.lerp(x, end, share, out=torch.empty_like(end) if end is data else end)


def minus(x: Tensor, data: Tensor, spare: Tensor | None = None) -> Tensor:
    """`x - data` in the dtype of `x`, written to `spare` if that is given and nobody asks for gradients."""
    if recorded(x, data):
        return x - data
    out = torch.empty_like(x) if spare is None else spare
    return torch.sub(x, data if data.dtype == x.dtype else out.copy_(data), out=out)


def analytical_first(x: Tensor, s: Scalar) -> Tensor:
    """The clean estimate of AFS: dx/ds = x / sqrt(1 + s^2), exact for data of zero mean and unit variance."""
    scale = 1 - s / (1 + s * s) ** 0.5
    return x * (scale.to(x.dtype) if isinstance(scale, Tensor) else scale)


def combine(x: Tensor, scale: Scalar, weights: Iterable[Scalar], values: Iterable[Tensor]) -> Tensor:
    """`scale * x + sum_k weights[k] * values[k]` in the dtype of `x`, one pass over memory per term."""
    if isinstance(scale, Tensor):
        out, fresh = x * scale.to(x.dtype), True
    else:
        out, fresh = (x, False) if scale == 1 else (x * scale, True)
    for w, v in zip(weights, values, strict=False):
        if isinstance(w, Tensor):
            out = torch.addcmul(out, w.to(x.dtype), v)
        else:
            out = out.add_(v, alpha=w) if fresh else out.add(v, alpha=w)
        fresh = True
    return out


def require_ve(field: Field, solver: str) -> None:
    """A ValueError for a solver whose formulas hold in VE coordinates only."""
    if not isinstance(field.path, VE):
        raise ValueError(
            f"solver '{solver}' works in the coordinates x = data + sigma * noise, "
            f"not on the path {type(field.path).__name__}: pass field.ve()"
        )
