"""Schedules that others published, as data; `get_schedule(num_steps, schedule_type=name)` finds them by name.

- `gits_cifar10`, `gits_sd15...`: found by GITS (Chen et al. 2024, arXiv 2405.11326). Stable Diffusion 1.5: 2 to 20
  steps for 15 coefficients, as indices into the discrete grid of 101 levels; the authors recommend 1.20 (`gits_sd15`)
  or 1.25. More than 20 steps: interpolated from the list of 20, as the authors do.
- `ld3_gits_sd15_...`: GITS lists that the LD3 experiments used (Tong et al. 2024, arXiv 2405.15506).
- `ays_...`: Align Your Steps (Sabour et al. 2024, arXiv 2404.14507), 10 steps; other lengths are interpolated.

The numbers are in `published.json`: lists of levels, and for Stable Diffusion 1.5 the inner indices that GITS found.
Interpolation is linear in log sigma over the index. A list with n steps has n + 1 levels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torch_utils.noise_table import NoiseTable, scaled_linear_alphas


@dataclass(frozen=True)
class PublishedSchedule:
    """A family of lists: one per number of steps.

    Attributes:
        about: what they were made for, in words.
        lists: sampling steps -> levels, or a function that makes this table.
        whole: they span the whole noise table that their models were trained on, so that other models are refused.
        stretch_from: number of steps of the list that is interpolated to any number from `stretch_to` on; None: do not.
    """

    about: str
    lists: Mapping[int, Sequence[float]] | Callable[[], Mapping[int, Sequence[float]]]
    stretch_from: int | None = None
    stretch_to: int = 1
    whole: bool = False

    def levels(self, num_steps: int) -> Tensor:
        """`[num_steps]` float64, strictly falling."""
        lists = self.lists() if callable(self.lists) else self.lists
        if num_steps - 1 in lists:
            return torch.tensor(lists[num_steps - 1], dtype=torch.float64)
        if self.stretch_from is None or num_steps - 1 < self.stretch_to:
            longer = "" if self.stretch_from is None else " or more"
            known = ", ".join(str(n + 1) for n in sorted(lists))
            raise ValueError(f"no list of {num_steps} levels was published ({self.about}): take {known}{longer}")
        log_levels = np.log(lists[self.stretch_from])
        index = np.linspace(0, self.stretch_from, num_steps)
        levels = np.exp(np.interp(index, np.arange(self.stretch_from + 1), log_levels))
        levels[[0, -1]] = lists[self.stretch_from][0], lists[self.stretch_from][-1]
        return torch.from_numpy(levels)


def _gits_sd15(inner: Sequence[Sequence[int]]) -> dict[int, list[float]]:
    """Lists of levels from inner indices into the grid of 101; unlike the published ones not rounded to 4 decimals."""
    table = NoiseTable(scaled_linear_alphas())
    t_min, t_max = (float(table.sigma_inv(s)) for s in (table.sigma_min, table.sigma_max))
    grid = table.sigma(torch.linspace(t_max, t_min, 101, dtype=torch.float64))
    return {len(index) + 1: grid[[0, *index, 100]].tolist() for index in inner}


def _load() -> dict[str, PublishedSchedule]:
    data = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    found = {
        name: PublishedSchedule(
            entry["about"],
            {len(row) - 1: row for row in entry["lists"]},
            entry.get("stretch"),
            whole=entry.get("whole", False),
        )
        for name, entry in data["lists"].items()
    }
    for coeff, inner in data["gits_sd15_indices"].items():
        about = f"GITS for Stable Diffusion 1.5, coefficient {coeff}"
        found[f"gits_sd15_{coeff}"] = PublishedSchedule(about, partial(_gits_sd15, inner), 20, 21, whole=True)
    return {"gits_sd15": found["gits_sd15_1.20"], **found}


PUBLISHED: dict[str, PublishedSchedule] = _load()
