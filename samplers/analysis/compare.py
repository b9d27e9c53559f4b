"""Solvers side by side: how far each ends from a fine teacher, at every number of network evaluations (NFE).

The error of a solver is the root mean square, over samples and elements, of its end point minus the teacher's, from the
same noise and with the same classes: e(NFE) = sqrt(mean |x_solver - x_teacher|^2), in units of data in [-1, 1]. Noise
is held out: its seeds are far from those that a schedule search warms up with. Where reference statistics are given,
the Fréchet distance of the images to them is measured as well (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    cells = plan_cells([parse_contestant("heun"), parse_contestant("ipndm:3")], range(3, 11), net)
    report = compare(net, cells, Measure(num=256))
    print(tables(report)[0].text())
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from samplers.field import Field, as_field
from samplers.planning.base import Plan
from samplers.run import Samples, generate
from samplers.schedules.formulas import get_schedule
from samplers.solvers.base import Step
from samplers.solvers.table import SOLVERS, sample, solver_named
from samplers.start import starts_exactly
from torch_utils import distributed as dist
from torch_utils.frechet import Extractor, FeatureStats, Moments
from torch_utils.images import to_uint8
from torch_utils.misc import split_evenly
from torch_utils.report.page import Table

HELD_OUT = 2_000_000_000  # first seed of held-out noise


class Cell(NamedTuple):
    """One contestant at one NFE: its `plan`, or `why` it is impossible."""

    label: str
    solver: str
    nfe: int
    plan: Plan | None
    why: str | None


class _Reference:
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
        num_fid: images for the Fréchet distance, the compared ones included; None: only those.
        batch: most images at once on one process.
    """

    num: int = 256
    seed: int = HELD_OUT
    teacher_solver: str = "heun"
    teacher_steps: int = 60
    reference: Moments | None = None
    extractor: Extractor | None = None
    num_fid: int | None = None
    batch: int = 256

    def teacher(self, net: Field | Callable[..., Tensor]) -> _Reference:
        return _Reference(
            solver_named(self.teacher_solver).name, get_schedule(self.teacher_steps + 1, None, None, net=net)
        )

    def seeds(self) -> tuple[list[int], list[int]]:
        """This process's seeds: those compared with the teacher, and further ones for the Fréchet distance."""
        total = self.num if self.num_fid is None else self.num_fid
        if self.num < 1 or (self.reference is not None and total < 2):
            raise ValueError("a comparison needs at least 1 sample, and 2 for a Fréchet distance")
        if total < self.num:
            raise ValueError(
                f"the Fréchet distance of {total} images was asked for, and the error over {self.num}: all compared "
                "images count for both, so give num at most num_fid"
            )
        both = (0, self.num), (self.num, total)
        rank, world = dist.get_rank(), dist.get_world_size()
        shares = [split_evenly(stop - start, world)[rank] for start, stop in both]
        return tuple([self.seed + start + i for i in share] for (start, _), share in zip(both, shares, strict=True))

    def work(self, cells: Sequence[Cell]) -> int:
        """Network evaluations of this process, an image at a time."""
        compared, further = map(len, self.seeds())
        per_image = SOLVERS[self.teacher_solver].nfe(self.teacher_steps + 1, denoise_to_zero=True)
        return compared * per_image + (compared + further) * sum(c.nfe for c in cells if c.plan)


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
    exact = starts_exactly(as_field(net))  # one evaluation before the first step
    teacher_nfe = SOLVERS[teacher.solver].nfe(len(teacher.sigmas), denoise_to_zero=True) + exact
    clean = []
    for batch in generate(net, compared, teacher, batch=measure.batch, device=device, rank=0, world=1):
        clean.append(batch.images)
        progress(teacher_nfe * len(batch.images))
    ends = {False: torch.cat(teacher.ends), True: torch.cat(clean)} if compared else {}
    results = []
    for cell in cells:
        result: dict[str, Any] = {"solver": cell.label, "method": cell.solver, "nfe": cell.nfe}
        if cell.plan is None:
            results.append({**result, "sigmas": None, "rmse": None, "why": cell.why})
            continue
        seeds = compared + further
        batches = generate(net, seeds, cell.plan, batch=measure.batch, device=device, rank=0, world=1)
        numbers = _measure(batches, ends.get(bool(cell.plan.sigmas[-1] == 0)), cell.nfe, measure, device, progress)
        results.append({**result, "sigmas": cell.plan.sigmas.tolist(), **numbers})
    report = {
        "num": measure.num,
        "seeds": f"{measure.seed}-{measure.seed + measure.num - 1}",
        "teacher": {"solver": teacher.solver, "steps": measure.teacher_steps, "nfe": teacher_nfe - 1},
    }
    if measure.reference is not None:
        num = measure.num if measure.num_fid is None else measure.num_fid
        report["frechet"] = {"features": measure.extractor.name, "num": num}
    return {**report, "results": results}


