"""Warm-up samples and the teacher's trajectories on them: what schedule search and calibration measure on.

Sample i of a warm-up draws its noise, then its class, from a generator of its own, seeded with (seed, i). Processes
share the samples out, chunks bound the memory; neither changes a sample. These seeds are not those of `generate.py`:
images made later are held out. Everything is in VE coordinates, whatever the path of the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from samplers.conditions import check_class, draw_conditions
from samplers.field import Field
from samplers.gits.costs import METRICS
from samplers.schedules.formulas import get_schedule
from samplers.solvers.base import Step
from samplers.solvers.table import SOLVERS, sample
from samplers.start import Chunk, start_noise
from torch_utils import distributed as dist
from torch_utils.misc import split_evenly
from torch_utils.rng import PerSampleRNG, fold_seed

# Solvers that evaluate the network at every state they pass through; unipc does so at its predictions only.
TEACHERS = ("euler", "heun", "dpm", "ipndm", "ipndm_v", "ab", "deis", "dpmpp")
_STREAM = 0x6717  # keeps warm-up seeds apart from every other use of a user's seed


class TeacherRun(NamedTuple):
    """States `[T, b, ...]` (one more with denoise_to_zero) and the drifts `[T-1, b, ...]` first used in each step."""

    states: Tensor
    directions: Tensor


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The fine solver that a search or calibration measures on, and its warm-up samples.

    `search_schedule` and `calibrate` take these as keywords of their own.

    Attributes:
        img_shape: shape of one sample; default: the network's.
        solver_tea, num_steps_tea: the solver and its number of levels.
        metric: cost of a jump between two levels, "dev", "l1" or "l2".
        num_warmup: samples to measure on, over all processes.
        batch: most samples at once on one process.
        seed: of the warm-up draws.
        class_idx: one class for all samples.
        sigma_min, sigma_max, schedule_type, schedule_rho: the levels, as in `get_schedule`.
        device: where the network is.
    """

    img_shape: Sequence[int] | None = None
    solver_tea: str = "ipndm"
    num_steps_tea: int = 61
    metric: str = "dev"
    num_warmup: int = 256
    batch: int = 64
    seed: int = 0
    class_idx: int | None = None
    sigma_min: float | None = 0.002
    sigma_max: float | None = 80
    schedule_type: str = "polynomial"
    schedule_rho: float = 7
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"unknown metric '{self.metric}': choose one of {', '.join(METRICS)}")
        if self.solver_tea not in TEACHERS:
            raise ValueError(f"solver '{self.solver_tea}' cannot be the teacher: choose from {', '.join(TEACHERS)}")

    @classmethod
    def of(cls, keywords: Mapping[str, Any]) -> tuple[Teacher, dict[str, Any]]:
        """Build a teacher from the keywords that are its own; also returns the other keywords."""
        own = {f.name for f in dataclasses.fields(cls)}
        rest = {name: value for name, value in keywords.items() if name not in own}
        return cls(**{name: value for name, value in keywords.items() if name in own}), rest

    def options(self, student: Mapping[str, Any]) -> dict[str, Any]:
        """The solver options of the teacher: those of the student that it knows."""
        known = SOLVERS[self.solver_tea].options
        return SOLVERS[self.solver_tea].resolve({k: v for k, v in student.items() if k in known})

    def shape(self, field: Field) -> tuple[int, ...]:
        """Shape of one sample."""
        shape = field.facts.shape if self.img_shape is None else self.img_shape
        if shape is None:
            raise ValueError(
                "this model does not say what its samples look like: give img_shape, for example (3, 32, 32)"
            )
        return tuple(shape)

    def grid(self, field: Field) -> Tensor:
        """The teacher's levels, `[num_steps_tea]` float64 on the CPU."""
        ends = self.sigma_min, self.sigma_max
        return get_schedule(self.num_steps_tea, *ends, self.schedule_type, self.schedule_rho, net=field)

    def chunks(self, field: Field, rows: range | None = None, total: int | None = None) -> Iterator[Chunk]:
        """This process's share of `rows` of `total` warm-up samples; default: of all `num_warmup`."""
        return warmup_chunks(
            field, self.num_warmup if total is None else total, self.shape(field), batch=self.batch, seed=self.seed,
            class_idx=self.class_idx, rows=rows, device=self.device,
        )  # fmt: skip

    def run(self, chunk: Chunk, grid: Tensor, *, afs: bool = False, **options: Any) -> TeacherRun:
        """The teacher's trajectories on some samples, see `run_teacher`."""
        return run_teacher(chunk, grid, self.solver_tea, afs=afs, **options)

    def settings(self) -> dict[str, Any]:
        """What is worth knowing of a search, as plain JSON."""
        names = ("solver_tea", "num_steps_tea", "metric", "num_warmup", "seed", "class_idx")
        return {name: getattr(self, name) for name in names}


