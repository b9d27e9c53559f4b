"""From options to a sampler: which solver, over which noise levels, at what cost, known before the first image.

    plan = build_plan(net, SamplerOptions(solver="ipndm", num_steps=7))
    print(plan)
    images = plan(net, noise, class_labels, rng=rng)

A kind of sampler is one entry of KINDS: the families of options that it reads and the function that builds its plan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from samplers.calibration.objective import Maps
from samplers.choices import SCHEDULE_FORMS
from samplers.field import Field, as_field
from samplers.guidance import guide
from samplers.path import VE
from samplers.planning.base import Plan, Request
from samplers.planning.edm import plan_edm
from samplers.planning.elementwise import check_elementwise, plan_elementwise
from samplers.planning.fusion import drift_of, fused_field, has_noise, plan_bridge
from samplers.planning.grid import plan_adaptive, plan_grid
from samplers.planning.interpolant import plan_interpolant
from samplers.planning.levels import DEFAULT_SOLVER, choose_levels
from samplers.planning.model_options import (
    BridgeOptions,
    DiffusionOptions,
    FusionOptions,
    GuidanceOptions,
    NativeOptions,
    StartOptions,
)
from samplers.planning.native import plan_native
from samplers.planning.options import (
    FAMILY,
    CalibrationOptions,
    ChurnOptions,
    CountOptions,
    EDMSamplerOptions,
    EndOptions,
    LevelOptions,
    MethodOptions,
    RangeOptions,
    SamplerOptions,
    SearchOptions,
    SolverOptions,
    flag,
)
from samplers.snapping import snapped
from samplers.solvers.table import SOLVERS, solver_named
from samplers.start import refuse_score, starts_exactly


class Kind(NamedTuple):
    """A kind of sampler: the families of options it reads, the builder of its plans, and why others do not belong."""

    reads: tuple[type, ...]
    build: Callable[[Request], Plan]
    refusal: str  # with {flag}, {whose}, {solver} of what is refused, and {because}: the option that chose this kind


KINDS: dict[str, Kind] = {
    "edm": Kind(
        (SolverOptions, RangeOptions, EDMSamplerOptions, ChurnOptions, StartOptions),
        plan_edm,
        "{because} belongs to EDM's samplers and {flag} to {whose}: leave one of them out",
    ),
    "grid": Kind(
        (SolverOptions, RangeOptions, CountOptions, LevelOptions, SearchOptions, CalibrationOptions, EndOptions,
         MethodOptions, ChurnOptions, StartOptions),
        plan_grid,
        "{flag} belongs to {whose} and {because} to the solvers over given noise levels: leave one of them out",
    ),
    "adaptive": Kind(
        (SolverOptions, RangeOptions, EndOptions, MethodOptions, ChurnOptions, StartOptions),
        plan_adaptive,
        "solver '{solver}' chooses its steps itself: leave out {flag}, or give tolerances",
    ),
    "native": Kind(
        (SolverOptions, MethodOptions, NativeOptions),
        plan_native,
        "{flag} belongs to sampling in sigma coordinates: leave it out, or say --coordinates=sigma and leave out --N",
    ),
    "sde": Kind(
        (DiffusionOptions, CountOptions),
        plan_interpolant,
        "{because} belongs to the stochastic interpolant sampler, which has no {flag}: leave one of them out",
    ),
    "bridge": Kind(
        (SolverOptions, NativeOptions, BridgeOptions),
        plan_bridge,
        "{flag} belongs to {whose}, and the field asked for has noise along its own time: leave it out, or choose a "
        "--field without noise",
    ),
    "elementwise": Kind(
        (SolverOptions, RangeOptions, CountOptions, LevelOptions, SearchOptions, EndOptions, MethodOptions,
         ChurnOptions),
        plan_elementwise,
        "{flag} belongs to {whose}, but this network chooses its noise levels itself: leave it out, or give --steps to "
        "sample its denoiser without them",
    ),
}  # fmt: skip

_DECIDE_LEVELS = (RangeOptions, CountOptions, LevelOptions, SearchOptions, CalibrationOptions)
_NATIVE_ALONE = ("euler", "heun", *(name for name, entry in SOLVERS.items() if entry.adaptive))  # also without --N


def build_plan(
    net: Field | Callable[..., Tensor],
    options: SamplerOptions,
    *,
    batch: int = 64,
    class_idx: int | None = None,
    progress: Callable[[int], Any] | None = None,
    maps: Maps | None = None,
) -> Plan:
    """The sampler that `options` describe for this network; with `dp` its levels are searched now.

    Args:
        batch: the most samples at once on one process that a search measures on.
        class_idx: one class for all samples, in a search as well.
        progress: called by a search with the number of samples done, again and again.
        maps: features of images by name, for the objective of a calibration.

    Raises:
        ValueError: options that contradict each other, that the sampler does not take, or out of range.
    """
    check_options(options, class_idx)
    field, given = as_field(net), options.given()
    guidance = {name: given.pop(name) for name in list(given) if FAMILY[name] is GuidanceOptions}
    if guidance and field.facts.chooses_levels:
        raise ValueError(
            f"{flag(next(iter(guidance)))} does not go with a network that chooses its noise levels: leave it out"
        )
    prior = _prior(field, given.pop("prior", None))
    field = guide(field, **guidance)
    drift = drift_of(field.facts, {name: given.pop(name) for name in list(given) if FAMILY[name] is FusionOptions})
    field = fused_field(field, drift)
    snap = field.facts.parts is not None if (asked := given.pop("binarise", None)) is None else asked
    if asked is not None and field.facts.parts is None:
        raise ValueError("--binarise is for models of shapes, whose parts exist or do not: leave it out")
    field = snapped(field) if snap else field
    if has_noise(drift):
        name, because, start = "bridge", "--field", "scaled"
    else:
        _check(field, given)
        name, because = _kind(field, given)
        exact = name not in ("native", "sde") and starts_exactly(field, given.get("start"))
        start = "exact" if exact else "scaled"
    _refuse_unread(name, because, given)
    if given.pop("coordinates", None) == "sigma" and name == "bridge":
        raise ValueError("a field with noise is sampled in its own time: leave out --coordinates=sigma")
    request = Request(field, given, start, to_zero=options.denoise_to_zero is not False, drift=drift)
    if _takes_levels(name, request):
        own = request.of(MethodOptions) if name == "elementwise" else request.of(MethodOptions, ChurnOptions)
        ahead = int(start == "exact")  # an evaluation of its own, of those that --nfe asks for
        chosen = choose_levels(field, given, own, maps, ahead, batch=batch, class_idx=class_idx, progress=progress)
        request = dataclasses.replace(request, chosen=chosen)
    plan = KINDS[name].build(request)
    return dataclasses.replace(plan, calls=field.facts.calls, prior=prior, guidance=guidance, drift=drift, snap=snap)


def check_options(options: SamplerOptions, class_idx: int | None = None) -> None:
    """Refuse what no network can be sampled with, so that none need be fetched to say it; ValueError."""
    given = options.given()
    if (solver := given.get("solver")) is not None:
        solver_named(solver)
    defaults = SOLVERS["heun_churn"].options
    shaped = [name for name in ("S_min", "S_max", "S_noise") if given.get(name, defaults[name]) != defaults[name]]
    if shaped and "S_churn" not in given:
        raise ValueError(f"{flag(shaped[0])} shapes the noise that --S_churn adds: give --S_churn as well")
    if "steps" in given and "num_steps" in given:
        raise ValueError(
            "--steps=N means N noise levels and a step to 0, --num-steps=N means N noise levels that end at sigma_min: "
            "give one of them"
        )
    if given.get("coordinates") == "sigma" and "N" in given:
        raise ValueError("--N counts network evaluations in native time: with --coordinates=sigma give --num-steps")
    if class_idx is not None and given.get("guidance_type") == "uncond":
        raise ValueError("--guidance-type=uncond samples without a condition: leave --class out")


def _prior(field: Field, prior: str | None) -> str | None:
    """The start distribution by name: the one asked for, or the one that the model recommends; None: unit noise."""
    priors = field.facts.priors
    if not priors and prior == "matched":
        raise ValueError("--prior=matched needs a model of a learned coupling, whose start noise was measured")
    if priors and prior not in (None, *priors):
        raise ValueError(f"--prior={prior} is not possible: this model has {' and '.join(priors)}")
    return (prior or priors[0]) if priors else None


def _check(field: Field, given: dict[str, Any]) -> None:
    """Refuse what no kind of sampler can do."""
    solver = given.get("solver")
    if given.get("thresholding") == "dynamic":
        refuse_score(field, "dynamic thresholding")
    if solver == "renoise":
        refuse_score(field, "fresh noise at every step (--solver=renoise)")
    if solver == "sa" and given.get("tau", 1) > 0:
        refuse_score(field, "added noise (--solver=sa, unless --tau=0)")
    if given.get("S_churn"):
        refuse_score(field, "added noise (--S_churn)")


def _kind(field: Field, given: dict[str, Any]) -> tuple[str, str]:
    """The kind of sampler that is meant, and the option that says so; EDM's meaning of `schedule` becomes "form".

    Raises:
        ValueError: options that mean two kinds.
    """
    if field.facts.chooses_levels and not given.keys() & {"steps", "N", "coordinates"}:
        return "elementwise", ""
    if noisy := [n for n in given if FAMILY[n] is DiffusionOptions]:
        return "sde", flag(noisy[0])
    if _wants_native(field, given):
        return "native", ""
    if given.get("schedule") in SCHEDULE_FORMS:
        given["form"] = given.pop("schedule")
    solver = given.get("solver")
    own = SOLVERS[solver].options if solver else {}
    edm = [n for n in given if FAMILY[n] in (EDMSamplerOptions, ChurnOptions) and n not in own]
    grid = [n for n in given if FAMILY[n] not in (*KINDS["edm"].reads, NativeOptions)]
    if edm or not (grid or solver):
        return "edm", flag(edm[0]) if edm else ""
    return "adaptive" if solver and SOLVERS[solver].adaptive else "grid", flag(grid[0]) if grid else ""


def _wants_native(field: Field, given: dict[str, Any]) -> bool:
    """Whether the options ask for native coordinates, or for nothing else of a model that has them."""
    has_time = not isinstance(field.native().path, VE)
    asked = given.get("coordinates")
    if (asked == "native" or (asked is None and "N" in given)) and not has_time:
        raise ValueError(
            f"{'--N' if asked is None else '--coordinates=native'} belongs to flow models, which have a time of their "
            "own, and this network lives in sigma coordinates: use --steps or --num-steps"
        )
    if asked is not None:
        return asked == "native"
    others, solver = set(given) - {"N", "solver", "max_order", "rtol", "atol"}, given.get("solver")
    possible = solver is None or not SOLVERS[solver].adaptive or field.native().defined_at_zero
    return "N" in given or (has_time and possible and not others and solver in (None, *_NATIVE_ALONE))


def _refuse_unread(name: str, because: str, given: dict[str, Any]) -> None:
    """Refuse every option of a family that this kind does not read."""
    kind = KINDS[name]
    for option in given:
        if FAMILY[option] not in kind.reads and (option != "coordinates" or name == "sde"):
            whose, solver = FAMILY[option].whose, given.get("solver")
            raise ValueError(kind.refusal.format(flag=flag(option), whose=whose, because=because, solver=solver))


def _takes_levels(name: str, request: Request) -> bool:
    """Whether levels are chosen for this plan; what a search would find out too late is refused first."""
    if name == "grid":
        return True
    if name != "elementwise":
        return False
    asked = any(FAMILY[option] in _DECIDE_LEVELS for option in request.given)
    if not str(request.given.get("schedule", "")).endswith(".json"):
        solver = request.given.get("solver", DEFAULT_SOLVER if asked else "euler")
        check_elementwise(solver, request.of(MethodOptions), request.given.get("S_churn"))
    return asked