def _measure(
    batches: Iterator[Samples],
    truth: Tensor | None,
    nfe: int,
    measure: Measure,
    device: torch.device | str,
    progress: Callable[[int], Any],
) -> dict[str, Any]:
    """RMSE of the first samples against their ends `truth [n, ...]`, and the Fréchet distance of all of them."""
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # squares, elements, values that are not finite
    stats, position = None, 0
    for batch in batches:
        x = batch.images
        if truth is not None and position < len(truth):
            error = (x[: len(truth) - position] - truth[position : position + len(x)]).square().sum()
            sums[:2] += torch.stack([error, sums.new_tensor(x[: len(truth) - position].numel())])
        sums[2] += (~x.isfinite()).sum()
        if measure.reference is not None:
            features = measure.extractor(to_uint8(x.nan_to_num()))
            stats = stats or FeatureStats(features.shape[1], features.device)
            stats.append(features)
        position += len(x)
        progress(nfe * len(x))
    squares, elements, broken = dist.all_reduce_sum(sums).tolist()
    numbers: dict[str, Any] = {"rmse": (squares / elements) ** 0.5}
    if measure.reference is not None:
        stats = stats or FeatureStats(len(measure.reference.mu), device)
        numbers["frechet"] = stats.all_reduce().moments().distance(measure.reference)
    if broken:
        return {**dict.fromkeys(numbers), "why": "the images hold values that are not finite"}
    return numbers


def tables(report: Mapping[str, Any]) -> list[Table]:
    """The report of `compare` as tables NFE x solver, the lowest number of every row marked.

    Raises:
        ValueError: a mapping that is no such report.
    """
    try:
        results, teacher = report["results"], report["teacher"]
        cells = {(r["nfe"], r["solver"]): r for r in results}
        error = f"Error against {teacher['solver']} with {teacher['nfe']} NFE (RMSE over {report['num']} samples)"
        measures = {"rmse": error}
        if "frechet" in report:
            measures["frechet"] = (
                f"Fréchet distance ({report['frechet']['features']}, {report['frechet']['num']} images)"
            )
    except (KeyError, TypeError) as missing:
        raise ValueError("this is not the JSON of a comparison: make one with `analyze.py compare`") from missing
    return [_table(cells, key, title) for key, title in measures.items()]


def _table(cells: Mapping[tuple[int, str], Mapping[str, Any]], key: str, title: str) -> Table:
    nfes, labels = (list(dict.fromkeys(k)) for k in zip(*cells, strict=True))
    rows, best = [], set()
    for r, nfe in enumerate(nfes):
        values = [cells.get((nfe, label), {}).get(key) for label in labels]
        rows.append((str(nfe), *map(_three_digits, values)))
        known = [v for v in values if v is not None]
        best |= {(r, c + 1) for c, v in enumerate(values) if known and v == min(known)}
    return Table(
        title, ("NFE", *labels), rows, frozenset(best), "Marked: the lowest of its row. -: not possible with this NFE."
    )


def _three_digits(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"
