"""Drifts of models of two heads by options, and plans of those with noise (`samplers.fusion`)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from samplers.field import Facts, Field, as_field
from samplers.fusion import Fusion, Fusion2024, Fusion2025, fused
from samplers.path import BrownianBridge
from samplers.planning.base import Plan, Request, count_of
from samplers.planning.model_options import FIELDS
from samplers.planning.options import flag
from samplers.solvers.bridge import srid2
from torch_utils.rng import TorchRNG

Drift = Fusion | Fusion2024 | Fusion2025

DEFAULT_STEPS = 10

_EXACT = ("gammas", "damping", "score_source")
_READS: dict[str, tuple[str, ...]] = {
    "x1": (),
    "pf": _EXACT,
    "bridge_sde": _EXACT,
    "langevin": _EXACT,
    "legacy_2024": ("sampling_sigma", "delta", "momentum", "noise_scale"),
    "legacy_2025": ("gammas", "damping", "sampling_sigma", "delta", "momentum", "noise_scale"),
}
_NOISE = {"pf": "none", "bridge_sde": "bridge", "langevin": "langevin"}


def drift_of(facts: Facts, given: Mapping[str, Any]) -> Drift | None:
    """The drift that the options of `FusionOptions` ask for; None: the model's own field, a denoiser.

    Raises:
        ValueError: a model without heads, options that the drift does not read, or values that do not fit.
    """
    if not given:
        return None
    if facts.heads is None:
        raise ValueError(
            f"{flag(next(iter(given)))} belongs to models of train.py idff, without guidance, and this is none: leave "
            "it out"
        )
    kind = given.get("field", "x1")
    if kind != "x1" and not isinstance(facts.path, BrownianBridge):
        raise ValueError(
            f"--field={kind} is of Brownian bridges, and this model was trained on another path (--bridge): leave it "
            "out, its clean estimate is a denoiser"
        )
    for name in given:
        if name != "field" and name not in _READS[kind]:
            takes = ", ".join(k for k in FIELDS if name in _READS[k])
            raise ValueError(f"{flag(name)} belongs to --field={takes}, and the field here is {kind}: leave it out")
    if kind == "x1":
        return None
    own = {name: value for name, value in given.items() if name != "field"}
    return _exact(facts, kind, own) if kind in _NOISE else _legacy(facts, kind, own)


def _legacy(facts: Facts, kind: str, own: dict[str, Any]) -> Drift:
    """The drifts of the published programs, which have other names for these options."""
    renamed = {"sampling_sigma": "sigma_s", "momentum": "sign" if kind == "legacy_2025" else "momentum"}
    own = {renamed.get(name, name): value for name, value in own.items()}
    if kind == "legacy_2024":
        if facts.score_target == "none" and own.get("momentum") != 0:
            raise ValueError(
                "the momentum of --field=legacy_2024 is a second head, and this model has one head: give --momentum=0, "
                "or another field"
            )
        return Fusion2024(**own)
    if "damping" in own:  # by the sum of the gammas, or not at all
        own["damping"] = None if own["damping"] else 0.0
    return Fusion2025(**own, head=facts.score_target == "log_density")


def _exact(facts: Facts, kind: str, own: dict[str, Any]) -> Drift:
    source = own.pop("score_source", None) or _score_source(facts)
    if source == "tweedie" and not facts.gaussian_noise:
        raise ValueError(
            "the score of a clean estimate (tweedie) is that of noise independent of the data, and this model's noise "
            "was coupled to them: take the second head, or --field=x1"
        )
    return Fusion(facts.path.bridge, noise=_NOISE[kind], score_source=source, score_target=facts.score_target, **own)


def _score_source(facts: Facts) -> str:
    return "tweedie" if facts.score_target not in ("eps", "score") and facts.gaussian_noise else "head"


def fused_field(field: Field, drift: Drift | None) -> Field:
    """The model with a drift; None: as it is."""
    return field if drift is None else fused(field, drift)


def has_noise(drift: Drift | None) -> bool:
    """Whether the drift comes with noise, so that no solver of an ODE suits it."""
    return drift is not None and float(drift.diffusion(torch.tensor(0.5, dtype=torch.float64))) > 0


def plan_bridge(request: Request) -> Plan:
    """Steps of the stochastic solver from t = 1 to 0, equal or shorter towards the data.

    Raises:
        ValueError: another solver, or a number of evaluations that no count of steps makes.
    """
    given, drift = request.given, request.drift
    if "solver" in given:
        raise ValueError(f"the field asked for has noise, which --solver={given['solver']} adds none of: leave it out")
    last = 1 if drift.ends_on_data else 3
    evaluations = given.get("N", 3 * (DEFAULT_STEPS - 1) + last)
    before, rest = divmod(evaluations - last, 3)
    if rest or before < 0:
        fits = max(evaluations - rest, last), max(evaluations - rest + 3, last)
        raise ValueError(
            f"N={evaluations} does not suit solver 'srid2': every step costs 3 evaluations"
            + (" but the last, which lands on the clean estimate" if last == 1 else "")
            + f"; give {' or '.join(map(str, sorted(set(fits))))}"
        )
    steps = before + 1
    power = given.get("time_power", 1.0)
    times = (torch.arange(steps, -1, -1, dtype=torch.float64) / steps) ** power
    return Plan(
        kind="bridge",
        solver="srid2",
        sigmas=times,
        sampler=functools.partial(_sample, times=times, diffusion=drift.diffusion),
        title="srid2, native time, with noise",
        schedule=f"{count_of(steps, 'equal step' if power == 1 else 'step')} from t = 1 to 0"
        + ("" if power == 1 else f", times to the power of {power:g}"),
        steps=steps,
        each=3,
        extra=last - 3,
        stochastic=True,
    )


def _sample(model: Any, noise: Tensor, *, times: Tensor, diffusion: Any, rng: TorchRNG | None, trace: Any) -> Tensor:
    return srid2(as_field(model), noise, times, diffusion=diffusion, rng=rng, trace=trace)
