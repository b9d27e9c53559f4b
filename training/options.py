"""CommonOptions: what every training method takes, gathered from the components that read it.

Each option is declared by the component that owns it, and is a key of training_options.json. Methods add theirs by
subclassing (`training/methods/edm.py`). Names and defaults follow the published EDM command line where it has the
option; durations are in images (MIMG = million, KIMG = thousand), never in steps.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Self

from training.data.opening import DataOptions
from training.data.series import is_series
from training.loop.settings import LoopOptions
from training.methods.common import LearningOptions
from training.performance import PerformanceOptions
from training.runs.meters import FidOptions
from training.runs.placement import PlaceOptions
from training.runs.session import ReportOptions


@dataclass(frozen=True, kw_only=True)
class CommonOptions(
    FidOptions, ReportOptions, PerformanceOptions, LearningOptions, LoopOptions, DataOptions, PlaceOptions
):
    """Options of the data, the loop, the optimiser, the device and the run directory."""

    def description(self, dataset: str, world: int) -> str:
        """The name of the run directory, without its number."""
        parts = [dataset, "cond" if self.cond or is_series(self.data) else "uncond", *self.name_parts()]
        parts += [f"gpus{world}", f"batch{self.batch}", self.precision]
        if self.desc:
            parts.append(re.sub(r"[^\w.=+-]", "_", self.desc))
        return "-".join(parts)

    def told(self, dataset: Any) -> Self:
        """These options, with what only a data set tells filled in."""
        return self

    def name_parts(self) -> list[str]:
        """What a method adds to that name."""
        return []
