"""What a training method is: modules, phases that train some of them, and averages worth keeping.

Methods differ by data, not by control flow: the one loop (`training/loop/loop.py`) runs the phases of whichever method
it is given. A method is one file in this folder and a line in `training.methods.table.METHODS`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from samplers.planning.options import SamplerOptions
from torch_utils.rng import TorchRNG


class Batch(NamedTuple):
    """Consecutive rows of one global batch.

    data: `[b, ...]` float32, images in [-1, 1]. labels: `[b, label_dim]`. rng: streams keyed by global position, so
    that losses do not depend on how many processes share the batch. nimg: images seen before this step.
    """

    data: Tensor
    labels: Tensor
    rng: TorchRNG
    nimg: int


class LossOut(NamedTuple):
    """`loss` is summed over everything and divided by the global batch size; `terms` are per-element statistics."""

    loss: Tensor
    terms: Mapping[str, Tensor]


@dataclass(frozen=True)
class Phase:
    """One optimiser and what it minimises. What other phases train is frozen while this one runs.

    trains: names of modules, or of parts of them ("net.V").
    batch_size: global batch of this phase, from a stream of its own over the same data; None: the run's batch.
    """

    name: str
    trains: tuple[str, ...]
    loss: Callable[[Batch], LossOut]
    optimizer: Callable[[list[nn.Parameter]], Optimizer]
    lr: Callable[[int], float]  # learning rate after `nimg` images
    batch_size: int | None = None


@dataclass(frozen=True)
class Average:
    """A moving average of one module: `average = net + beta(nimg, batch) * (average - net)` after each step.

    sigma_rel: width of a power-function average; these are stored beside every snapshot (`training/runs/phema.py`).
    """

    module: str
    beta: Callable[[int, int], float]
    sigma_rel: float | None = None


@dataclass(frozen=True)
class Method:
    """Everything the loop needs to know.

    Attributes:
        modules: all that is saved and restored, by name.
        phases: run in order within every step.
        averages: by name; "ema" is the network that snapshots export.
        save: writes a snapshot: `save(path, averaged modules by name, info)`.
        export: from averaged modules by name to the network that a snapshot holds, for measuring it before it is one.
        sampler: of FID during training; None: EDM's with --fid-steps, or the network's own levels.
        preview: writes a picture of samples next to a snapshot, or None.
        figures: further statistics of the averaged modules, by name, once a tick and the same on every process.
        flops_per_image: of one training step (forward and backward), for the utilisation figure.
        summary: what `--dry-run` and the first lines of the log say, as (name, value) pairs.
    """

    name: str
    modules: Mapping[str, nn.Module]
    phases: tuple[Phase, ...]
    averages: Mapping[str, Average]
    save: Callable[[Path, Mapping[str, nn.Module], Mapping[str, Any]], None]
    export: Callable[[Mapping[str, nn.Module]], nn.Module] = operator.itemgetter("ema")
    sampler: SamplerOptions | None = None
    preview: Callable[[Path, Mapping[str, nn.Module]], None] | None = None
    figures: Callable[[Mapping[str, nn.Module]], Mapping[str, float]] | None = None
    flops_per_image: float | None = None
    summary: tuple[tuple[str, str], ...] = field(default=())
