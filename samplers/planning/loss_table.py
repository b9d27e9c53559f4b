"""Losses over time: what `analyze.py losses` writes and the stochastic interpolant sampler reads, as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch_utils.files import read_json, write_json


@dataclass(frozen=True, kw_only=True)
class LossTable:
    """Mean squared errors of a velocity at some times.

    Attributes:
        path: key of `samplers.path.PATHS`.
        pairs: (time, loss), times falling from the noise to the data, losses above 0.
        model_hash: of the weights whose losses these are, or None.

    Raises:
        ValueError: pairs that are none of these.
    """

    path: str
    pairs: tuple[tuple[float, float], ...]
    model_hash: str | None = None

    def __post_init__(self) -> None:
        if len(self.pairs) < 2 or not all(math.isfinite(v) for pair in self.pairs for v in pair):
            raise ValueError("a table of losses has two finite times or more, with a finite loss each")
        times, losses = zip(*self.pairs, strict=True)
        if not (times[0] <= 1 and times[-1] >= 0 and all(a > b for a, b in pairwise(times)) and min(losses) > 0):
            raise ValueError("times of a table of losses fall from 1 to 0 at most, and losses are above 0")

    def save(self, path: Path, provenance: Mapping[str, Any]) -> None:
        """Write the file; `provenance` is plain JSON about how the losses were found."""
        times, losses = zip(*self.pairs, strict=True)
        content = {"path": self.path, "times": times, "losses": losses, "model_hash": self.model_hash}
        write_json(path, {**content, "provenance": provenance})

    @classmethod
    def load(cls, path: str | Path) -> LossTable:
        """Read a file.

        Raises:
            ValueError: something else.
            OSError: it cannot be read.
        """
        content = read_json(path, "a table of losses")
        try:
            times, losses = ([float(v) for v in content[name]] for name in ("times", "losses"))
            pairs = tuple(zip(times, losses, strict=True))
            return cls(path=str(content["path"]), pairs=pairs, model_hash=content.get("model_hash"))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a table of losses that analyze.py losses wrote: {error}") from error
