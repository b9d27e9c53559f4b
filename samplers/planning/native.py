"""What options mean for a model that has a time of its own: native coordinates, exact start, start distribution.

`build_plan` asks here first. A flow model without options of sigma samplers is sampled as it is published, in native
time (`samplers/solvers/native.py`); options of sigma samplers take it through its denoiser, from infinite sigma on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from samplers.field import Field, as_field
from samplers.path import VE
from samplers.planning.levels import flag
from samplers.solvers.native import DRIFT_SOLVERS, sample_native, uniform_times
from samplers.solvers.table import SOLVERS
from samplers.start import native, refuse_score, start_noise

__all__ = ["COORDINATES", "PRIORS", "native_plan", "refuse_for_coupling", "start_from_prior", "wants_native"]

COORDINATES = ("native", "sigma")
PRIORS = ("matched", "standard")
DEFAULT_EVALUATIONS = 20
_ALONE = ("euler", "heun", *(name for name, entry in SOLVERS.items() if entry.adaptive))  # mean native without --N
_OPTIONS = ("max_order", "rtol", "atol")


def wants_native(net: Field | Callable[..., Tensor], given: dict[str, Any]) -> bool:
    """Whether the options ask for native coordinates.

    Raises:
        ValueError: native coordinates of a model without a time of its own, or `N` in sigma coordinates.
    """
    has_time = not isinstance(native(as_field(net)).path, VE)
    asked = given.get("coordinates")
    if (asked == "native" or (asked is None and "N" in given)) and not has_time:
        raise ValueError(
            f"{'--N' if asked is None else '--coordinates=native'} belongs to flow models, which have a time of their "
            "own, and this network lives in sigma coordinates: use --steps or --num-steps"
        )
    if asked == "sigma" and "N" in given:
        raise ValueError("--N counts network evaluations in native time: with --coordinates=sigma give --num-steps")
    if asked is not None:
        return asked == "native"
    others = set(given) - {"N", "solver", "coordinates", *_OPTIONS}
    return "N" in given or (has_time and not others and given.get("solver") in (None, *_ALONE))


def native_plan(net: Field | Callable[..., Tensor], given: dict[str, Any]) -> dict[str, Any]:
    """Fields of a `Plan`: solver, sigmas (here: times), nfe, summary, run, evaluations.

    Raises:
        ValueError: options that native sampling does not know, or an N that the solver cannot use.
    """
    solver = given.get("solver", "euler")
    known = ("solver", "N", "coordinates", *_OPTIONS)
    if unknown := [name for name in given if name not in known]:
        raise ValueError(
            f"{flag(unknown[0])} belongs to sampling in sigma coordinates: leave it out, or say --coordinates=sigma "
            "and leave out --N"
        )
    adaptive = solver in DRIFT_SOLVERS and SOLVERS[solver].adaptive
    if adaptive and "N" in given:
        raise ValueError(f"solver '{solver}' chooses its steps itself: leave out --N, or give tolerances")
    times = uniform_times(given.get("N", DEFAULT_EVALUATIONS), solver)
    options = SOLVERS[solver].resolve({name: given[name] for name in _OPTIONS if name in given})
    said = "".join(f", {name} {value:g}" for name, value in options.items() if name in _OPTIONS)
    evaluations: list[int] = []
    if adaptive:
        calls = getattr(net, "calls_per_evaluation", 1)  # 2 where the network is guided
        options["count"] = lambda made: evaluations.append(calls * made)
    nfe = None if adaptive else SOLVERS[solver].nfe(len(times), ends_at_zero=True)
    if adaptive:
        schedule, cost = "chosen by the solver, from t = 1 to 0", "known after sampling"
    else:
        schedule = f"{len(times) - 1} equal steps from t = 1 to 0"
        cost = f"{nfe} network evaluation{'' if nfe == 1 else 's'} per image"
    return {
        "solver": solver,
        "sigmas": times,
        "nfe": nfe,
        "summary": (("Solver", f"{solver}, native time{said}"), ("Schedule", schedule), ("NFE", cost)),
        "run": functools.partial(_run, times=times, solver=solver, **options),
        "evaluations": evaluations,
    }


def _run(
    net: Field | Callable[..., Tensor],
    noise: Tensor,
    class_labels: Tensor | None,
    *,
    times: Tensor,
    rng: Any = None,
    **options: Any,
) -> Tensor:
    return sample_native(net, noise.double(), times, class_labels=class_labels, **options)


def refuse_for_coupling(net: Field | Callable[..., Tensor], given: dict[str, Any]) -> None:
    """A ValueError before anything is sampled, for options that need independent Gaussian noise."""
    if given.get("thresholding") == "dynamic":
        refuse_score(as_field(net), "dynamic thresholding")
    if given.get("S_churn"):
        refuse_score(as_field(net), "added noise (--S_churn)")


def start_from_prior(
    net: Field | Callable[..., Tensor], run: Callable[..., Tensor], prior: str | None
) -> tuple[Callable[..., Tensor], str | None]:
    """`run` from the model's start distribution instead of unit noise, and the name of the distribution.

    Args:
        prior: "matched", "standard" or None, the one that the model recommends.

    Raises:
        ValueError: a prior that the model does not have.
    """
    inner = native(as_field(net)).net
    if not hasattr(inner, "start_noise"):
        if prior == "matched":
            raise ValueError("--prior=matched needs a model of a learned coupling, whose start noise was measured")
        return run, None
    prior = prior or inner.priors[0]
    if prior not in inner.priors:
        raise ValueError(f"--prior={prior} is not possible: this model has {' and '.join(inner.priors)}")

    def started(net: Field | Callable[..., Tensor], noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return run(net, start_noise(as_field(net), noise.double(), prior), *args, **kwargs)

    return started, prior
