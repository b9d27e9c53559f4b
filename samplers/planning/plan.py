"""From options to a sampler: which solver, over which noise levels, at what cost, known before the first image.

Two families count steps in their own way, and the options say which is meant. EDM's samplers (Karras et al. 2022, arXiv
2206.00364): `steps` N means N noise levels and a last step to sigma = 0. Every solver of `SOLVERS` in the way of GITS
(Chen et al. 2024, arXiv 2405.11326): `num_steps` N means N time stamps that end at sigma_min, no step to 0.

    plan = build_plan(net, SamplerOptions(solver="ipndm", num_steps=7))
    print(plan)
    images = plan(net, noise, class_labels, rng=rng)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from samplers import SOLVERS, sample
from samplers.field import Field, as_field
from samplers.guidance import guide
from samplers.planning.adaptive import adaptive_plan
from samplers.planning.elementwise import mac_plan
from samplers.planning.levels import CHURN, DEFAULT_SOLVER, Stamps, choose_stamps, flag
from samplers.planning.native import native_plan, refuse_for_coupling, start_from_prior, wants_native
from samplers.planning.options import SamplerOptions
from samplers.solvers.churn import SCHEDULE_FORMS, ablation_sampler, edm_sampler, general_levels
from samplers.solvers.elementwise import chooses_levels
from samplers.start import starts_exactly
from torch_utils.rng import TorchRNG

__all__ = ["Plan", "SamplerOptions", "build_plan"]


EDM_ONLY = ("steps", "rho", "S_churn", "S_min", "S_max", "S_noise", "disc", "form", "scaling")
GENERAL = ("solver", "disc", "form", "scaling")  # any of these: EDM's general sampler
SOLVER_OPTIONS = (
    "max_order", "predict_x0", "thresholding", "lower_order_final", "variant", "deis_mode", "rtol", "atol", *CHURN
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Plan:
    """A sampler with everything about it decided; called like `sampler(net, noise, class_labels, rng=...)`.

    Attributes:
        solver: its name, for file names.
        sigmas: the noise levels, noisy to clean, float64 on the CPU.
        nfe: network evaluations per image; None where the solver chooses its steps.
        evaluations: where it does, those of every batch so far.
        summary: what is said before sampling, as (name, value) pairs.
        run: does it: `run(net, noise, class_labels, rng=..., trace=...)`.
        stochastic: the sampler adds noise.
        stamps: where the levels come from, of solvers that take time stamps.
    """

    solver: str
    sigmas: Tensor
    nfe: int | None
    summary: tuple[tuple[str, str], ...]
    run: Callable[..., Tensor]
    stochastic: bool = False
    evaluations: list[int] = field(default_factory=list)
    stamps: Stamps | None = None

    def __call__(
        self,
        net: Field | Callable[..., Tensor],
        noise: Tensor,
        class_labels: Tensor | None = None,
        *,
        rng: TorchRNG | None = None,
        trace: Callable[[Any], Any] | None = None,
    ) -> Tensor:
        """`noise [B, ...]` of unit variance -> images `[B, ...]`, float64."""
        return self.run(net, noise, class_labels, rng=rng if self.stochastic else None, trace=trace)

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.summary)
        return "\n".join(f"{name + ':':{width + 2}}{value}" for name, value in self.summary)


def build_plan(
    net: Field | Callable[..., Tensor],
    options: SamplerOptions,
    *,
    batch: int = 64,
    class_idx: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Plan:
    """The sampler that `options` describe for this network; with `dp` its time stamps are searched now.

    Args:
        batch, class_idx: of the samples that a search measures on: most at once on one process, one class for all.
        progress: called by a search with the number of samples done, again and again.

    Raises:
        ValueError: options that contradict each other, that the sampler does not take, or out of range.
    """
    given = options.given()
    guidance = {name: given.pop(name) for name in ("guidance_type", "guidance_rate") if name in given}
    prior = given.pop("prior", None)
    search = {"batch": batch, "class_idx": class_idx, "progress": progress}
    if chooses_levels(net) and guidance:
        raise ValueError("--guidance-type does not go with a network that chooses its noise levels: leave it out")
    own_levels = chooses_levels(net) and not given.keys() & {"steps", "N", "coordinates"}
    net = guide(net, **guidance)
    refuse_for_coupling(net, given)
    if own_levels:
        _check_solver(given.get("solver"))
        plan = Plan(**mac_plan(net, given, options.denoise_to_zero is not False, **search))
    elif wants_native(net, given):
        plan = Plan(**native_plan(net, given))
    else:
        plan = _sigma_plan(net, given, **search)
    run, prior = start_from_prior(net, plan.run, prior)
    if prior is not None:
        plan = dataclasses.replace(plan, run=run, summary=(*plan.summary, ("Prior", prior)))
    return _with_guidance(plan, net, guidance) if guidance else plan


def _check_solver(solver: str | None) -> None:
    if solver is not None and solver not in SOLVERS:
        raise ValueError(f"there is no solver '{solver}': choose from {', '.join(SOLVERS)}")


def _sigma_plan(net: Field | Callable[..., Tensor], given: dict[str, Any], **search: Any) -> Plan:
    """EDM's samplers or a solver over time stamps, from infinite sigma on where the start is exact."""
    given = {name: value for name, value in given.items() if name != "coordinates"}
    start = given.pop("start", None)
    exact = starts_exactly(as_field(net), start)
    if exact and "nfe" in given:
        given["nfe"] -= 1  # the start takes one
    if given.get("schedule") in SCHEDULE_FORMS:
        given["form"] = given.pop("schedule")
    solver = given.get("solver")
    _check_solver(solver)
    of_edm = [n for n in given if n in EDM_ONLY and not (solver and n in SOLVERS[solver].options)]
    of_stamps = [n for n in given if n not in (*EDM_ONLY, "solver", "sigma_min", "sigma_max")]
    if "steps" in given and "num_steps" in given:
        raise ValueError(
            "--steps=N means N noise levels and a step to 0, --num-steps=N means N time stamps that end at sigma_min: "
            "give one of them"
        )
    if of_edm and of_stamps:
        raise ValueError(
            f"{flag(of_edm[0])} belongs to EDM's samplers and {flag(of_stamps[0])} to the solvers that take time "
            "stamps: leave one of them out"
        )
    if of_edm and solver not in (None, "euler", "heun"):
        raise ValueError(
            f"{flag(of_edm[0])} belongs to EDM's samplers, which know the solvers euler and heun: "
            f"{'say --num-steps' if of_edm[0] == 'steps' else 'leave it out'} with --solver={solver}"
        )
    edm = of_edm or not (of_stamps or solver)
    plan = _edm_plan(net, given) if edm else _stamps_plan(net, given, **search)
    if start is not None:
        plan = dataclasses.replace(plan, run=functools.partial(plan.run, start=start))
    return _exactly_started(plan, getattr(net, "calls_per_evaluation", 1)) if exact else plan


