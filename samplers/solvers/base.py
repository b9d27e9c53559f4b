"""What every solver shares: the record of a step, the registry entry, noise levels, and linear updates of the state.

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

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
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
    "Levels", "Scalar", "Solver", "Step", "analytical_first", "combine", "evaluate", "minus", "network_levels",
    "read_levels", "recorded", "require_ve", "steps_from_data", "towards", "traced_estimate",
]  # fmt: skip


class Step(NamedTuple):
    """What `trace` is given once per step: the state before the step and the first estimates used in it."""

    i: int
    level: Tensor  # [] or the shape of the map, as given to the network
    x: Tensor  # [B, ...]
    data: Tensor  # [B, ...] clean estimate
    drift: Tensor  # [B, ...] dx/ds


@dataclass(frozen=True)
class Solver:
    """Registry entry of a solver: what cannot be read from its function.

    Attributes:
        name: key in `SOLVERS`, and the function's name.
        module: the file below `samplers/solvers` that defines it. It is imported when the solver is first asked about:
            who plans, searches or prints help depends on this table, not on the arithmetic of every solver.
        allowed: the values an option may take, where they can be listed; `max_order` always can.
        evaluations: network evaluations per step.
        adaptive: it chooses its steps; of the levels it is given only the ends count.
        reaches_zero: where a velocity in its own time is defined at 0, the step that ends there is as any other.
    """

    name: str
    module: str
    allowed: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    evaluations: int = 1
    adaptive: bool = False
    reaches_zero: bool = False

    @cached_property
    def fn(self) -> Callable[..., Tensor]:
        """The solver function."""
        return getattr(importlib.import_module(f"samplers.solvers.{self.module}"), self.name)

    @cached_property
    def _keywords(self) -> dict[str, Any]:
        """Keyword-only parameters of the function with their defaults, less those that a `partial` has filled."""
        filled = getattr(self.fn, "keywords", {})
        parameters = inspect.signature(self.fn).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in filled}

    @cached_property
    def options(self) -> dict[str, Any]:
        """The solver's own options with their defaults."""
        return {name: default for name, default in self._keywords.items() if name not in ("first", "rng", "trace")}

    @property
    def stochastic(self) -> bool:
        """The function draws noise from the keyword `rng`."""
        return "rng" in self._keywords

    def adds_noise(self, options: Mapping[str, Any]) -> bool:
        """Whether the function draws noise when it is told these options."""
        told = {**self.options, **options}
        amounts = [told[name] for name in ("S_churn", "tau") if name in told]
        return self.stochastic and (not amounts or max(amounts) > 0)

    @property
    def takes_first(self) -> bool:
        """The function accepts `first`, so that AFS is possible."""
        return "first" in self._keywords

    @property
    def max_order(self) -> int:
        """The highest order of the method."""
        return max(self.allowed.get("max_order", (self.evaluations,)))

    def resolve(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """`options` completed by the defaults.

        Raises:
            ValueError: an option this solver does not take, or a value it does not allow.
        """
        for key, value in options.items():
            if key not in self.options:
                takes = f"it takes {', '.join(self.options)}" if self.options else "it takes none"
                raise ValueError(f"solver '{self.name}' has no option {key}: {takes}")
            if isinstance(self.options[key], int | float) and not isinstance(value, int | float):
                raise ValueError(f"{key}={value!r} is not possible with solver '{self.name}': give a number")
            allowed = self.allowed.get(key)
            if allowed is not None and value not in allowed:
                raise ValueError(
                    f"{key}={value!r} is not possible with solver '{self.name}': "
                    f"choose from {', '.join(str(a) for a in allowed)}"
                )
        return {**self.options, **options}

    def nfe(
        self,
        num_steps: int,
        afs: bool = False,
        denoise_to_zero: bool = False,
        ends_at_zero: bool = False,
        **options: Any,
    ) -> int:
        """Network evaluations per sample, known before running.

        Args:
            num_steps: noise levels, one more than the steps between them.
            afs: the first evaluation is replaced by a formula.
            denoise_to_zero: one more evaluation after the last step.
            ends_at_zero: the last level is 0, reached by a first-order step.
            options: the solver's own; checked, none changes the count.

        Raises:
            ValueError: an adaptive solver, whose count is only known after running, or options that do not fit.
        """
        self.resolve(options)
        if self.adaptive:
            raise ValueError(
                f"solver '{self.name}' chooses its steps while it runs, so its network evaluations are not known "
                "before: choose a solver of fixed steps, or read the count it reports afterwards"
            )
        self.check_first(afs)
        if num_steps < 2:
            raise ValueError(f"num_steps={num_steps} leaves no step to take: give 2 or more noise levels")
        saved = (self.evaluations - 1 if ends_at_zero else 0) + afs
        return self.evaluations * (num_steps - 1) - saved + denoise_to_zero

    def check_first(self, afs: bool) -> None:
        """A ValueError where AFS is asked of a solver that cannot start from a known estimate."""
        if afs and not self.takes_first:
            raise ValueError(f"solver '{self.name}' cannot start from the analytical first step: leave out afs")


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
    trace: Callable[[Step], Any] | None = None,
    i: int = 0,
) -> Tensor:
    """The clean estimate alone, or the one known, shown to `trace` as step i; perhaps in the network's own dtype."""
    if data is None:
        data = field.prediction(x, level) if field.predicts == "data" else field.data(x, level)
    return data if trace is None else evaluate(field, x, level, data.to(x.dtype), trace, i)[0]


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
