"""Solvers side by side: how far each ends from a fine teacher, at every number of network evaluations (NFE).

The error of a solver is the root mean square, over samples and elements, of its end point minus the teacher's, from the
same noise and with the same classes: e(NFE) = sqrt(mean |x_solver - x_teacher|^2), in units of data in [-1, 1]. Noise
is held out: its seeds are far from those that a schedule search warms up with. Where reference statistics are given,
the Fréchet distance of the images to them is measured as well (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

A contestant is written NAME[:MAX_ORDER][@SCHEDULE[#COEFF]], for example `ipndm`, `ab:2`, `dpmpp@logsnr`,
`ipndm@gits.json#1.15`; `edm` is Heun with a last step to level 0 (Karras et al. 2022, arXiv 2206.00364, Alg. 1).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from samplers.field import Field
from samplers.run import generate
from samplers.schedule_file import ScheduleFile, path_name
from samplers.schedules import SCHEDULES, get_schedule
from samplers.solve import SOLVERS, sample
from samplers.solver import Solver, Step
from samplers.stochastic import edm_sampler, general_levels
from torch_utils import distributed as dist
from torch_utils.frechet import Extractor, FeatureStats, Moments
from torch_utils.images import to_uint8
from torch_utils.misc import split_evenly

__all__ = ["HELD_OUT", "Cell", "Contestant", "Measure", "compare", "parse_contestant", "plan_cells", "tables"]

HELD_OUT = 2_000_000_000  # first seed of held-out noise
EDM = "edm"


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
        schedule: name of a schedule, or a file of searched ones.
        coeff: which of the file's coefficients; None: the only one.
    """

    label: str
    solver: str
    options: Mapping[str, Any]
    schedule: str | ScheduleFile = "polynomial"
    coeff: float | None = None

    def at(self, nfe: int, net: Field | Callable[..., Tensor]) -> Run | str:
        """The sampler that makes exactly `nfe` evaluations per image, or the sentence why there is none."""
        if self.solver == EDM:
            return self._edm(nfe, net)
        entry = SOLVERS[self.solver]
        if isinstance(self.schedule, ScheduleFile):
            return self._from_file(self.schedule, entry, nfe, net)
        num_steps = nfe // entry.evaluations + 1
        if num_steps < 2 or entry.nfe(num_steps, **self.options) != nfe:
            return f"{self.solver} takes {entry.evaluations} evaluations a step: NFE must be a multiple of it"
        return self._stamps(get_schedule(num_steps, None, None, self.schedule, net=net), False)

    def _edm(self, nfe: int, net: Field | Callable[..., Tensor]) -> Run | str:
        if nfe % 2 == 0:
            return "EDM's sampler takes 2 N - 1 evaluations for N steps: NFE must be odd"
        steps = (nfe + 1) // 2
        levels = general_levels(net, steps, 0.002, 80)
        return Run(functools.partial(edm_sampler, num_steps=steps), tuple(levels.tolist()), True)

    def _from_file(self, file: ScheduleFile, entry: Solver, nfe: int, net: Field | Callable[..., Tensor]) -> Run | str:
        file.check_model(path_name((net if isinstance(net, Field) else Field(net)).path))
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


def parse_contestant(text: str) -> Contestant:
    """`NAME[:MAX_ORDER][@SCHEDULE[#COEFF]]`; a schedule file's solver options hold unless the order is given.

    Raises:
        ValueError: unknown solver, order or schedule, a file that cannot be read.
    """
    name, _, schedule = text.strip().partition("@")
    solver, colon, order = name.partition(":")
    label = text.strip()
    if solver != EDM and solver not in SOLVERS:
        raise ValueError(f"there is no solver '{solver}': choose from {EDM}, {', '.join(SOLVERS)}")
    if solver == EDM:
        if label != EDM:
            raise ValueError(f"'{label}' is not possible: {EDM} has its own schedule and order, write {EDM} alone")
        return Contestant(EDM, EDM, {})
    if colon and not order.isdigit():
        raise ValueError(f"'{label}' names the order '{order}': write a number, for example {solver}:2")
    options: dict[str, Any] = {"max_order": int(order)} if colon else {}
    schedule, hash_, coeff = schedule.partition("#")
    if schedule.endswith(".json"):
        file = ScheduleFile.load(schedule)
        options = {**(file.options if file.solver == solver else {}), **options}
        SOLVERS[solver].resolve(options)
        label = f"{name}@{Path(schedule).stem}{hash_}{coeff}"
        return Contestant(label, solver, options, file, _number(label, coeff) if hash_ else None)
    if hash_ or (schedule and schedule not in SCHEDULES):
        raise ValueError(
            f"there is no schedule '{schedule}{hash_}{coeff}': give a schedule file (.json) or one of "
            f"{', '.join(SCHEDULES)}"
        )
    SOLVERS[solver].resolve(options)
    return Contestant(label, solver, options, schedule or "polynomial")


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