def _exactly_started(plan: Plan, calls: int) -> Plan:
    """The plan with the evaluation at infinite sigma, of `calls` network evaluations, counted and said."""
    texts = dict(plan.summary) | {"Start": "exact, one evaluation at infinite sigma"}
    if plan.nfe is not None:
        texts["NFE"] = _nfe(plan.nfe + 1)
        return dataclasses.replace(plan, nfe=plan.nfe + 1, summary=tuple(texts.items()))

    def run(*args: Any, **kwargs: Any) -> Tensor:
        images = plan.run(*args, **kwargs)
        plan.evaluations[-1] += calls
        return images

    return dataclasses.replace(plan, summary=tuple(texts.items()), run=run)


def _with_guidance(plan: Plan, guided: Field, guidance: dict[str, Any]) -> Plan:
    """The plan made for a guided field, for the network that it will be given, which is not."""
    each, calls = plan.nfe, guided.calls_per_evaluation
    kinds = f" ({each} conditional, {each} unconditional)" if calls == 2 else ""
    texts = dict(plan.summary)
    rate = f", rate {guidance['guidance_rate']:g}" if "guidance_rate" in guidance else ""
    texts["Guidance"] = guidance["guidance_type"] + rate
    nfe = None if each is None else each * calls
    texts["NFE"] = texts["NFE"] if nfe is None else _nfe(nfe) + kinds

    def run(net: Field | Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        return plan.run(guide(net, **guidance), *args, **kwargs)

    return dataclasses.replace(plan, nfe=nfe, summary=tuple(texts.items()), run=run)


def _edm_plan(net: Field | Callable[..., Tensor], given: dict[str, Any]) -> Plan:
    """EDM's sampler, or its general form where that is asked for."""
    general = any(name in given for name in GENERAL)
    names = {"steps": "num_steps", "disc": "discretization", "form": "schedule"}
    kwargs = {names.get(name, name): value for name, value in given.items()}
    if any(kwargs.get(name) for name in ("S_min", "S_max", "S_noise")) and not kwargs.get("S_churn"):
        name = next(n for n in ("S_min", "S_max", "S_noise") if n in kwargs)
        raise ValueError(f"{flag(name)} shapes the noise that --S_churn adds: give --S_churn as well")
    if "rho" in kwargs and kwargs.get("discretization", "edm") != "edm":
        raise ValueError(f"--rho shapes the time steps of --disc=edm, not of --disc={kwargs['discretization']}")
    levels = general_levels(
        net, **{k: kwargs[k] for k in ("num_steps", "sigma_min", "sigma_max", "rho", "discretization") if k in kwargs}
    )
    steps = len(levels) - 1
    solver = kwargs.get("solver", "heun")
    churn = {name: kwargs[name] for name in CHURN if name in kwargs}
    name = "EDM" if not general else "EDM general"
    forms = {k: kwargs.get(k, v) for k, v in (("discretization", "edm"), ("schedule", "linear"), ("scaling", "none"))}
    return Plan(
        solver=solver if general else "edm",
        sigmas=levels,
        nfe=2 * steps - 1 if solver == "heun" else steps,
        summary=_summary(
            f"{name}, {solver}, {_count_of(steps, 'step')}{_said(churn)}",
            (_said(forms)[2:] + ": " if general else "") + _levels(levels),
            2 * steps - 1 if solver == "heun" else steps,
        ),
        run=functools.partial(ablation_sampler if general else edm_sampler, **kwargs),
        stochastic=kwargs.get("S_churn", 0) > 0,
    )


def _stamps_plan(net: Field | Callable[..., Tensor], given: dict[str, Any], **search: Any) -> Plan:
    """Any solver over time stamps that end above 0."""
    how = {name: given[name] for name in SOLVER_OPTIONS if name in given}
    solver = given.get("solver", DEFAULT_SOLVER)
    if SOLVERS[solver].adaptive:
        return Plan(**adaptive_plan(net, given, solver, how))
    stamps = choose_stamps(net, given, how, **search)
    entry = SOLVERS[stamps.solver]
    entry.resolve(stamps.options)
    ends = {"afs": stamps.afs, "denoise_to_zero": given.get("denoise_to_zero", False)}
    nfe = entry.nfe(len(stamps.sigmas), **ends, **stamps.options)
    said = {k: v for k, v in stamps.options.items() if k != "coefficients"} | {k: v for k, v in ends.items() if v}
    return Plan(
        solver=stamps.solver,
        sigmas=stamps.sigmas,
        nfe=nfe,
        summary=(
            *_summary(
                f"{stamps.solver}, {_count_of(len(stamps.sigmas) - 1, 'step')}{_said(said)}",
                f"{stamps.about}: {_levels(stamps.sigmas)}",
                nfe,
            ),
            *(("Note", note) for note in stamps.notes),
        ),
        run=functools.partial(_run_stamps, sigmas=stamps.sigmas, solver=stamps.solver, **ends, **stamps.options),
        stochastic=entry.stochastic and stamps.options.get("S_churn", 0) > 0,
        stamps=stamps,
    )


def _run_stamps(
    net: Field | Callable[..., Tensor], noise: Tensor, class_labels: Tensor | None, *, sigmas: Tensor, **options: Any
) -> Tensor:
    return sample(net, noise.double(), sigmas, class_labels=class_labels, **options)


def _count_of(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _said(options: dict[str, Any]) -> str:
    return "".join(f", {name} {value}" for name, value in options.items())


def _levels(levels: Tensor) -> str:
    shown = [f"{v:.4f}".rstrip("0").rstrip(".") if v >= 0.01 else f"{v:.4g}" for v in levels.tolist()]
    return ", ".join(shown if len(shown) <= 24 else [*shown[:3], "...", *shown[-3:]])


def _summary(solver: str, schedule: str, nfe: int) -> tuple[tuple[str, str], ...]:
    return ("Solver", solver), ("Schedule", schedule), ("NFE", _nfe(nfe))


def _nfe(count: int) -> str:
    return f"{_count_of(count, 'network evaluation')} per image"
