"""Tiny helpers used everywhere: the broadcasting rule for noise levels, integer lists, human-readable numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MOST_INTS = 10_000_000  # in a list


def expand_to(level: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """View `level` so that it broadcasts against `x: [B, ...]` sample by sample.

    A raw `[B]` tensor never meets an image: with `B == W` it would silently broadcast over columns.

    Args:
        level: `[]` (one value for all), `[B]` (one per sample) or the rank of `x` with every axis 1 or equal to x's.
        x: `[B, ...]`, any rank >= 1.

    Raises:
        ValueError: any other shape; the message names both.
    """
    if level.ndim == 0:
        return level
    if level.ndim == 1 and level.shape[0] in (1, x.shape[0]):
        return level.reshape(-1, *[1] * (x.ndim - 1))
    if level.ndim == x.ndim and all(a in (1, b) for a, b in zip(level.shape, x.shape, strict=True)):
        return level
    raise ValueError(
        f"a noise level of shape {list(level.shape)} does not fit x of shape {list(x.shape)}: "
        "give one value, one per sample [B], or one per element (the rank of x, each axis 1 or equal)"
    )


def root_mean_square(samples: torch.Tensor) -> float:
    """Root mean square of all elements, to four digits: what EDM calls sigma_data."""
    return float(f"{samples.double().square().mean().sqrt().item():.4g}")


def parse_int_list(text: str | Sequence[int]) -> list[int]:
    """Parse `"1,2,5-10"` into integers; ranges are inclusive, a descending range is empty, duplicates stay.

    Raises:
        ValueError: anything that is not a comma-separated list of non-negative integers and ranges, or a longer list
            than MOST_INTS.
    """
    if not isinstance(text, str):
        return [int(v) for v in text]
    values: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,19})(?:-(\d{1,19}))?", part.strip(), re.ASCII)
        if match is None:
            raise ValueError(f"'{text}' is not a list of integers: write for example 1,2,5-10")
        first = int(match[1])
        last = int(match[2] or first)
        if last - first + len(values) >= MOST_INTS:
            raise ValueError(f"'{text}' names more than {MOST_INTS} integers: give a shorter range")
        values.extend(range(first, last + 1))
    return values


def split_evenly(n: int, parts: int) -> list[range]:
    """Cut `range(n)` into `parts` contiguous ranges whose lengths differ by at most one, longer ones first."""
    size, extra = divmod(n, parts)
    starts = [i * size + min(i, extra) for i in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(starts)]


def format_time(seconds: float) -> str:
    """`75 -> '1m 15s'`, `90061 -> '1d 01h 01m'`."""
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m {s % 60:02d}s"
    if s < 86400:
        return f"{s // 3600}h {s // 60 % 60:02d}m"
    return f"{s // 86400}d {s // 3600 % 24:02d}h {s // 60 % 60:02d}m"


def format_count(n: float) -> str:
    """`55_735_299 -> '55.7M'`, with the suffixes k, M, G, T."""
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= limit:
            return f"{n / limit:.1f}{suffix}"
    return f"{n:g}"
