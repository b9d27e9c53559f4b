"""Warm-up samples with what the teacher made of them, and how near students end to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samplers.calibration.student import Features, end_errors
from samplers.solvers.table import sample
from samplers.start import Chunk
from torch_utils import distributed as dist

__all__ = ["Warmup", "compared", "mean", "rms", "student_ends", "that_fit"]


@dataclass(frozen=True)
class Warmup:
    """Samples of this process and the teacher's states on them, `[T, b, ...]` (or first and last only)."""

    chunks: list[Chunk]
    teacher: list[Tensor]

    def at(self, indices: Sequence[int]) -> list[Tensor]:
        return [x[list(indices)] for x in self.teacher]

    @property
    def ends(self) -> list[Tensor]:
        return [x[-1] for x in self.teacher]


def that_fit(num_warmup: int, bytes_each: int, max_gib: float) -> int:
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


def student_ends(
    samples: Warmup, sigmas: list[float], solver: str, afs: bool = False, coefficients: Any = None, max_order: int = 4
) -> list[Tensor]:
    """Where a student ends, chunk by chunk of this process."""
    options = {} if coefficients is None else {"coefficients": coefficients, "max_order": max_order}
    return [sample(c.field, c.noise, sigmas, solver=solver, afs=afs, **options) for c in samples.chunks]


def compared(phi: Features, samples: Warmup, ends: Sequence[Tensor]) -> Tensor:
    """Mean square distance of features from those of the teacher's ends, one per sample of this process."""
    own, wanted = ([phi(c, x) for c, x in zip(samples.chunks, xs, strict=True)] for xs in (ends, samples.ends))
    return end_errors(own, wanted)


def mean(values: Tensor) -> float:
    sums = dist.all_reduce_sum(torch.stack([values.sum(), torch.ones_like(values).sum()]))
    return float(sums[0] / sums[1])


def rms(squares: Tensor) -> float:
    return mean(squares) ** 0.5
