"""Metrics: statistics of features, the Fréchet distance of 2048 numbers, and Inception features of random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.reference import metrics as reference
from bench.rows.row import Row, Work
from networks.features.inception import FEATURES, Inception2015
from networks.features.table import inception_extractor
from torch_utils.frechet import FeatureStats, frechet_distance

__all__ = ["ROWS"]


def _features(num: int, seed: int) -> Tensor:
    """Correlated, not negative, as pooled features are: `[num, 2048]`, the spectrum of their covariance falls."""
    torch.manual_seed(0)
    mix = torch.randn(FEATURES, FEATURES) * torch.logspace(0, -2, FEATURES)[:, None]
    torch.manual_seed(seed)
    return (torch.randn(num, FEATURES) @ mix / 40 + 0.5).relu()


def _frechet() -> Work:
    pair = [reference.moments([_features(5000, seed)]) for seed in (1, 2)]
    arrays = [v for moments in pair for v in moments]
    tensors = [torch.from_numpy(v) for v in arrays]
    return Work(lambda: reference.frechet_distance(*arrays), lambda: frechet_distance(*tensors))


def _statistics() -> Work:
    batches = list(_features(2000, 1).split(100))

    def ours() -> Any:
        stats = FeatureStats(FEATURES)
        for features in batches:
            stats.append(features)
        return stats.mean_cov()[1]

    return Work(lambda: torch.from_numpy(reference.moments(batches)[1]), ours)


def _inception() -> Work:
    torch.manual_seed(0)
    plain = Inception2015().eval().requires_grad_(False)
    tuned = Inception2015()
    tuned.load_state_dict(plain.state_dict())
    extractor = inception_extractor(tuned, torch.device("cpu"))
    images = torch.randint(256, (8, 3, 32, 32)).to(torch.uint8)

    @torch.no_grad()
    def theirs() -> Tensor:
        return reference.inception_features(plain, images)

    return Work(theirs, lambda: extractor(images))


ROWS = [
    Row("Fréchet distance, 2048 numbers", _frechet, 10, agree=1e-5, repeats=3),
    Row("feature statistics, 20 batches of 100", _statistics, 1, agree=1e-9, repeats=5),
    Row("Inception features, 8 images", _inception, 2, agree=1e-4, repeats=5),
]
