"""A schedule file for the levels that another tool asks for: its own, a part of them, or others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from samplers.export.core import FORMULAS, Assignment, program

__all__ = [
    "fit_to_levels", "fold", "level_at", "levels_by_steps", "levels_for", "schedule_program", "steps_of", "time_at",
]  # fmt: skip

FALLBACK = "ipndm"  # solver for levels that a calibrated file does not know
CLOSE = 1e-4  # relative difference of levels that are the same but for rounding to float32


def time_at(level: float) -> float:
    """Time of a flow model, from 0 (data) to 1 (noise), at a level of x = data + level * noise."""
    return 1.0 if level == math.inf else level / (1 + level)


def level_at(time: float) -> float:
    """The inverse of `time_at`."""
    return math.inf if time == 1 else time / (1 - time)


def fold(row: Sequence[float], there: int) -> list[float]:
    """One row of coefficients for a history of `there` drifts: the weights of missing ones go to the oldest."""
    return list(row) if len(row) <= there else [*row[: there - 1], sum(row[there - 1 :])]


def steps_of(sigmas: Sequence[float], levels: Sequence[float]) -> list[int] | None:
    """Which steps of a schedule the steps between `levels` are, by level; None where one is not among them.

    A step from infinity and one to 0 need no coefficients: they may stand before and after, as step -1.
    """

    def find(level: float) -> int:
        return next((i for i, s in enumerate(sigmas) if math.isclose(s, level, rel_tol=CLOSE)), -2)

    found = []
    for a, b in pairwise(levels):
        free = b == 0 or a == math.inf
        i = find(b if a == math.inf else a)
        if i < 0 or not (free or find(b) == i + 1):
            return None
        found.append(-1 if free else i)
    return found


def fit_to_levels(
    schedule: Mapping[str, Any], levels: Sequence[float], tell: Callable[[str], Any]
) -> tuple[str, list[float], dict[str, Any], bool]:
    """Solver, levels, options and AFS of a schedule file for a list of levels.

    Coefficients are looked up by level, so a part of a schedule has its own: of steps whose history is shorter than in
    the whole schedule they are folded. Levels that the file does not know are sampled with `FALLBACK`, and `tell` gets
    one line about it.
    """
    solver, options, levels = schedule["solver"], dict(schedule["options"]), [float(v) for v in levels]
    options.pop("thresholding", None)
    first = next((v for v in levels if v < math.inf), math.inf)
    for entry in schedule["entries"]:
        sigmas = entry["sigmas"]
        steps = steps_of(sigmas, levels)
        if steps is None:
            continue
        exact = [next((s for s in sigmas if math.isclose(s, v, rel_tol=CLOSE)), v) for v in levels]
        whole = math.isclose(first, sigmas[0], rel_tol=CLOSE) and levels[0] < math.inf
        if solver == "calibrated":
            kept = [i for i in steps if i >= 0]
            rows = [fold(entry["coefficients"][i], n + 1) for n, i in enumerate(kept)]
            options["coefficients"] = rows + [[1.0]] * (levels[-1] == 0)
        return solver, exact, options, bool(entry.get("afs")) and whole
    if solver == "calibrated":
        tell(f"These levels are not those of the calibrated schedule: {FALLBACK} samples them, without coefficients.")
        return FALLBACK, levels, {"max_order": options.get("max_order", 4)}, False
    return solver, levels, options, False


def schedule_program(
    schedule: Mapping[str, Any], levels: Sequence[float], tell: Callable[[str], Any] = print
) -> list[Assignment]:
    """The program of a schedule file for a list of levels: its own, a part of one, or any other (`fit_to_levels`)."""
    solver, levels, options, afs = fit_to_levels(schedule, levels, tell)
    return program(solver, levels, afs, **options)


def levels_by_steps(schedule: Mapping[str, Any]) -> dict[int, list[float]]:
    """Levels of a file's schedules by their steps as a tool's progress bar counts them: evaluations over the solver's
    own per step. On the path of a flow they begin at infinity, unless the first step is analytical.
    """
    found, each = {}, FORMULAS[schedule["solver"]][1]
    for entry in schedule["entries"]:
        afs = bool(entry.get("afs"))
        exact = schedule["path"] == "linear" and not afs
        evaluations = each * (len(entry["sigmas"]) - 1) + exact - afs
        found[-(-evaluations // each)] = [math.inf] * exact + list(entry["sigmas"])
    return dict(sorted(found.items()))


def levels_for(schedule: Mapping[str, Any], steps: int | None) -> list[float]:
    """Levels of the schedule in a file that takes `steps` steps, see `levels_by_steps`.

    Raises:
        ValueError: the file has no such schedule, or several and `steps` is None.
    """
    found = levels_by_steps(schedule)
    if steps is None and len(found) == 1:
        return next(iter(found.values()))
    if steps not in found:
        raise ValueError(
            f"the schedule file has schedules of {', '.join(map(str, found))} steps, not of {steps}: "
            "ask for one of them"
        )
    return found[steps]
