"""One pass over images for any number of metrics and feature extractors: statistics, and features that are kept.

Images are seen once, batch by batch, by every extractor. Mean and covariance of all processes are merged; the features
that a metric needs themselves go to rank 0, in the order of the images, so that what is computed from them does not
know how many processes there were. They take 4 D bytes an image: 400 MB of 50 000 images of 2048 features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from torch_utils import distributed as dist
from torch_utils.frechet import Extractor, FeatureStats, Moments
from torch_utils.metrics import Figure, ScoreSums


class Pictures(NamedTuple):
    """Images of all processes, and this one's share of them.

    Attributes:
        num: how many over all processes.
        image_shape: `(C, H, W)`.
        positions: those of this process, as numbers from 0 to num - 1, in the order of `batches`.
        batches: uint8 `[B, C, H, W]` each.
        about: where they come from, plain JSON.
    """

    num: int
    image_shape: tuple[int, ...]
    positions: Sequence[int]
    batches: Iterator[Tensor]
    about: Mapping[str, Any]


class Needs(NamedTuple):
    """What of the features is kept: every `stride`-th image's (0: none), sums of class probabilities in `splits`."""

    stride: int = 0
    splits: int = 0


class Described(NamedTuple):
    """What a pass leaves: statistics, with rows on rank 0 where they were needed, and the Inception score."""

    moments: Moments
    score: Figure | None = None


def dim_of(extractor: Extractor, image_shape: Sequence[int]) -> int:
    return extractor.dim or math.prod(image_shape)


class _Collector:
    """Takes the features of one extractor."""

    def __init__(self, extractor: Extractor, needs: Needs, pictures: Pictures) -> None:
        self.extractor, self.needs, self.pictures = extractor, needs, pictures
        self.stats = FeatureStats(dim_of(extractor, pictures.image_shape), extractor.device)
        self.kept: list[Tensor] = []
        self.sums: ScoreSums | None = None
        if needs.splits:
            self.sums = ScoreSums(pictures.num, needs.splits, extractor.classes, extractor.device)

    def append(self, images: Tensor, positions: Sequence[int]) -> None:
        features = self.extractor(images)
        self.stats.append(features)
        if self.needs.stride:
            chosen = [i for i, position in enumerate(positions) if position % self.needs.stride == 0]
            self.kept.append((features if len(chosen) == len(features) else features[chosen]).float().cpu())
        if self.sums is not None:
            self.sums.append(self.extractor.logits(features), torch.tensor(positions))

    def described(self) -> Described:
        """All processes take part."""
        moments = self.stats.all_reduce().moments(self.extractor.name)
        rows = None
        if self.needs.stride:
            positions = [p for p in self.pictures.positions if p % self.needs.stride == 0]
            own = torch.cat(self.kept) if self.kept else torch.empty(0, len(moments.mu))
            rows = dist.gather_rows(own, positions)
        protocol = {
            "features": self.extractor.name, "weights": self.extractor.weights, "resize": self.extractor.resize,
            "num": self.pictures.num, "image_shape": list(self.pictures.image_shape), **self.pictures.about,
        }  # fmt: skip
        score = None if self.sums is None else self.sums.figure()
        return Described(replace(moments, rows=rows, protocol=protocol), score)


def describe(
    pictures: Pictures, wanted: Sequence[tuple[Extractor, Needs]], what: str | None = "images"
) -> list[Described]:
    """Look at all images once; all processes take part.

    Args:
        wanted: extractors, and what each is needed for.
        what: word of the progress bar; None: no bar.
    """
    collectors = [_Collector(extractor, needs, pictures) for extractor, needs in wanted]
    done, total = 0, len(pictures.positions)
    with tqdm(desc=what, total=total, unit="img", disable=what is None or dist.get_rank() > 0 or None) as bar:
        for images in pictures.batches:
            positions = pictures.positions[done : done + len(images)]
            for collector in collectors:
                collector.append(images, positions)
            done += len(images)
            bar.update(len(images))
    return [collector.described() for collector in collectors]
