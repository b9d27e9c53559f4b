"""Where the noise levels of a solver come from: a list, a formula, a published list, a schedule file, or a search.

`choose_levels` takes the options that were asked for (`samplers.planning.options.SamplerOptions.given`) and decides
levels, solver and solver options together, because a schedule file and a calibration bring all three.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from samplers.calibration.between import entries_of
from samplers.calibration.calibrate import calibrate
from samplers.calibration.objective import Maps
from samplers.field import Field, as_field
from samplers.gits.search import search_schedule
from samplers.planning.base import ChosenLevels
from samplers.planning.options import SearchOptions, flag
from samplers.recipe import Entry, ScheduleFile, path_name
from samplers.schedules.explicit import validate_t_steps
from samplers.schedules.formulas import FORMULAS, get_schedule
from samplers.solvers.table import SOLVERS
from torch_utils import distributed as dist

__all__ = ["DEFAULT_SOLVER", "choose_levels", "schedule_file"]

DEFAULT_SOLVER = "ipndm"
DEFAULT_NUM_STEPS = 7
CALIBRATED = "calibrated"
FIT = ("objective", "starts")  # of a calibration alone
SEARCH = tuple(f.name for f in dataclasses.fields(SearchOptions) if f.name != "dp")
SLACK = 1e-3  # of the ends of a table: published lists have four decimals
FORMULA = ("num_steps", "schedule_type", "schedule_rho", "sigma_min", "sigma_max")
OVERRIDDEN = (*FORMULA, "dp", "calibrate", *FIT, *SEARCH)  # by explicit levels


def choose_levels(
    field: Field, given: Mapping[str, Any], options: Mapping[str, Any], maps: Maps | None = None, ahead: int = 0,
    **search: Any,
) -> ChosenLevels:  # fmt: skip
    """Noise levels for this model.

    Args:
        given: options that were asked for, by name.
        options: those of them that are the solver's own.
        maps: features of images by name, for the objective of a calibration.
        ahead: evaluations before the first level, 1 of an exact start.
        search: for a schedule search, what is not an option of the sampler: batch, class_idx, progress.

    Raises:
        ValueError: options that contradict each other or that the chosen source does not use, a bad file.
    """
    if given.get("solver") == CALIBRATED and "dp" in given:  # a search for this solver is a calibration
        given = {"calibrate": (), **{name: value for name, value in given.items() if name != "dp"}}
    from_file = str(given.get("schedule", "")).endswith(".json")
    _check_sources(given, from_file)
    solver, afs = given.get("solver", DEFAULT_SOLVER), bool(given.get("afs"))
    for name in [n for n in ("sigma_min", "sigma_max") if n in given]:
        check_known(field, [given[name]], f"{flag(name)}={given[name]:g}")
    if "t_steps" in given:
        check_known(field, given["t_steps"], "--t-steps")
        over = [flag(n) for n in OVERRIDDEN if n in given]
        note = f" (instead of {', '.join(over)})" if over else ""
        return ChosenLevels(validate_t_steps(given["t_steps"]), f"as given{note}", solver, options, afs)
    if from_file:
        return _from_file(field, given, options, ahead)
    if "calibrate" in given:
        return _calibrated(field, given, options, {**search, "maps": maps})
    if solver == CALIBRATED:
        raise ValueError(
            f"--solver={solver} needs coefficients: add --calibrate, or give a schedule file that has them"
        )
    if "dp" in given:
        return _searched(field, given, options, solver, afs, search)
    rho = given.get("schedule_rho", 7)
    kind = given.get("schedule") or given.get("schedule_type", "polynomial")
    fixed = kind not in FORMULAS
    unused = ("schedule_rho", "sigma_min", "sigma_max") if fixed else ("schedule_rho",) if kind == "logsnr" else ()
    _refuse(given, unused, f"schedule '{kind}'")
    sigmas = get_schedule(
        given.get("num_steps", DEFAULT_NUM_STEPS), given.get("sigma_min"), given.get("sigma_max"), kind, rho,
        net=field,
    )  # fmt: skip
    return ChosenLevels(sigmas, kind if fixed or kind == "logsnr" else f"{kind}, rho {rho:g}", solver, options, afs)


def _check_sources(given: Mapping[str, Any], from_file: bool) -> None:
    """A ValueError for two sources of levels, and for options of a source that was not asked for."""
    sources = [n for n in ("t_steps", "schedule", "schedule_type", "dp", "calibrate") if n in given]
    if len(sources) > 1 and ("schedule" in given or {"dp", "calibrate"} <= set(given)):
        raise ValueError(f"{' and '.join(map(flag, sources))} both say which noise levels: leave one of them out")
    for name in SEARCH:
        if name in given and not {"dp", "calibrate"} & set(given) and not (name == "coeff" and from_file):
            raise ValueError(f"{flag(name)} belongs to the schedule search: add --dp, or leave it out")
    for name in FIT:
        if name in given and "calibrate" not in given:
            raise ValueError(f"{flag(name)} belongs to a calibration: add --calibrate, or leave it out")
    if "nfe" in given and not from_file:
        raise ValueError("--nfe chooses from the schedules of a file: add --schedule=FILE.json, or say --num-steps")


def check_known(field: Field, levels: Iterable[float], option: str) -> None:
    """Refuse levels outside of the table that a model was trained on; ValueError."""
    low, high = field.facts.sigma_min, field.facts.sigma_max
    wrong = [s for s in levels if s and not low * (1 - SLACK) <= s <= high * (1 + SLACK)]
    if field.facts.noise_table is not None and wrong:
        raise ValueError(
            f"{option} asks for the noise level {wrong[0]:g}, and this network was trained on levels from {low:.6g} to "
            f"{high:.6g}: stay between them"
        )


def _from_file(field: Field, given: Mapping[str, Any], options: Mapping[str, Any], ahead: int) -> ChosenLevels:
    """The levels of a schedule file, with its solver where no other is asked for."""
    path = given["schedule"]
    _refuse(given, ("schedule_rho", "sigma_min", "sigma_max"), "a schedule file")
    file = ScheduleFile.load(path)
    note = file.check_model(field.path, None if file.model_hash is None else field.weights_hash())
    coeff = given.get("coeff", (None,))
    if len(coeff) > 1:
        raise ValueError("of a schedule file one coefficient is used: give one number as --coeff")
    solver = given.get("solver", file.solver)
    entry, made = _entry(file, given, coeff[0], solver, ahead)
    if entry.coefficients is not None:
        if solver != file.solver:
            raise ValueError(f"{path} holds coefficients of solver '{file.solver}': leave out --solver={solver}")
        options = {**options, "coefficients": entry.coefficients}
    if solver == file.solver:
        options = {**file.options, **options}
    check_known(field, entry.sigmas, flag("schedule") + f"={path}")
    sigmas = torch.tensor(entry.sigmas, dtype=torch.float64)
    notes = (*((note,) if note else ()), *made)
    return ChosenLevels(sigmas, f"from {path}", solver, options, entry.afs or bool(given.get("afs")), notes)


def _entry(
    file: ScheduleFile, given: Mapping[str, Any], coeff: float | None, solver: str, ahead: int
) -> tuple[Entry, tuple[str, ...]]:
    """The schedule asked for; made from its neighbours, with a note, where a file of calibrated ones lacks it."""
    nfe, num_steps = given.get("nfe"), given.get("num_steps")
    if nfe is None or num_steps is not None or solver != file.solver:
        return file.choose(num_steps, coeff, nfe, solver, ahead), ()
    (entry,), notes = entries_of(file, [nfe], coeff, ahead)
    return entry, notes


def _searched(
    field: Field,
    given: Mapping[str, Any],
    options: Mapping[str, Any],
    solver: str,
    afs: bool,
    search: Mapping[str, Any],
) -> ChosenLevels:
    """GITS: levels of a teacher's grid, by the shape of its trajectories."""
    asked = {"num_steps": DEFAULT_NUM_STEPS, **_search_arguments(given)}
    found = search_schedule(field, solver=solver, afs=afs, device=_device(field), **asked, **{**search, **options})
    how = found.settings
    about = (
        f"searched, {how['metric']}, coeff {next(iter(found.table)):g}, teacher {how['solver_tea']} over "
        f"{how['num_steps_tea']} levels, {how['num_warmup']} samples"
    )
    return ChosenLevels(found.sigmas, about, solver, options, afs, found=found)


