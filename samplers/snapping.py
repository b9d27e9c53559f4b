"""Fields of sets of parts whose clean estimates say of every part that it exists or that it does not.

Between two steps a solver forms the state of the next level of the clean estimate, so that what is decided there holds
for the state as well (Xie et al. 2024, arXiv 2405.13729, on shapes).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from samplers.field import Field
from samplers.solvers.interpolant import time_interval


class _Snapped:
    def __init__(self, field: Field) -> None:
        self.field, self.snap = field, field.facts.parts.snap
        self.top = time_interval(field.path, field.predicts)[0]  # beyond, noise and score say nothing of data

    def __call__(self, x: Tensor, level: Tensor, class_labels: Tensor | None = None, **cond: Any) -> Tensor:
        level = torch.as_tensor(level, device=x.device).clamp(max=self.top)
        return self.snap(replace(self.field, class_labels=class_labels, cond=cond).data(x, level))


def snapped(field: Field) -> Field:
    """A model of sets of parts that predicts data with existence -1 or 1, in the coordinates of training."""
    own = field.native()
    return Field(_Snapped(own), own.path, "data", own.class_labels, own.cond, replace(own.facts, native=None))
