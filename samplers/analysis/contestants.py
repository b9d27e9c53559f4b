"""Who takes part in a comparison of solvers, and with which levels at which number of network evaluations (NFE).

A contestant is written NAME[:MAX_ORDER][:OPTION=VALUE...][@SCHEDULE[#COEFF]], for example `ipndm`, `ab:2`,
`unipc:3:variant=bh1`, `dpmpp@logsnr`, `ipndm@gits.json#1.15` (a schedule file, and which of its coefficients). `edm` is
Heun with a last step to level 0 (Karras et al. 2022, arXiv 2206.00364, Alg. 1): 2 N - 1 evaluations. The others end at
the lowest level: (N - 1) times their evaluations a step. Where a model starts exactly, at infinite sigma, that is one
evaluation more. `euler@native` takes equal steps in a flow model's own time, as it is published.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samplers.analysis.compare import Cell
from samplers.field import Field, as_field
from samplers.path import VE
from samplers.planning.base import ChosenLevels, Plan, Request
from samplers.planning.edm import plan_edm
from samplers.planning.grid import plan_grid
from samplers.planning.native import plan_native
from samplers.recipe import ScheduleFile
from samplers.schedules.formulas import SCHEDULES, get_schedule
from samplers.solvers.entry import Solver
from samplers.solvers.table import SOLVERS
from samplers.start import starts_exactly

EDM = "edm"
NATIVE = "native"  # in place of a schedule


@dataclass(frozen=True)
class Contestant:
    """One solver with its options and the schedule it uses.

    Attributes:
        label: how it was written; column head.
        solver: key of `SOLVERS`, or "edm".
        options: the solver's own.
        schedule: name of a schedule, a file of searched ones, or "native".
        coeff: which of the file's coefficients; None: the only one.
    """

    label: str
    solver: str
    options: Mapping[str, Any]
    schedule: str | ScheduleFile = "polynomial"
    coeff: float | None = None

    def at(self, nfe: int, net: Field | Callable[..., Tensor]) -> Plan | str:
        """The plan that makes exactly `nfe` evaluations per image, or the sentence why there is none."""
        field = as_field(net)
        if self.schedule == NATIVE:
            return self._native(nfe, field)
        exact = starts_exactly(field)
        request = Request(field, {}, "exact" if exact else "scaled")
        more = " plus 1, for the exact start" if exact else ""
        if self.solver == EDM:
            return self._edm(nfe - exact, request, more)
        entry = SOLVERS[self.solver]
        if isinstance(self.schedule, ScheduleFile):
            return self._from_file(self.schedule, entry, nfe - exact, request)
        num_steps = (nfe - exact) // entry.evaluations + 1
        if num_steps < 2 or entry.nfe(num_steps, **self.options) != nfe - exact:
            return f"{self.solver} takes {entry.evaluations} evaluations a step: NFE must be a multiple of it{more}"
        levels = get_schedule(num_steps, None, None, self.schedule, net=field)
        return self._grid(request, ChosenLevels(levels, self.schedule, self.solver, self.options))

    def _edm(self, nfe: int, request: Request, more: str) -> Plan | str:
        if nfe % 2 == 0:
            return f"EDM's sampler takes 2 N - 1 evaluations for N steps: NFE must be odd{more}"
        return plan_edm(replace(request, given={"steps": (nfe + 1) // 2}))

    def _native(self, nfe: int, field: Field) -> Plan | str:
        if isinstance(field.native().path, VE):
            return "this network lives in sigma coordinates and has no time of its own"
        try:
            return plan_native(Request(field, {"solver": self.solver, "N": nfe, **self.options}))
        except ValueError as error:
            return str(error)

    def _from_file(self, file: ScheduleFile, entry: Solver, nfe: int, request: Request) -> Plan | str:
        file.check_model(request.field.path)
        fits = [e for e in file.entries if e.fits(None, self.coeff) and entry.nfe(e.num_steps, afs=e.afs) == nfe]
        if not fits:
            return "the schedule file holds no schedule with this NFE"
        if len(fits) > 1:
            coeffs = ", ".join(f"{self.label}#{e.coeff:g}" for e in fits if e.coeff is not None)
            raise ValueError(
                f"{len(fits)} schedules of {self.label} have NFE {nfe}: "
                + (f"say which one with {coeffs}" if coeffs else "keep one of them in the file")
            )
        levels = torch.tensor(fits[0].sigmas, dtype=torch.float64)
        fitted = {} if fits[0].coefficients is None else {"coefficients": fits[0].coefficients}
        chosen = ChosenLevels(levels, "from a file", self.solver, {**self.options, **fitted}, fits[0].afs)
        return self._grid(request, chosen)

    def _grid(self, request: Request, chosen: ChosenLevels) -> Plan:
        return plan_grid(replace(request, chosen=chosen))


def parse_contestant(text: str) -> Contestant:
    """The contestant that a text describes; options of a schedule file hold where the text does not say otherwise.

    Raises:
        ValueError: unknown solver, option or schedule, a file that cannot be read.
    """
    name, _, schedule = text.strip().partition("@")
    solver, *given = name.split(":")
    label = text.strip()
    if solver != EDM and solver not in SOLVERS:
        raise ValueError(f"there is no solver '{solver}': choose from {EDM}, {', '.join(SOLVERS)}")
    if solver != EDM and SOLVERS[solver].adaptive:
        raise ValueError(f"solver '{solver}' chooses its number of evaluations itself: it cannot be compared by NFE")
    if solver == EDM:
        if label != EDM:
            raise ValueError(f"'{label}' is not possible: {EDM} has its own schedule and order, write {EDM} alone")
        return Contestant(EDM, EDM, {})
    options = dict(_option(label, part) for part in given)
    schedule, hash_, coeff = schedule.partition("#")
    if schedule.endswith(".json"):
        file = ScheduleFile.load(schedule)
        options = {**(file.options if file.solver == solver else {}), **options}
        SOLVERS[solver].resolve(options)
        label = f"{name}@{Path(schedule).stem}{hash_}{coeff}"
        return Contestant(label, solver, options, file, _number(label, coeff) if hash_ else None)
    if hash_ or (schedule and schedule not in (*SCHEDULES, NATIVE)):
        raise ValueError(
            f"there is no schedule '{schedule}{hash_}{coeff}': give a schedule file (.json) or one of "
            f"{', '.join(SCHEDULES)}, {NATIVE}"
        )
    SOLVERS[solver].resolve(options)
    return Contestant(label, solver, options, schedule or "polynomial")


def _option(label: str, text: str) -> tuple[str, Any]:
    """`2` is the order, `variant=bh1` any option by its name."""
    key, equals, value = text.partition("=")
    if equals:
        try:
            return key, ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return key, value
    if not text.isdigit():
        raise ValueError(f"'{label}' names the order '{text}': write a number, or OPTION=VALUE")
    return "max_order", int(text)


def _number(label: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"'{label}' names the coefficient '{text}': write a number, for example #1.15") from None


def plan_cells(
    contestants: Sequence[Contestant], nfes: Sequence[int], net: Field | Callable[..., Tensor]
) -> list[Cell]:
    """Every contestant at every NFE, decided before anything is sampled.

    Raises:
        ValueError: an NFE below 1, the same contestant twice, or one that can do none of the NFEs.
    """
    if not contestants or not nfes or min(nfes) < 1:
        raise ValueError("a comparison needs at least one solver and one NFE, and every NFE at least 1")
    labels = [c.label for c in contestants]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise ValueError(f"'{twice}' is listed twice: leave one of them out")
    cells = []
    for c in contestants:
        runs = [c.at(nfe, net) for nfe in nfes]
        if all(isinstance(r, str) for r in runs):
            raise ValueError(f"'{c.label}' is not possible with NFE {', '.join(map(str, nfes))}: {runs[0]}")
        cells += [
            Cell(c.label, c.solver, nfe, *((None, run) if isinstance(run, str) else (run, None)))
            for nfe, run in zip(nfes, runs, strict=True)
        ]
    return cells
