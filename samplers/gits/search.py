"""GITS: the time schedule that follows the bend which all sampling trajectories share, found without training.

A teacher samples some warm-up noise on a fine grid of T levels; the cost of jumping from grid point i straight to j is
measured on its trajectories (`cost_matrix`), and dynamic programming picks the cheapest N jumps (`shortest_path`).

    found = search_schedule(field, num_steps=7, img_shape=(3, 32, 32))
    x = sample(field, noise, found.sigmas, solver="ipndm")
    found.schedule_file().save("schedule.json")             # every number of steps and every coefficient

Source: Chen, Zhou, Wang, Shen, Lyu: On the Trajectory Regularity of ODE-based Diffusion Sampling, ICML 2024, arXiv
2405.11326, section 4. With AFS one more level is put into the first jump, which then costs no evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

import torch
from torch import Tensor

from samplers.field import Field, as_field
from samplers.gits.costs import cost_matrix, cost_sums, path_cost, path_table, read_coefficients, shortest_path
from samplers.gits.teacher import Teacher
from samplers.recipe import Entry, ScheduleFile, path_name
from samplers.solvers.table import sample, solver_named
from samplers.start import Chunk
from torch_utils import distributed as dist

__all__ = ["Found", "cost_matrix", "insert_free_step", "search_schedule", "shortest_path"]

TABLE_STEPS = 21  # schedules of up to 21 levels come with every search: 20 steps, as published tables have


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        sigmas: `[num_steps]` float64 levels (with AFS one more), a subset of `grid`.
        indices: their places in `grid`.
        cost: `[T, T]` float64, mean over the warm-up samples, on the CPU.
        grid: `[T]` the teacher's levels.
        table: coefficient -> number of levels -> indices, everything the one dynamic programme knows.
        afs: `sigmas` is for sampling with the analytical first step.
        solver, options, path: of the student, for the schedule file.
        settings: how the search was run; plain JSON.
    """

    sigmas: Tensor
    indices: list[int]
    cost: Tensor
    grid: Tensor
    table: dict[float, dict[int, list[int]]]
    afs: bool = False
    solver: str = "ipndm"
    options: dict[str, Any] = dataclass_field(default_factory=dict)
    path: str = "ve"
    settings: dict[str, Any] = dataclass_field(default_factory=dict)

    def entries(self) -> tuple[Entry, ...]:
        """Schedules of every length and coefficient; with AFS the one whose free step was searched."""
        coeff = next(iter(self.table))
        if self.afs:
            return (self._entry(self.indices, coeff),)
        return tuple(self._entry(path, g) for g, paths in self.table.items() for path in paths.values())

    def _entry(self, indices: list[int], coeff: float) -> Entry:
        return Entry(
            sigmas=tuple(self.grid[indices].tolist()),
            coeff=coeff,
            indices=tuple(indices),
            cost=path_cost(self.cost, indices, coeff),
            afs=self.afs,
        )

    def schedule_file(self, model_hash: str | None = None) -> ScheduleFile:
        """Everything found, ready to `save`."""
        return ScheduleFile(
            solver=self.solver,
            options=self.options,
            entries=self.entries(),
            path=self.path,
            model_hash=model_hash,
            provenance={**self.settings, "grid": self.grid.tolist()},
        )


