"""METHODS: every training method by the name of its sub-command of train.py.

An entry names the file in this folder that has the method: its options (a dataclass, see `torch_utils.options`) and the
builder `build(options, dataset, device) -> Method`. It is imported when either is asked for. A new method is one file
here and one line in the table. STAGES holds those that start from a trained network and have a script of their own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple


class MethodEntry(NamedTuple):
    """One method.

    Attributes:
        help: one line of `--help`.
        file, named: in this folder, and its class of options.
        opener: the function there that opens the data set of the options, where it is not one of images or points.
        series: it learns to continue a series.
    """

    help: str
    file: str
    named: str
    opener: str | None = None
    series: bool = False

    @property
    def _module(self) -> ModuleType:
        return importlib.import_module(f"training.methods.{self.file}")

    @property
    def options(self) -> type:
        return getattr(self._module, self.named)

    @property
    def build(self) -> Callable[..., Any]:
        return self._module.build

    @property
    def open(self) -> Callable[..., Any] | None:
        return None if self.opener is None else getattr(self._module, self.opener)


METHODS: dict[str, MethodEntry] = {
    "edm": MethodEntry("Denoisers with EDM, VP or VE preconditioning (the default).", "edm", "EDMOptions", series=True),
    "curvature": MethodEntry(
        "Straight flows on a coupling of data and noise that is learned.", "curvature", "CurvatureOptions"
    ),
    "combostoc": MethodEntry(
        "Diffusion transformers whose elements keep their own time.", "combostoc", "ComboStocOptions"
    ),
    "sit": MethodEntry("Diffusion transformers on interpolants, one time a sample.", "combostoc", "SiTOptions"),
    "idff": MethodEntry(
        "Clean data and score from one network, on a bridge from noise.", "idff", "IDFFOptions", series=True
    ),
    "distill": MethodEntry(
        "One-step copies of flow models, learned from images they made.", "distill", "DistillOptions", "open_pairs"
    ),
}

STAGES: dict[str, MethodEntry] = {
    "trajectory": MethodEntry(
        "Adversarial optimisation of the inference trajectory.", "trajectory", "TrajectoryOptions"
    )
}


def method_entry(name: str) -> MethodEntry:
    """The entry of a method, from either table."""
    return METHODS[name] if name in METHODS else STAGES[name]
