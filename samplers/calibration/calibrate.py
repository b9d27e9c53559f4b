"""Calibrate few-step students to a model: schedule and coefficients of the solver `calibrated`, all in one go.

1. A teacher samples warm-up noise on a fine grid. GITS (`samplers.gits`) and schedules by formula offer grid points to
   start from; a fit on some of the samples decides between them.
2. `samplers.calibration.fitting` fits the coefficients of every step in closed form; the same with the analytical
   first step, which buys one more step for the same evaluations. Held-out samples decide between the two.
3. `samplers.calibration.refine` moves levels and coefficients together until the student's end points are nearest the
   teacher's, in pixels or in features (`samplers.calibration.objective`): first on a quarter of the samples, then on
   all.

    found = calibrate(field, nfe=(3, 5, 8), img_shape=(3, 32, 32))
    five = found.students[1]
    x = sample(field, noise, five.sigmas, solver="calibrated", coefficients=five.coefficients, afs=five.afs)
    found.schedule_file().save("students.json")

`docs/calibration.md` has measurements, and what else was tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

import torch
from torch import Tensor

from samplers.calibration.fitting import RIDGE, fit_coefficients
from samplers.calibration.objective import Maps, Measured, check_names, measure, mixture, read_objective
from samplers.calibration.refine import IN_TURN, Base, refine
from samplers.calibration.starts import check_starts, start_indices, starts_of, with_free_level
from samplers.calibration.student import Features, end_errors, itself
from samplers.calibration.warmup import Warmup, compared, mean, rms, student_ends, that_fit
from samplers.field import Field, as_field
from samplers.gits.costs import cost_sums, read_coefficients, shortest_path
from samplers.gits.teacher import Teacher
from samplers.recipe import Entry, ScheduleFile, path_name
from samplers.solvers.table import SOLVERS
from samplers.start import refuse_guess, starts_exactly
from torch_utils import distributed as dist

__all__ = ["Calibration", "Student", "calibrate"]

_FIRST = 64  # the first refinement uses a quarter of the samples, and at least 64
_FAVOUR = 0.5  # another start than GITS must be twice as near: few samples decide, and refinement makes up for the rest
_CHECKS = ("efficientnet-lite2", "efficientnet-lite0", "self")  # the first not fitted that can be had is reported


@dataclass(frozen=True)
class Student:
    """A calibrated sampler and how near it came to the teacher.

    Attributes:
        nfe: evaluations per sample.
        sigmas: `[N+1]` float64 levels.
        coefficients: per step, newest first, for the solver `calibrated`.
        afs: made for sampling with the analytical first step.
        errors: root-mean-square distance of end points from the teacher's, on held-out samples: "held_out" of this
            student, "ipndm" of GITS with the solver iPNDM at the same evaluations, and of the students not chosen.
        distances: of this student on held-out samples, in spreads of each feature over the teacher's: the "objective",
            its features, and one that was not fitted.
        provenance: which of those it is ("chosen"), the "start" it came from and what others would have given
            ("starts"), "start_indices" on the grid, "evaluations" that finding it took.
    """

    nfe: int
    sigmas: Tensor
    coefficients: list[list[float]]
    afs: bool
    errors: dict[str, float]
    distances: dict[str, float] = dataclass_field(default_factory=dict)
    provenance: dict[str, Any] = dataclass_field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """Students of one teacher, in the order asked for; `path`, `options` and `settings` are for the schedule file."""

    students: tuple[Student, ...]
    path: str = "ve"
    options: dict[str, Any] = dataclass_field(default_factory=dict)
    settings: dict[str, Any] = dataclass_field(default_factory=dict)

    def schedule_file(self, model_hash: str | None = None) -> ScheduleFile:
        """Ready to `save`; `generate.py --schedule` samples with it."""
        entries = [
            Entry(
                sigmas=tuple(one.sigmas.tolist()), cost=one.errors["held_out"], afs=one.afs,
                coefficients=one.coefficients,
            )
            for one in self.students
        ]  # fmt: skip
        students = [
            {"nfe": one.nfe, "errors": one.errors, "distances": one.distances, **one.provenance}
            for one in self.students
        ]
        return ScheduleFile(
            solver="calibrated",
            options=self.options,
            entries=tuple(entries),
            path=self.path,
            model_hash=model_hash,
            provenance={**self.settings, "students": students},
        )


@dataclass(frozen=True)
class _Candidate:
    name: str
    sigmas: list[float]
    coefficients: list[list[float]]
    afs: bool
    evaluations: int


def calibrate(
    field: Field | Callable[..., Tensor],
    nfe: int | Sequence[int] = 5,
    *,
    max_order: int = 4,
    afs: bool | None = None,
    coeff: float = 1.15,
    objective: str = "pixels",
    starts: Sequence[str] | None = None,
    maps: Maps | None = None,
    bases: Sequence[Base] = IN_TURN,
    num_heldout: int = 64,
    iterations: int = 4,
    max_gib: float = 4.0,
    progress: Callable[[str], Any] | None = None,
    **more: Any,
) -> Calibration:
    """Find the students that are nearest to the teacher with `nfe` evaluations per sample.

    Costs the teacher's evaluations once, and per student some `10 nfe^2` per warm-up sample (`docs/calibration.md`).
    Memory: the teacher's states of all warm-up samples, 4 T D bytes each, shared out over processes, and about as much
    again for the refinement.

    Args:
        field: a model, guided or not (evaluations are counted once for both halves of a guided one).
        nfe: evaluations per sample, one number or several.
        max_order: the most drifts a step uses, 1 to 4.
        afs: analytical first step: True, False, or None: whichever is better on held-out samples.
        coeff: factor on later jumps of the search that gives the levels to start from.
        objective: what is brought near the teacher's, for example "pixels", "self" or "efficientnet-lite0+0.1*pixels"
            (`samplers.calibration.objective`). Students are chosen by it.
        starts: where refinement may begin: "gits", and keys of `SCHEDULES`; one of them, or those to choose from.
            None: all of `samplers.calibration.starts.starts_of`.
        maps: features of images by name, for objectives that are made of them.
        bases: the parametrisations of refinement that take turns, see `samplers.calibration.refine`.
        num_heldout: further samples to choose and report on.
        iterations: most measurements of the derivatives in the first refinement; 0: fit only.
        max_gib: most memory for the teacher's states on one process; fewer warm-up samples are used where they would
            need more, and a line says so.
        progress: called with a line of text now and then.
        more: the teacher's keywords, as in `gits.search_schedule`; `num_warmup` samples are fitted on.

    Raises:
        ValueError: one sentence about the option that does not fit.
    """
    field = as_field(field)
    teacher, unknown = Teacher.of(more)
    if unknown:
        raise TypeError(f"calibrate() got an unexpected keyword argument '{next(iter(unknown))}'")
    exact = starts_exactly(field)  # takes an evaluation of its own, and leaves nothing to guess
    refuse_guess(bool(afs), exact)
    wanted = (nfe,) if isinstance(nfe, int) else tuple(nfe)
    _check_wanted(wanted, teacher.num_steps_tea, exact)
    if min(teacher.num_warmup, num_heldout) < dist.get_world_size():
        raise ValueError(
            f"num_warmup={teacher.num_warmup} and num_heldout={num_heldout} leave nothing to fit or to choose on: "
            f"give {dist.get_world_size()} or more of each, one per process"
        )
    read_coefficients(coeff)
    weights = read_objective(objective)
    check_names(weights, field.facts, maps)
    starts = starts_of(field) if starts is None else starts
    check_starts(starts)
    tell = progress or (lambda line: None)
    SOLVERS["calibrated"].resolve({"max_order": max_order})
    own = teacher.options({"max_order": max_order})
    grid = teacher.grid(field)
    num_warmup = that_fit(teacher.num_warmup, len(grid) * math.prod(teacher.shape(field)) * 4, max_gib)
    total = torch.zeros(len(grid), len(grid), dtype=torch.float64, device=teacher.device)

    def collect(rows: range, keep: list[int] | slice) -> Warmup:
        kept = Warmup([], [])
        for chunk in teacher.chunks(field, rows, num_warmup + num_heldout):
            states, directions = teacher.run(chunk, grid, **own)
            if rows.stop <= num_warmup:
                total.add_(cost_sums(states, directions, grid, teacher.metric))
            kept.chunks.append(chunk)
            kept.teacher.append(states[keep].clone())
        return kept

    few = min(num_warmup, max(_FIRST, num_warmup // 4))
    first = collect(range(few), slice(None))
    rest = collect(range(few, num_warmup), slice(None))
    every = Warmup(first.chunks + rest.chunks, first.teacher + rest.teacher)
    heldout = collect(range(num_warmup, num_warmup + num_heldout), [0, -1])
    tell(f"teacher: {teacher.solver_tea}, {len(grid)} noise levels, {num_warmup} + {num_heldout} samples")
    cost = (dist.all_reduce_sum(total) / num_warmup).cpu()
    afs_choices = (False, True) if afs is None and not exact else (bool(afs),)
    measured = _measured(weights, field, every, maps, tell)
    phi = mixture(weights, measured)
    numbers = num_warmup * phi(every.chunks[0], every.ends[0][:1]).numel()

    def student(n: int) -> Student:
        steps = n - exact
        if numbers < (unknown := _unknowns(steps, max_order)):
            raise ValueError(
                f"{num_warmup} warm-up samples give {numbers} numbers to fit and a solver of {n} evaluations has "
                f"{unknown} parameters: raise --num-warmup, or ask for fewer evaluations"
            )
        offers = {name: start_indices(name, steps, field, grid, cost, coeff) for name in starts}
        knots = shortest_path(cost, steps + 1, coeff)
        errors = {"ipndm": rms(end_errors(student_ends(heldout, grid[knots].tolist(), "ipndm"), heldout.ends))}

        def score(one: _Candidate) -> float:
            ends = student_ends(heldout, one.sigmas, "calibrated", one.afs, one.coefficients, max_order)
            errors[one.name] = rms(end_errors(ends, heldout.ends))
            # The mean distance is less at the mercy of single samples than the mean square.
            return mean(compared(phi, heldout, ends).sqrt())

        begun = {name: _fitted(first, grid, cost, at, coeff, max_order, bool(afs), name) for name, at in offers.items()}
        offered = {name: score(one) for name, one in begun.items()} if len(begun) > 1 else dict.fromkeys(begun, 0.0)
        start = min(offered, key=lambda name: offered[name] * (_FAVOUR if name == "gits" else 1))
        others = {name: errors.pop(name) for name in offers if name in errors}
        candidates = [_fitted(every, grid, cost, offers[start], coeff, max_order, free) for free in afs_choices]
        scores = [score(one) for one in candidates]
        if iterations > 0:
            candidates.append(_refined(first, every, candidates[scores.index(min(scores))], iterations, phi, bases))
            scores.append(score(candidates[-1]))
        best = candidates[scores.index(min(scores))]
        ends = student_ends(heldout, best.sigmas, "calibrated", best.afs, best.coefficients, max_order)
        distance = {k: rms(compared(m.features, heldout, ends)) / m.spread for k, m in measured.items()}
        tell(
            f"{n} evaluation{'s' * (n > 1)}, {best.name} from {start}: distance to the teacher {errors[best.name]:.4g} "
            f"(ipndm {errors['ipndm']:.4g}); {', '.join(f'{name} {d:.3g}' for name, d in distance.items())} spreads"
        )
        evaluations = sum(c.evaluations for c in candidates) + (len(begun) > 1) * len(begun) * n
        return Student(
            nfe=n, sigmas=torch.tensor(best.sigmas, dtype=torch.float64), coefficients=best.coefficients, afs=best.afs,
            errors={"held_out": errors[best.name], **errors}, distances=distance,
            provenance={
                "chosen": best.name, "start": start, "starts": others, "start_indices": offers[start],
                "evaluations": evaluations,
            },
        )  # fmt: skip

    with torch.no_grad():
        students = tuple(student(n) for n in wanted)
    return Calibration(
        students=students,
        path=path_name(field.path),
        options={"max_order": max_order},
        settings={
            "method": "calibrated", **teacher.settings(), "num_warmup": num_warmup, "options_tea": own, "coeff": coeff,
            "num_heldout": num_heldout, "ridge": RIDGE, "grid": grid.tolist(), "objective": objective,
            "features": {name: {"spread": one.spread, "sha256": one.digest} for name, one in measured.items()},
        },
    )  # fmt: skip


def _check_wanted(wanted: Sequence[int], teacher_levels: int, exact: bool) -> None:
    """A ValueError for no numbers of evaluations, one named twice, or one not to be had from this teacher."""
    low, high = 1 + exact, teacher_levels - 2 + exact
    for n in wanted:
        if not low <= n <= high:
            raise ValueError(
                f"nfe={n} evaluations are not possible with a teacher of {teacher_levels} noise levels: "
                f"give {low} to {high}, or a finer teacher (num_steps_tea)"
            )
    if not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(f"nfe={','.join(map(str, wanted))}: give one or more numbers of evaluations, each once")


def _unknowns(steps: int, max_order: int) -> int:
    """Interior levels and coefficients of a student."""
    return steps - 1 + sum(min(n + 1, max_order) for n in range(steps))


def _measured(
    weights: Mapping[str, float], field: Field, samples: Warmup, maps: Maps | None, tell: Callable[[str], Any]
) -> dict[str, Measured]:
    """The features that the objective is made of, and the first of `_CHECKS` that is none of them and can be had."""
    found = measure(weights, field.facts, samples.chunks, samples.ends, maps)
    missing = ""
    for name in _CHECKS:
        if name not in weights:
            try:
                return found | measure([name], field.facts, samples.chunks, samples.ends, maps)
            except ValueError as error:
                missing = missing or str(error)
    tell(f"no distance is reported in features that are not fitted: {missing}")
    return found


def _fitted(
    every: Warmup, grid: Tensor, cost: Tensor, indices: list[int], coeff: float, max_order: int, afs: bool,
    name: str = "fitted",
) -> _Candidate:  # fmt: skip
    """The student on the searched knots, in closed form."""
    if afs:
        indices = with_free_level(cost, indices, coeff)
    sigmas = grid[indices].tolist()
    fit = fit_coefficients(every.chunks, every.at(indices), sigmas, max_order=max_order, afs=afs)
    return _Candidate(
        name if name != "fitted" else f"fitted{', afs' * afs}", sigmas, fit.coefficients, afs, len(sigmas) - 1 - afs
    )


def _refined(
    first: Warmup, every: Warmup, start: _Candidate, iterations: int, phi: Features, bases: Sequence[Base]
) -> _Candidate:
    """Levels and coefficients moved together, on some of the samples until that ends, then on all.

    Features are fitted after pixels: on their own they may end in optima that are worse even in the features.
    """
    stages = [(first, iterations, phi)] if phi is itself else [
        (first, (iterations + 1) // 2, itself), (first, iterations // 2, phi)
    ]  # fmt: skip
    if len(every.chunks) > len(first.chunks):
        stages.append((every, 1, phi))
    sigmas, coefficients, evaluations = start.sigmas, start.coefficients, start.evaluations
    for samples, most, features in stages:
        found = refine(
            samples.chunks, samples.teacher, sigmas, coefficients, afs=start.afs, iterations=most, phi=features,
            bases=bases,
        )  # fmt: skip
        sigmas, coefficients, evaluations = found.sigmas, found.coefficients, evaluations + found.evaluations
    return _Candidate(f"refined{', afs' * start.afs}", sigmas, coefficients, start.afs, evaluations)
