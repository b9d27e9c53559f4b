"""Where a calibration may begin: noise levels of a search or of a schedule, as places in the teacher's grid."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from samplers.choices import CALIBRATION_STARTS as STARTS
from samplers.field import Field
from samplers.gits.costs import shortest_path
from samplers.schedules.formulas import SCHEDULES, get_schedule

__all__ = ["STARTS", "check_starts", "start_indices", "starts_of", "with_free_level"]

_RHO = {"time_uniform": 2, "discrete": 1}  # as they were published; polynomial: 7


def starts_of(field: Field) -> tuple[str, ...]:
    """Where students of a model may begin: `STARTS`, and its own table of noise levels if it has one."""
    return STARTS if field.facts.noise_table is None else (*STARTS, "discrete")


def check_starts(names: Sequence[str]) -> None:
    """Raise a ValueError where a name is neither "gits" nor that of a schedule, or none is given."""
    for name in names or ("",):
        if name != "gits" and name not in SCHEDULES:
            raise ValueError(f"there is no start '{name}': choose from gits, {', '.join(SCHEDULES)}")


def start_indices(name: str, steps: int, field: Field, grid: Tensor, cost: Tensor, coeff: float) -> list[int]:
    """Where a student may begin, as places in the teacher's grid: the search's path, or those nearest to a schedule."""
    if name == "gits":
        return shortest_path(cost, steps + 1, coeff)
    levels = get_schedule(steps + 1, float(grid[-1]), float(grid[0]), name, _RHO.get(name, 7), net=field)
    near = (levels.log()[:, None] - grid.log()).abs().argmin(dim=1).tolist()
    last = len(grid) - 1
    near[0], near[-1] = 0, last
    for i in range(1, steps):  # each its own place, with room for those after it
        near[i] = min(max(near[i], near[i - 1] + 1), last - (steps - i))
    return near


def with_free_level(cost: Tensor, indices: list[int], coeff: float) -> list[int]:
    """One more level for the step that AFS makes free, two thirds into the first jump; refinement moves it anyway."""
    if indices[1] == 1:
        return shortest_path(cost, len(indices) + 1, coeff)
    return [0, max(1, round(2 / 3 * indices[1])), *indices[1:]]
