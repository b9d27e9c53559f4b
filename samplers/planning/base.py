"""Plan: a sampler with everything about it decided, as data; what builders of plans are given and share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from samplers.field import Field, as_field
from samplers.fusion import Fusion, Fusion2024, Fusion2025, fused
from samplers.guidance import guide
from samplers.snapping import snapped
from samplers.solvers.entry import Solver
from samplers.solvers.noise import Churn
from torch_utils.rng import TorchRNG


@dataclass(frozen=True, eq=False)
class ChosenLevels:
    """Noise levels and the solver that steps over them: a schedule file and a calibration bring both.

    Attributes:
        sigmas: `[N]` float64 on the CPU, falling.
        about: where they come from, in words.
        solver: key of `SOLVERS`.
        options: the solver's own, those asked for and those of a schedule file.
        afs: start with the analytical first step.
        notes: further sentences to show.
        found: what a search or calibration found, if there was one.
    """

    sigmas: Tensor
    about: str
    solver: str
    options: Mapping[str, Any] = field(default_factory=dict)
    afs: bool = False
    notes: tuple[str, ...] = ()
    found: Any = None


@dataclass(frozen=True, eq=False)
class Request:
    """What a builder makes a plan of.

    Attributes:
        field: the model, guided if it is to be.
        given: the options that were asked for, by name.
        start: "exact" or "scaled", of sampling in sigma coordinates.
        chosen: noise levels, of kinds that step over some; None: those that the network was trained with.
        drift: what drives the field, of models of two heads that are asked for one.
        to_zero: False where a last step to 0 or to the clean estimate was refused by name.
    """

    field: Field
    given: Mapping[str, Any]
    start: str = "scaled"
    chosen: ChosenLevels | None = None
    to_zero: bool = True
    drift: Fusion | Fusion2024 | Fusion2025 | None = None

    def of(self, *families: type) -> dict[str, Any]:
        """Those options of some families (dataclasses of `samplers.planning.options`) that were asked for."""
        names = {f.name for family in families for f in dataclasses.fields(family)}
        return {name: value for name, value in self.given.items() if name in names}


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """Call it like `plan(net, noise, class_labels, rng=...)`.

    Attributes:
        kind: key of `samplers.planning.plan.KINDS`.
        solver: its name, for file names.
        sigmas: the noise levels (native: times), noisy to clean, float64 on the CPU.
        sampler: `sampler(field, noise, trace=..., **options)`, with `rng` where `stochastic`.
        options: everything that the sampler is told besides the levels, defaults too; plain values.
        title, schedule: the solver, and where the levels come from, in words.
        steps: None where the solver chooses them.
        each: evaluations of the model per step.
        extra: evaluations besides those of the steps, negative where steps are cheaper.
        calls: network evaluations behind an evaluation of the model.
        notes: further things to say, as (name, text).
        stochastic: the sampler adds noise.
        chosen: where the levels come from, of kinds that step over some.
        prior: start distribution by name, for whoever draws the noise (`samplers.run.generate`); None: unit noise.
        guidance: arguments of `samplers.guidance.guide`.
        drift: of a model of two heads, instead of its own field.
        snap: parts of a shape exist or do not in every clean estimate.
        evaluations: network evaluations of every image so far, where the solver chooses its steps.
    """

    kind: str
    solver: str
    sigmas: Tensor
    sampler: Callable[..., Tensor]
    title: str
    schedule: str
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None
    each: int = 1
    extra: int = 0
    calls: int = 1
    notes: tuple[tuple[str, str], ...] = ()
    stochastic: bool = False
    chosen: ChosenLevels | None = None
    prior: str | None = None
    guidance: Mapping[str, Any] = field(default_factory=dict)
    drift: Fusion | Fusion2024 | Fusion2025 | None = None
    snap: bool = False
    evaluations: list[int] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Sampling begins with an evaluation at infinite sigma."""
        return self.options.get("start") == "exact"

    @property
    def nfe(self) -> int | None:
        """Network evaluations per sample; None where the solver chooses its steps."""
        return None if self.steps is None else self.calls * (self.exact + self.steps * self.each + self.extra)

    def __call__(
        self,
        net: Field | Callable[..., Tensor],
        noise: Tensor,
        class_labels: Tensor | None = None,
        *,
        rng: TorchRNG | None = None,
        trace: Callable[[Any], Any] | None = None,
    ) -> Tensor:
        """Sample with the network that the plan was made for.

        Args:
            noise: `[B, ...]` that the model starts from.
            class_labels: `[B, label_dim]` or None.
            rng: source of added noise.
            trace: called with a `Step` before each update.

        Returns:
            `[B, ...]` float64.
        """
        model = self.model(net)
        model = model if class_labels is None else model.bind(class_labels, **model.cond)
        source = {"rng": rng} if self.stochastic else {}
        return self.sampler(model, noise.double(), trace=trace, **self.options, **source)

    def model(self, net: Field | Callable[..., Tensor]) -> Field:
        """A network as this plan samples it."""
        guided = guide(as_field(net), **self.guidance)
        guided = guided if self.drift is None else fused(guided, self.drift)
        return snapped(guided) if self.snap else guided

    def record(self) -> dict[str, Any]:
        """Everything that decides an image besides network, seed and class, as plain JSON."""
        return {
            "kind": self.kind,
            "solver": self.solver,
            "levels": _plain(self.sigmas.tolist()),
            "options": _plain(self.options),
            "prior": self.prior,
            "guidance": _plain(self.guidance),
            "drift": self.drift and [type(self.drift).__name__, _plain(dataclasses.asdict(self.drift))],
            **({"binarise": True} if self.snap else {}),
        }

    @property
    def summary(self) -> tuple[tuple[str, str], ...]:
        """What is said before sampling, as (name, text) pairs."""
        rows = [("Solver", self.title), ("Schedule", self.schedule), ("NFE", self._cost()), *self.notes]
        if self.exact:
            rows.append(("Start", "exact, one evaluation at infinite sigma"))
        if self.drift is not None:
            rows.append(("Field", type(self.drift).__name__ + said(dataclasses.asdict(self.drift))))
        if self.snap:
            rows.append(("Parts", "those that exist are decided at every step"))
        if self.prior is not None:
            rows.append(("Prior", self.prior))
        if self.guidance:
            rate = self.guidance.get("guidance_rate")
            between = self.guidance.get("guidance_interval")
            text = self.guidance["guidance_type"] + ("" if rate is None else f", rate {rate:g}")
            channels = self.guidance.get("guidance_channels")
            text += "" if channels is None else f", {'the first ' * (channels != 'all')}{channels} channels"
            text += "" if between is None else f", for noise levels from {between[0]:g} to {between[1]:g}"
            rows.append(("Guidance", text + (", in two calls" if self.guidance.get("cfg_batch") == "split" else "")))
        return tuple(rows)

    def _cost(self) -> str:
        if self.nfe is None:
            return "known after sampling"
        half = self.nfe // self.calls
        kinds = f" ({half} conditional, {half} unconditional)" if self.calls == 2 else ""
        most = "at most " if self.guidance.get("guidance_interval") else ""
        return f"{most}{count_of(self.nfe, 'network evaluation')} per sample{kinds}"

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.summary)
        return "\n".join(f"{name + ':':{width + 2}}{value}" for name, value in self.summary)