class _Teacher:
    """A fine solver that keeps both of its ends: the state at the lowest level, and the clean estimate there."""

    def __init__(self, solver: str, sigmas: Tensor) -> None:
        self.solver, self.sigmas = solver, sigmas
        self.ends: list[Tensor] = []

    def __call__(self, net: Any, noise: Tensor, class_labels: Tensor | None, *, rng: Any) -> Tensor:
        last: list[Tensor] = []

        def keep(step: Step) -> None:
            last[:] = [step.x]

        clean = sample(
            net, noise.double(), self.sigmas, solver=self.solver, class_labels=class_labels, rng=rng, trace=keep,
            denoise_to_zero=True,
        )  # fmt: skip
        self.ends += last
        return clean


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How cells are measured.

    Attributes:
        num: samples that are compared with the teacher's.
        seed: first seed.
        teacher_solver, teacher_steps: the teacher, over `teacher_steps` steps of the polynomial schedule.
        reference: statistics for the Fréchet distance; None: not measured.
        extractor: features of uint8 images, those of `reference`.
        num_fid: images for the Fréchet distance.
        batch: most images at once on one process.
    """

    num: int = 256
    seed: int = HELD_OUT
    teacher_solver: str = "heun"
    teacher_steps: int = 60
    reference: Moments | None = None
    extractor: Extractor | None = None
    num_fid: int = 0
    batch: int = 256

    def teacher(self, net: Field | Callable[..., Tensor]) -> _Teacher:
        if self.teacher_solver not in SOLVERS:
            raise ValueError(f"there is no solver '{self.teacher_solver}': choose from {', '.join(SOLVERS)}")
        return _Teacher(self.teacher_solver, get_schedule(self.teacher_steps + 1, None, None, net=net))

    def seeds(self) -> tuple[list[int], list[int]]:
        """This process's seeds: those compared with the teacher, and further ones for the Fréchet distance."""
        if self.num < 1 or (self.reference is not None and self.num_fid < 2):
            raise ValueError("a comparison needs at least 1 sample, and 2 for a Fréchet distance")
        both = (0, self.num), (self.num, max(self.num, self.num_fid if self.reference else 0))
        rank, world = dist.get_rank(), dist.get_world_size()
        shares = [split_evenly(stop - start, world)[rank] for start, stop in both]
        return tuple([self.seed + start + i for i in share] for (start, _), share in zip(both, shares, strict=True))

    def work(self, cells: Sequence[Cell]) -> int:
        """Network evaluations of this process, an image at a time."""
        compared, further = map(len, self.seeds())
        per_image = SOLVERS[self.teacher_solver].nfe(self.teacher_steps + 1, denoise_to_zero=True)
        return compared * per_image + (compared + further) * sum(c.nfe for c in cells if c.run)


def compare(
    net: Field | Callable[..., Tensor],
    cells: Sequence[Cell],
    measure: Measure,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int], Any] = lambda _: None,
) -> dict[str, Any]:
    """Run every cell; the same report on every process.

    Args:
        net: network or field with `img_channels`, `img_resolution` and `label_dim`, on `device`.
        cells: from `plan_cells`.
        progress: called with the network evaluations just made.

    Returns:
        JSON-able: how it was measured, and `results`: a list with `solver` (label), `method`, `nfe`, `sigmas`, `rmse`,
        `frechet` (with a reference), and `why` where there is no number.
    """
    compared, further = measure.seeds()
    teacher = measure.teacher(net)
    teacher_nfe = SOLVERS[teacher.solver].nfe(len(teacher.sigmas), denoise_to_zero=True)
    clean = []
    for batch in generate(net, compared, teacher, batch=measure.batch, device=device, rank=0, world=1):
        clean.append(batch.images)
        progress(teacher_nfe * len(batch.images))
    ends = {False: torch.cat(teacher.ends), True: torch.cat(clean)} if compared else {}
    results = []
    for cell in cells:
        result: dict[str, Any] = {"solver": cell.label, "method": cell.solver, "nfe": cell.nfe}
        if cell.run is None:
            results.append({**result, "sigmas": None, "rmse": None, "why": cell.why})
            continue
        seeds = compared + further
        batches = generate(net, seeds, cell.run.sampler, batch=measure.batch, device=device, rank=0, world=1)
        numbers = _measure(batches, ends.get(cell.run.ends_at_zero), cell.nfe, measure, device, progress)
        results.append({**result, "sigmas": list(cell.run.sigmas), **numbers})
    report = {
        "num": measure.num,
        "seeds": f"{measure.seed}-{measure.seed + measure.num - 1}",
        "teacher": {"solver": teacher.solver, "steps": measure.teacher_steps, "nfe": teacher_nfe - 1},
    }
    if measure.reference is not None:
        report["frechet"] = {"features": measure.extractor.name, "num": measure.num_fid}
    return {**report, "results": results}


def _measure(
    batches: Any,
    truth: Tensor | None,
    nfe: int,
    measure: Measure,
    device: torch.device | str,
    progress: Callable[[int], Any],
) -> dict[str, Any]:
    """RMSE against `truth [n, ...]`, the ends of the first n samples, and the Fréchet distance of the first num_fid."""
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # squares, elements, values that are not finite
    stats, position = None, 0
    fid_share = _share(measure.num_fid, measure) if measure.reference is not None else 0
    known = 0 if truth is None else len(truth)
    for batch in batches:
        x = batch.images
        if position < known:
            overlap = x[: known - position]
            error = overlap - truth[position : position + len(overlap)]
            sums += torch.stack([error.square().sum(), sums.new_tensor(error.numel()), sums.new_zeros(())])
        sums[2] += (~x.isfinite()).sum()
        if position < fid_share:
            features = measure.extractor(to_uint8(x.nan_to_num()[: fid_share - position]))
            stats = stats or FeatureStats(features.shape[1], features.device)
            stats.append(features)
        position += len(x)
        progress(nfe * len(x))
    squares, elements, broken = dist.all_reduce_sum(sums).tolist()
    numbers: dict[str, Any] = {"rmse": None if broken else (squares / elements) ** 0.5}
    if measure.reference is not None:
        stats = stats or FeatureStats(len(measure.reference.mu), device)
        numbers["frechet"] = stats.all_reduce().moments().distance(measure.reference)
    if broken:
        numbers |= {"rmse": None, "why": "the images hold values that are not finite"}
        numbers |= {"frechet": None} if "frechet" in numbers else {}
    return numbers