def _search_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that searches and calibrations share; by default over the network's own range."""
    asked = {name: given[name] for name in (*FORMULA, *SEARCH) if name in given}
    if "search_seed" in asked:
        asked["seed"] = asked.pop("search_seed")
    return {"sigma_min": None, "sigma_max": None, **asked}


def _calibrated(
    field: Field, given: Mapping[str, Any], options: Mapping[str, Any], search: Mapping[str, Any]
) -> ChosenLevels:
    """Levels and coefficients fitted to this network."""
    if given.get("solver", CALIBRATED) != CALIBRATED:
        raise ValueError(f"--calibrate makes a solver of its own: leave out --solver={given['solver']}")
    SOLVERS[CALIBRATED].resolve(options)
    asked = _search_arguments(given)
    num_steps, nfe = asked.pop("num_steps", None), given["calibrate"]
    if num_steps is not None and nfe not in ((), (num_steps - 1,)):
        raise ValueError(
            f"--calibrate={','.join(map(str, nfe))} and --num-steps={num_steps} are different numbers of steps: "
            "give one of them"
        )
    if not nfe:
        nfe = ((num_steps or DEFAULT_NUM_STEPS) - 1,)
    if len(asked.get("coeff", ())) > 1:
        raise ValueError("a calibration starts from one coefficient: give one number as --coeff")
    if "coeff" in asked:
        (asked["coeff"],) = asked["coeff"]
    asked |= {"objective": given["objective"]} if "objective" in given else {}
    asked |= {"starts": given["starts"].replace(" ", "").split(",")} if "starts" in given else {}
    found = calibrate(
        field, nfe, afs=given.get("afs"), device=_device(field),
        progress=functools.partial(dist.print0, file=sys.stderr), **asked, **options,
        **{name: value for name, value in search.items() if name != "progress"},
    )  # fmt: skip
    how, student = found.settings, found.students[-1]
    distances = "".join(f", {name} {d:.3g}" for name, d in student.distances.items() if name != "pixels")
    about = (
        f"calibrated, {student.provenance['chosen']}, objective {how['objective']}, teacher {how['solver_tea']} over "
        f"{how['num_steps_tea']} levels, {how['num_warmup']} samples, distance to it "
        f"{student.errors['held_out']:.4g} (ipndm {student.errors['ipndm']:.4g}{distances})"
    )
    return ChosenLevels(
        student.sigmas, about, CALIBRATED, {**options, "coefficients": student.coefficients}, student.afs, found=found
    )


def _device(field: Field) -> torch.device:
    model = field.facts.model
    first = next(model.parameters(), None) if hasattr(model, "parameters") else None
    return torch.device("cpu") if first is None else first.device


def schedule_file(chosen: ChosenLevels, net: Field | Callable[..., Tensor]) -> ScheduleFile:
    """A schedule file that brings these levels and this solver back; of a search, everything it found."""
    field = as_field(net)
    if chosen.found is not None:
        return chosen.found.schedule_file(field.weights_hash())
    options = {k: v for k, v in SOLVERS[chosen.solver].resolve(chosen.options).items() if k != "coefficients"}
    entry = Entry(sigmas=tuple(chosen.sigmas.tolist()), afs=chosen.afs, coefficients=chosen.options.get("coefficients"))
    return ScheduleFile(
        solver=chosen.solver, entries=(entry,), options=options, path=path_name(field.path),
        model_hash=field.weights_hash(), provenance={"levels": chosen.about},
    )  # fmt: skip


def _refuse(given: Mapping[str, Any], names: tuple[str, ...], what: str) -> None:
    for name in names:
        if name in given:
            raise ValueError(f"{what} does not use {flag(name)}: leave it out")
