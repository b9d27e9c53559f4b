"""Solver arithmetic: sampling with a network that costs nothing, so that only the steps are timed."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bench.reference import solvers as reference
from bench.rows.row import Row, Work
from samplers import get_schedule, sample

__all__ = ["ROWS"]

SHAPE = (64, 3, 32, 32)
LEVELS = 11


class FixedAnswer:
    """A denoiser that answers with one tensor: as a real one, in float32 and from a float32 copy of its input."""

    img_channels = 3

    def __init__(self) -> None:
        self.answer = torch.rand(SHAPE) * 2 - 1

    def __call__(self, x: Tensor, level: Tensor, class_labels: Tensor | None = None) -> Tensor:
        x.to(torch.float32)
        return self.answer


def _prepare(solver: str, dtype: torch.dtype) -> Work:
    torch.manual_seed(0)
    net, noise, levels = FixedAnswer(), torch.randn(SHAPE), get_schedule(LEVELS)
    single, state = levels.float(), noise.to(dtype)
    plain = getattr(reference, solver)

    @torch.inference_mode()
    def ours() -> Tensor:
        return sample(net, state, levels, solver=solver)

    @torch.inference_mode()
    def theirs() -> Tensor:
        return plain(net, noise * single[0], single)

    return Work(theirs, ours)


GOALS = {"euler": (2, 1.3), "heun": (2, 1.3), "ipndm": (2, 1.3), "deis": (2, 1), "dpmpp": (5.7, 1), "unipc": (5.7, 1)}

ROWS = [
    Row(f"solver {name}, {kind} state", partial(_prepare, name, dtype), goals[k], agree=1e-3)
    for name, goals in GOALS.items()
    for k, (kind, dtype) in enumerate({"float32": torch.float32, "float64": torch.float64}.items())
]