def warmup_chunks(
    field: Field,
    num_warmup: int,
    img_shape: Sequence[int],
    *,
    batch: int = 64,
    seed: int = 0,
    class_idx: int | None = None,
    rows: range | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Iterator[Chunk]:
    """This process's share of the warm-up samples, at most `batch` at a time.

    Args:
        field: the model. Conditions already bound to it are kept: one row for all samples, or `num_warmup` rows.
            Otherwise a network with `label_dim` gets one-hot classes, uniform over samples.
        num_warmup: samples over all processes.
        seed: of the draws.
        class_idx: one class for all samples.
        rows: which of the samples; default: all. Processes share these out.
        dtype: of the noise, and so of every solve.

    Raises:
        ValueError: at once, for fewer samples than processes or a class the network does not have.
    """
    if num_warmup < 1:
        raise ValueError(f"num_warmup={num_warmup} leaves nothing to measure on: give 1 or more warm-up samples")
    if num_warmup < dist.get_world_size():
        raise ValueError(
            f"num_warmup={num_warmup} warm-up samples are fewer than the {dist.get_world_size()} processes: "
            "give one for each at least"
        )
    if batch < 1:
        raise ValueError(f"the batch size is {batch}: give 1 or more")
    if field.class_labels is None:
        check_class(field.facts, class_idx)
    elif class_idx is not None:
        raise ValueError(f"class {class_idx} cannot be given to this network: it takes none, its labels are bound")
    rows = range(num_warmup) if rows is None else rows
    part = split_evenly(len(rows), dist.get_world_size())[dist.get_rank()]
    share = rows[part.start : part.stop]
    return _chunks(field, num_warmup, tuple(img_shape), share, batch, seed, class_idx, device, dtype)


def _chunks(
    field: Field, total: int, shape: tuple[int, ...], share: range, batch: int, seed: int,
    class_idx: int | None, device: torch.device | str, dtype: torch.dtype,
) -> Iterator[Chunk]:  # fmt: skip
    for start in range(share.start, share.stop, batch):
        rows = range(start, min(start + batch, share.stop))
        rng = PerSampleRNG([fold_seed(_STREAM, seed, i) for i in rows])
        noise = rng.randn([len(rows), *shape]).to(device, dtype)
        bound = replace(
            field,
            class_labels=_rows(field.class_labels, rows, total),
            cond={key: _rows(value, rows, total) for key, value in field.cond.items()},
        )
        drawn = draw_conditions(field.facts, rng, len(rows), class_idx) if field.class_labels is None else None
        if drawn is not None:
            bound = replace(bound, class_labels=drawn.to(device))
        begin = field.facts.warmup_start
        yield Chunk(bound.ve(), start_noise(bound, noise) if begin is None else begin(noise, rows))


def _rows(value: Any, rows: range, total: int) -> Any:
    """The rows of a condition that belong to some of the samples; what is shared stays."""
    if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] == 1:
        return value
    if value.shape[0] != total:
        raise ValueError(
            f"a condition of shape {list(value.shape)} is bound to the model, and there are {total} warm-up samples: "
            "bind one row for all of them, or one per sample"
        )
    return value[rows.start : rows.stop]


@torch.no_grad()
def run_teacher(
    chunk: Chunk,
    grid: Tensor,
    solver: str = "ipndm",
    *,
    afs: bool = False,
    denoise_to_zero: bool = False,
    **options: Any,
) -> TeacherRun:
    """Sample a chunk over `grid [T]` and keep every state and direction: 2 T D numbers per sample."""
    T, x = len(grid), chunk.noise
    states, directions = (x.new_empty(n, *x.shape) for n in (T + denoise_to_zero, T - 1))

    def keep(step: Step) -> None:
        states[step.i] = step.x
        if step.i < T - 1:
            directions[step.i] = step.drift

    states[-1] = sample(
        chunk.field, x, grid, solver=solver, afs=afs, denoise_to_zero=denoise_to_zero, trace=keep, **options
    )
    return TeacherRun(states, directions)
