"""Who takes part in a comparison of solvers, and with which levels at which number of network evaluations (NFE).

A contestant is written NAME[:MAX_ORDER][:OPTION=VALUE...][@SCHEDULE[#COEFF]], for example `ipndm`, `ab:2`,
`unipc:3:variant=bh1`, `dpmpp@logsnr`, `ipndm@gits.json#1.15` (a schedule file, and which of its coefficients). `edm` is
Heun with a last step to level 0 (Karras et al. 2022, arXiv 2206.00364, Alg. 1): 2 N - 1 evaluations. The others end at
the lowest level: (N - 1) times their evaluations a step. Where a model starts exactly, at infinite sigma, that is one
evaluation more. `euler@native` takes equal steps in a flow model's own time, as it is published.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from samplers.field import Field, as_field
from samplers.path import VE
from samplers.recipe import ScheduleFile, path_name
from samplers.schedules.formulas import SCHEDULES, get_schedule
from samplers.solvers.base import Solver
from samplers.solvers.churn import edm_sampler, general_levels
from samplers.solvers.native import sample_native, uniform_times
from samplers.solvers.table import SOLVERS, sample
from samplers.start import native, starts_exactly

__all__ = ["Cell", "Contestant", "Run", "parse_contestant", "plan_cells"]

EDM = "edm"
NATIVE = "native"  # in place of a schedule


class Run(NamedTuple):
    """A sampler ready to be called, its noise levels, and what it is compared with: the clean end or the last state."""

    sampler: Callable[..., Tensor]
    sigmas: tuple[float, ...]
    ends_at_zero: bool


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

    def at(self, nfe: int, net: Field | Callable[..., Tensor]) -> Run | str:
        """The sampler that makes exactly `nfe` evaluations per image, or the sentence why there is none."""
        field = as_field(net)
        if self.schedule == NATIVE:
            return self._native(nfe, field)
        first = int(starts_exactly(field))  # evaluations at infinite sigma
        more = " plus 1, for the exact start" if first else ""
        if self.solver == EDM:
            return self._edm(nfe - first, net, more)
        entry = SOLVERS[self.solver]
        if isinstance(self.schedule, ScheduleFile):
            return self._from_file(self.schedule, entry, nfe - first, net)
        num_steps = (nfe - first) // entry.evaluations + 1
        if num_steps < 2 or entry.nfe(num_steps, **self.options) != nfe - first:
            return f"{self.solver} takes {entry.evaluations} evaluations a step: NFE must be a multiple of it{more}"
        return self._stamps(get_schedule(num_steps, None, None, self.schedule, net=net), False)

    def _edm(self, nfe: int, net: Field | Callable[..., Tensor], more: str) -> Run | str:
        if nfe % 2 == 0:
            return f"EDM's sampler takes 2 N - 1 evaluations for N steps: NFE must be odd{more}"
        steps = (nfe + 1) // 2
        levels = general_levels(net, steps, 0.002, 80)
        return Run(functools.partial(edm_sampler, num_steps=steps), tuple(levels.tolist()), True)

    def _native(self, nfe: int, field: Field) -> Run | str:
        if isinstance(native(field).path, VE):
            return "this network lives in sigma coordinates and has no time of its own"
        try:
            times = uniform_times(nfe, self.solver)
        except ValueError as error:
            return str(error)
        run = functools.partial(_sample_native, times=times, solver=self.solver, **self.options)
        return Run(run, tuple(times.tolist()), True)

    def _from_file(self, file: ScheduleFile, entry: Solver, nfe: int, net: Field | Callable[..., Tensor]) -> Run | str:
        file.check_model(path_name(as_field(net).path))
        fits = [e for e in file.entries if e.fits(None, self.coeff) and entry.nfe(e.num_steps, afs=e.afs) == nfe]
        if not fits:
            return "the schedule file holds no schedule with this NFE"
        if len(fits) > 1:
            coeffs = ", ".join(f"{self.label}#{e.coeff:g}" for e in fits if e.coeff is not None)
            raise ValueError(
                f"{len(fits)} schedules of {self.label} have NFE {nfe}: "
                + (f"say which one with {coeffs}" if coeffs else "keep one of them in the file")
            )
        if fits[0].coefficients is not None:
            return self._stamps(fits[0].sigmas, fits[0].afs, coefficients=fits[0].coefficients)
        return self._stamps(fits[0].sigmas, fits[0].afs)

    def _stamps(self, sigmas: Tensor | Sequence[float], afs: bool, **more: Any) -> Run:
        options = SOLVERS[self.solver].resolve({**self.options, **more})
        sigmas = torch.as_tensor(sigmas, dtype=torch.float64)
        return Run(
            functools.partial(_sample, sigmas=sigmas, solver=self.solver, afs=afs, **options),
            tuple(sigmas.tolist()),
            False,
        )


def _sample(
    net: Field | Callable[..., Tensor], noise: Tensor, class_labels: Tensor | None, *, rng: Any = None, **options: Any
) -> Tensor:
    return sample(net, noise.double(), class_labels=class_labels, rng=rng, **options)


def _sample_native(
    net: Field | Callable[..., Tensor], noise: Tensor, class_labels: Tensor | None, *, rng: Any = None, **options: Any
) -> Tensor:
    return sample_native(net, noise.double(), class_labels=class_labels, **options)


def parse_contestant(text: str) -> Contestant:
    """The contestant that is written so; options of a schedule file hold where the text does not say otherwise.

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


class Cell(NamedTuple):
    """One contestant at one NFE: `run`, or `why` it is impossible."""

    label: str
    solver: str
    nfe: int
    run: Run | None
    why: str | None


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
