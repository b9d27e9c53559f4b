"""Calibrate few-step students to a model: schedule and coefficients of the solver `calibrated`, all in one go.

1. A teacher samples warm-up noise on a fine grid; GITS (`samplers.gits`) picks the grid points to start from.
2. `samplers.calibration.fitting` fits the coefficients of every step in closed form; the same with the analytical
   first step, which buys one more step for the same evaluations. Held-out samples decide between the two.
3. `samplers.calibration.refine` moves levels and coefficients together until the student's end points are nearest the
   teacher's: first on a quarter of the samples, then on all.

    found = calibrate(field, nfe=(3, 5, 8), img_shape=(3, 32, 32))
    five = found.students[1]
    x = sample(field, noise, five.sigmas, solver="calibrated", coefficients=five.coefficients, afs=five.afs)
    found.schedule_file().save("students.json")

`docs/gits.md` has measurements, and what else was tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

import torch
from torch import Tensor

from samplers.calibration.fitting import RIDGE, fit_coefficients
from samplers.calibration.refine import end_errors, refine
from samplers.field import Field, as_field
from samplers.gits.costs import cost_sums, read_coefficients, shortest_path
from samplers.gits.teacher import Teacher
from samplers.recipe import Entry, ScheduleFile, path_name
from samplers.solvers.table import SOLVERS, sample
from samplers.start import Chunk, refuse_guess, starts_exactly
from torch_utils import distributed as dist

__all__ = ["Calibration", "Student", "calibrate"]

_FIRST = 64  # the first refinement uses a quarter of the samples, and at least 64


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
        provenance: which of those it is ("chosen"), "start_indices" on the grid, "evaluations" that finding it took.
    """

    nfe: int
    sigmas: Tensor
    coefficients: list[list[float]]
    afs: bool
    errors: dict[str, float]
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
        students = [{"nfe": one.nfe, "errors": one.errors, **one.provenance} for one in self.students]
        return ScheduleFile(
            solver="calibrated",
            options=self.options,
            entries=tuple(entries),
            path=self.path,
            model_hash=model_hash,
            provenance={**self.settings, "students": students},
        )


@dataclass(frozen=True)
class _Warmup:
    """Samples of this process and the teacher's states on them, `[T, b, ...]` (or first and last only)."""

    chunks: list[Chunk]
    teacher: list[Tensor]

    def at(self, indices: Sequence[int]) -> list[Tensor]:
        return [x[list(indices)] for x in self.teacher]


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
    num_heldout: int = 64,
    iterations: int = 4,
    max_gib: float = 4.0,
    progress: Callable[[str], Any] | None = None,
    **more: Any,
) -> Calibration:
    """Find the students that are nearest to the teacher with `nfe` evaluations per sample.

    Costs the teacher's evaluations once, and per student some `10 nfe^2` on every warm-up sample (`docs/gits.md`).
    Memory: the teacher's states of all warm-up samples, 4 T D bytes each, shared out over processes, and about as much
    again for the refinement.

    Args:
        field: a model, guided or not (evaluations are counted once for both halves of a guided one).
        nfe: evaluations per sample, one number or several.
        max_order: the most drifts a step uses, 1 to 4.
        afs: analytical first step: True, False, or None: whichever is better on held-out samples.
        coeff: factor on later jumps of the search that gives the levels to start from.
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
    for n in wanted:
        if not 1 + exact <= n <= teacher.num_steps_tea - 2 + exact:
            raise ValueError(
                f"nfe={n} evaluations are not possible with a teacher of {teacher.num_steps_tea} noise levels: "
                f"give {1 + exact} to {teacher.num_steps_tea - 2 + exact}, or a finer teacher (num_steps_tea)"
            )
    if not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(f"nfe={','.join(map(str, wanted))}: give one or more numbers of evaluations, each once")
    if min(teacher.num_warmup, num_heldout) < dist.get_world_size():
        raise ValueError(
            f"num_warmup={teacher.num_warmup} and num_heldout={num_heldout} leave nothing to fit or to choose on: "
            f"give {dist.get_world_size()} or more of each, one per process"
        )
    read_coefficients(coeff)
    tell = progress or (lambda line: None)
    SOLVERS["calibrated"].resolve({"max_order": max_order})
    own = teacher.options({"max_order": max_order})
    grid = teacher.grid(field)
    num_warmup = _that_fit(teacher.num_warmup, len(grid) * math.prod(teacher.shape(field)) * 4, max_gib)
    total = torch.zeros(len(grid), len(grid), dtype=torch.float64, device=teacher.device)

    def collect(rows: range, keep: list[int] | slice) -> _Warmup:
        kept = _Warmup([], [])
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
    every = _Warmup(first.chunks + rest.chunks, first.teacher + rest.teacher)
    heldout = collect(range(num_warmup, num_warmup + num_heldout), [0, -1])
    tell(f"teacher: {teacher.solver_tea}, {len(grid)} noise levels, {num_warmup} + {num_heldout} samples")
    cost = (dist.all_reduce_sum(total) / num_warmup).cpu()
    afs_choices = (False, True) if afs is None and not exact else (bool(afs),)

    def student(n: int) -> Student:
        indices = shortest_path(cost, n - exact + 1, coeff)
        errors = {"ipndm": _rms(_distances(heldout, grid[indices].tolist(), "ipndm", afs=False))}

        def score(one: _Candidate) -> float:
            distances = _distances(heldout, one.sigmas, "calibrated", one.afs, one.coefficients, max_order)
            errors[one.name] = _rms(distances)
            tell(f"{n} evaluations, {one.name}: distance to the teacher {errors[one.name]:.4g}")
            return _mean(distances.sqrt())  # less at the mercy of single samples than the mean square

        candidates = [_fitted(every, grid, cost, indices, coeff, max_order, free) for free in afs_choices]
        scores = [score(one) for one in candidates]
        if iterations > 0:
            candidates.append(_refined(first, every, candidates[scores.index(min(scores))], iterations))
            scores.append(score(candidates[-1]))
        best = candidates[scores.index(min(scores))]
        return Student(
            nfe=n, sigmas=torch.tensor(best.sigmas, dtype=torch.float64), coefficients=best.coefficients, afs=best.afs,
            errors={"held_out": errors[best.name], **errors},
            provenance={
                "chosen": best.name, "start_indices": indices, "evaluations": sum(c.evaluations for c in candidates),
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
            "num_heldout": num_heldout, "ridge": RIDGE, "grid": grid.tolist(),
        },
    )  # fmt: skip


def _that_fit(num_warmup: int, bytes_each: int, max_gib: float) -> int:
    """The number of warm-up samples, at most what the memory for the teacher's states holds."""
    most = int(max_gib * 2**30 / bytes_each) * dist.get_world_size()
    if most < 1:
        raise ValueError(
            f"the teacher's states of one sample take {bytes_each / 2**30:.2g} GiB and max_gib={max_gib:g} allows "
            "less: raise max_gib, or use a coarser teacher (num_steps_tea)"
        )
    if most < num_warmup:
        dist.print0(f"calibrating on {most} of {num_warmup} warm-up samples: max_gib={max_gib:g} holds no more")
    return min(num_warmup, most)