def _plain(value: Any) -> Any:
    """JSON has neither tuples nor infinity, and writes 7 and 7.0 differently."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if not isinstance(value, float):
        return value
    return str(value) if not math.isfinite(value) else int(value) if value.is_integer() else value


def settled(solver: Solver, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a solver completed by its defaults, so that one spelled out changes no record.

    Raises:
        ValueError: see `Solver.resolve`.
    """
    return {name: value for name, value in solver.resolve(options).items() if value is not None}


def churn_of(given: Mapping[str, float]) -> dict[str, float]:
    """Options of added noise completed by their defaults; none where nothing is added, so that none has an effect."""
    return dataclasses.asdict(Churn(**given)) if given.get("S_churn") else {}


def count_of(n: int, noun: str) -> str:
    """A number and its noun: 1 step, 2 steps."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def said(options: Mapping[str, Any]) -> str:
    """Options as text, a comma before each."""
    return "".join(f", {name} {value:g}" if isinstance(value, float) else f", {name} {value}"
                   for name, value in options.items())  # fmt: skip


def shown_levels(levels: Tensor) -> str:
    """Levels to read; of many, the first and the last."""
    shown = [f"{v:.4f}".rstrip("0").rstrip(".") if 0.01 <= v < math.inf else f"{v:.4g}" for v in levels.tolist()]
    return ", ".join(shown if len(shown) <= 24 else [*shown[:3], "...", *shown[-3:]])
