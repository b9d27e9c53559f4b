"""What methods share that learn the continuation of a series: the network's view of what came before, pairs of frames.

A method knows nothing of time: what came before is the label (`training/data/series.py`), which the trunk takes for
further channels (`networks/trunks/context.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_utils.options import OptionGroup, opt, refuse
from training.data.series import SeriesDataset
from training.method import Batch


@dataclass(frozen=True, kw_only=True)
class ContextOptions:
    """Options of methods that learn the continuation of a series."""

    group: ClassVar = OptionGroup("Series", "How a network is told what came before.", rank=3.1)

    context_noise: float = opt(
        0.0, "Series: in training, noise of this deviation, of scaled values, on the frames before the last ones, so "
        "that a network does not learn a few windows by heart", metavar="FLOAT", at_least=0,
    )  # fmt: skip


_MARGIN = 4  # least pixels that maps on a torus are continued by


def padding(dataset: Any, levels: int) -> int:
    """Pixels to add to maps so that a U-Net can halve them `levels - 1` times; of a torus some more, to see around."""
    step, pad = 2 ** (levels - 1), 0
    if isinstance(dataset, SeriesDataset):
        pad = _MARGIN if dataset.recording.wraps else 0
        pad += -(dataset.resolution + pad) % step
    return pad


def context_trunk(dataset: SeriesDataset, trunk: Mapping[str, Any], pad: int = 0) -> dict[str, Any]:
    """Arguments of a network around `trunk` (model_type and arguments) that sees the context of `dataset`."""
    return {
        "model_type": "ContextTrunk", "context": dataset.window * dataset.channels, "trunk": dict(trunk), "pad": pad,
        "wrap": dataset.recording.wraps,
    }  # fmt: skip


def refuse_labels_alone(dataset: SeriesDataset) -> None:
    """Raise a ValueError where a network sees no frames and has no label to go by either."""
    if not dataset.period:
        raise ValueError("--memorise=1 tells the network the number of the frame alone: add :label=index to --data")


def blurred(dataset: Any, options: ContextOptions, begins_at_frame: bool = False) -> Callable[[Batch], Tensor]:
    """`batch -> labels`, with `--context-noise` on what came before but for the last frame.

    Of a few hundred windows of several frames each is one of a kind: a network that sees them as they are says what
    followed that one, without spread. Noise on inputs is the cure known longest (Bishop 1995, Neural Computation 7(1)).

    Args:
        begins_at_frame: a sample begins at the last frames, as many as it has itself, which then stay as they are.

    Raises:
        ValueError: noise for data that are no series, or where no frame is left for it.
    """
    if not options.context_noise:
        return lambda batch: batch.labels
    if not isinstance(dataset, SeriesDataset):
        refuse(options, ["context_noise"], "belongs to series")
    kept = dataset.horizon if begins_at_frame else 1
    if dataset.window <= kept:
        raise ValueError(
            f"--context-noise is for the frames before the last {kept}, and window={dataset.window} has none: raise "
            "it, or leave the option out"
        )
    size = (dataset.window - kept) * dataset.channels * dataset.resolution**2

    def labels(batch: Batch) -> Tensor:
        noise = options.context_noise * batch.rng.randn([len(batch.labels), size])
        return batch.labels + F.pad(noise, (0, batch.labels.shape[1] - size))

    return labels


def previous_pairs(dataset: SeriesDataset, memorise: bool) -> Callable[[Batch], tuple[Tensor, Tensor, Tensor]]:
    """`batch -> data, frames before it in the place of noise, labels`.

    Angles in turns go the short way round: data are moved by whole turns to within half a turn of where they start.

    Raises:
        ValueError: fewer frames before than in a sample.
    """
    if dataset.window < dataset.horizon:
        raise ValueError(
            f"--coupling=previous goes from the last {dataset.horizon} frames to the next, and window={dataset.window} "
            "holds fewer: raise it, or lower horizon"
        )
    last = dataset.num_channels * dataset.resolution**2  # numbers in as many frames as a sample has
    turns = dataset.scaling.kind == "turns"

    def pairs(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        before = batch.labels[:, dataset.context_dim - last : dataset.context_dim].reshape(batch.data.shape)
        way = batch.data - before
        data = before + way - 2 * torch.round(way / 2) if turns else batch.data
        return data, before, batch.labels[:, dataset.context_dim :] if memorise else batch.labels

    return pairs
