"""Samples that have no picture each: all of them are shown in one, and stored in one array file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from torch_utils.report.boxes import draw_shapes
from torch_utils.report.scatter import is_points, scatter


class SampleKind(NamedTuple):
    """name: of the samples, their files and arrays. array: its name in the file. draw: samples -> picture."""

    name: str
    array: str
    draw: Callable[[Tensor], Tensor]


POINTS = SampleKind("points", "points", scatter)
SHAPES = SampleKind("shapes", "parts", draw_shapes)


def kind_of(shape: Sequence[int]) -> SampleKind | None:
    """The kind of samples of this shape: points in the plane, shapes `[L, V]`; None: images."""
    return POINTS if is_points(shape) else SHAPES if len(shape) == 2 else None


def name_of(shape: Sequence[int] | None) -> str:
    """What samples of this shape are called: images, points or shapes."""
    kind = None if shape is None else kind_of(shape)
    return "images" if kind is None else kind.name
