"""METHODS: every training method by the name of its sub-command of train.py.

An entry holds the options (a dataclass, see `torch_utils.options`) and the builder
`build(options, dataset, device) -> Method`. A new method is one file here and one line in the table. STAGES holds those
that start from a trained network and have a script of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from training.methods import combostoc, curvature, distill, edm, idff, trajectory


class MethodEntry(NamedTuple):
    help: str
    options: type
    build: Callable[..., Any]
    open: Callable[..., Any] | None = None  # data set of the options, where it is not one of images or points
    series: bool = False  # learns to continue a series


METHODS: dict[str, MethodEntry] = {
    "edm": MethodEntry(
        "Denoisers with EDM, VP or VE preconditioning (the default).",
        edm.EDMOptions,
        edm.build,
        series=True,
    ),
    "curvature": MethodEntry(
        "Straight flows on a coupling of data and noise that is learned.", curvature.CurvatureOptions, curvature.build
    ),
    "combostoc": MethodEntry(
        "Diffusion transformers whose elements keep their own time.",
        combostoc.ComboStocOptions,
        combostoc.build,
    ),
    "sit": MethodEntry(
        "Diffusion transformers on interpolants, one time a sample.",
        combostoc.SiTOptions,
        combostoc.build,
    ),
    "idff": MethodEntry(
        "Clean data and score from one network, on a bridge from noise.",
        idff.IDFFOptions,
        idff.build,
        series=True,
    ),
    "distill": MethodEntry(
        "One-step copies of flow models, learned from images they made.",
        distill.DistillOptions,
        distill.build,
        distill.open_pairs,
    ),
}

STAGES: dict[str, MethodEntry] = {
    "trajectory": MethodEntry(
        "Adversarial optimisation of the inference trajectory.", trajectory.TrajectoryOptions, trajectory.build
    )
}


def method_entry(name: str) -> MethodEntry:
    """The entry of a method, from either table."""
    return METHODS[name] if name in METHODS else STAGES[name]
