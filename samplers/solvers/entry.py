"""The registry entry of a solver. Whoever asks for the names of solvers alone does not wait for torch."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


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
        taken = {}
        for key, value in options.items():
            if key not in self.options:
                takes = f"it takes {', '.join(self.options)}" if self.options else "it takes none"
                raise ValueError(f"solver '{self.name}' has no option {key}: {takes}")
            if isinstance(self.options[key], int | float) and not isinstance(value, int | float):
                raise ValueError(f"{key}={value!r} is not possible with solver '{self.name}': give a number")
            allowed = self.allowed.get(key)
            found = [a for a in allowed or () if a == value and isinstance(a, bool) >= isinstance(value, bool)]
            if allowed is not None and not found:
                raise ValueError(
                    f"{key}={value!r} is not possible with solver '{self.name}': "
                    f"choose from {', '.join(str(a) for a in allowed)}"
                )
            taken[key] = found[0] if found else value  # 3 for the 3.0 of a file
        return {**self.options, **taken}

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