def _with_free_level(cost: Tensor, indices: list[int], coeff: float) -> list[int]:
    """One more level for the step that AFS makes free, two thirds into the first jump; refinement moves it anyway."""
    if indices[1] == 1:
        return shortest_path(cost, len(indices) + 1, coeff)
    return [0, max(1, round(2 / 3 * indices[1])), *indices[1:]]


def _fitted(
    every: _Warmup, grid: Tensor, cost: Tensor, indices: list[int], coeff: float, max_order: int, afs: bool
) -> _Candidate:
    """The student on the searched knots, in closed form."""
    if afs:
        indices = _with_free_level(cost, indices, coeff)
    sigmas = grid[indices].tolist()
    fit = fit_coefficients(every.chunks, every.at(indices), sigmas, max_order=max_order, afs=afs)
    return _Candidate(f"fitted{', afs' * afs}", sigmas, fit.coefficients, afs, len(sigmas) - 1 - afs)


def _refined(first: _Warmup, every: _Warmup, start: _Candidate, iterations: int) -> _Candidate:
    """Levels and coefficients moved together, on some of the samples until that ends, then on all."""
    found = refine(first.chunks, first.teacher, start.sigmas, start.coefficients, afs=start.afs, iterations=iterations)
    evaluations = start.evaluations + found.evaluations
    if len(every.chunks) > len(first.chunks):
        found = refine(every.chunks, every.teacher, found.sigmas, found.coefficients, afs=start.afs, iterations=1)
        evaluations += found.evaluations
    return _Candidate(f"refined{', afs' * start.afs}", found.sigmas, found.coefficients, start.afs, evaluations)


def _distances(
    samples: _Warmup, sigmas: list[float], solver: str, afs: bool, coefficients: Any = None, max_order: int = 4
) -> Tensor:
    """Mean square distance from the teacher's end points, one per sample of this process."""
    options = {} if coefficients is None else {"coefficients": coefficients, "max_order": max_order}
    ends = [sample(c.field, c.noise, sigmas, solver=solver, afs=afs, **options) for c in samples.chunks]
    return end_errors(ends, samples.teacher)


def _mean(values: Tensor) -> float:
    sums = dist.all_reduce_sum(torch.stack([values.sum(), torch.ones_like(values).sum()]))
    return float(sums[0] / sums[1])


def _rms(squares: Tensor) -> float:
    return _mean(squares) ** 0.5