def search_schedule(
    field: Field | Callable[..., Tensor],
    num_steps: int = 7,
    *,
    solver: str = "ipndm",
    coeff: float | Sequence[float] = 1.15,
    afs: bool = False,
    progress: Callable[[int], Any] | None = None,
    **more: Any,
) -> Found:
    """Search the schedule of a model.

    Costs `num_warmup` times the teacher's evaluations, and memory for two trajectories of `batch` samples, whatever
    `num_warmup` is (with AFS also the noise and end point of every sample). Processes share the samples.

    Args:
        field: a model, guided or not; conditions bound to it are kept, else classes are drawn.
        num_steps: levels to find, one more than steps; every shorter schedule, and those up to 21, come along.
        solver: the student; the schedule depends on it with AFS only.
        coeff: factor on later jumps, or a list of them; the first gives `sigmas`.
        afs: search for sampling with the analytical first step, which the teacher then takes as well.
        progress: called with the number of samples each time a chunk is done.
        more: the teacher's keywords (`Teacher`: img_shape, solver_tea, num_steps_tea, metric, num_warmup, batch, seed,
            class_idx, sigma_min, sigma_max, schedule_type, schedule_rho, device), and options of the student; those
            that the teacher knows are the teacher's as well.

    Raises:
        ValueError: one sentence about the option that does not fit.
    """
    field = as_field(field)
    coeffs = read_coefficients(coeff)
    teacher, options = Teacher.of(more)
    if not 2 <= num_steps <= teacher.num_steps_tea:
        raise ValueError(
            f"num_steps={num_steps} noise levels cannot be chosen from a teacher's {teacher.num_steps_tea}: "
            "give at least 2 and at most num_steps_tea"
        )
    student = solver_named(solver)
    if student.adaptive:
        raise ValueError(f"solver '{solver}' chooses its own steps: search a schedule for a solver that follows one")
    options = student.resolve(options)
    student.check_first(afs)
    own = teacher.options(options)
    grid = teacher.grid(field)
    total, ends = torch.zeros(len(grid), len(grid), dtype=torch.float64, device=teacher.device), []
    for chunk in teacher.chunks(field):
        states, directions = teacher.run(chunk, grid, afs=afs, **own)
        total += cost_sums(states, directions, grid, teacher.metric)
        if afs:
            ends.append((chunk, states[-1].clone()))
        if progress is not None:
            progress(len(chunk.noise))
    cost = (dist.all_reduce_sum(total) / teacher.num_warmup).cpu()
    table = {g: path_table(cost, min(max(num_steps, TABLE_STEPS), len(grid)), g) for g in coeffs}
    indices = table[coeffs[0]][num_steps]
    if afs:
        indices = _with_free_step(ends, grid.to(teacher.device), cost, indices, coeffs[0], solver, options)
    return Found(
        sigmas=grid[indices],
        indices=indices,
        cost=cost,
        grid=grid,
        table=table,
        afs=afs,
        solver=solver,
        options=options,
        path=path_name(field.path),
        settings={"method": "gits", **teacher.settings(), "options_tea": own},
    )


def _with_free_step(
    ends: list[tuple[Chunk, Tensor]], grid: Tensor, cost: Tensor, indices: list[int], coeff: float, solver: str,
    options: dict[str, Any],
) -> list[int]:  # fmt: skip
    """One more level for the step that AFS makes free; where the first jump has no room for it, by a longer search."""
    if indices[1] > 1:
        return insert_free_step(ends, grid, indices, solver, **options)
    if len(indices) == len(grid):
        raise ValueError(
            f"a schedule of {len(indices)} levels takes all of the teacher's and leaves no room for the analytical "
            "first step: give a larger num_steps_tea or leave out afs"
        )
    return shortest_path(cost, len(indices) + 1, coeff)


@torch.no_grad()
def insert_free_step(
    ends: Sequence[tuple[Chunk, Tensor]], grid: Tensor, indices: list[int], solver: str, **options: Any
) -> list[int]:
    """The grid point inside the first jump from which AFS leads nearest to the teacher's end.

    Every candidate k in 1 .. indices[1]-1 is tried: the student samples on [0, k, indices[1], ...] with AFS, and the
    mean over all samples of |x_final - teacher's end|_2 decides, the first minimum in ascending k.

    Args:
        ends: this process's chunks with the teacher's last states `[b, ...]`.
        grid: `[T]` the teacher's levels, on the device of the samples.

    Returns:
        `indices` with k, or unchanged if there is no candidate.
    """
    candidates = range(1, indices[1])
    if not candidates:
        return indices
    distance = torch.zeros(len(candidates), dtype=torch.float64, device=grid.device)
    for row, k in enumerate(candidates):
        levels = grid[[0, k, *indices[1:]]]
        for chunk, end in ends:
            x = sample(chunk.field, chunk.noise, levels, solver=solver, afs=True, **options)
            distance[row] += (x - end).double().flatten(1).norm(dim=1).sum()
    best = int(dist.all_reduce_sum(distance).argmin())
    return [0, candidates[best], *indices[1:]]
