"""Figures of sample quality from features: KID, precision and recall, Inception score, and how certain each one is.

All arithmetic is float64 on the device of the features, in blocks of BLOCK rows: nothing of size N^2 is kept.

- KID: unbiased squared maximum mean discrepancy with the kernel (x . y / D + 1)^3 (Binkowski et al. 2018, arXiv
  1801.01401), as the mean over random subsets, or once over everything.
- Precision and recall: share of points in the union of balls to the k-th neighbour (Kynkäänniemi et al. 2019, arXiv
  1904.06991).
- Inception score: exp of the mean divergence of p(class | image) from p(class) (Salimans et al. 2016, arXiv
  1606.03498).

A half-width is that of a 95% interval, `value ± half_width`, and says nothing of a bias: FID of few images is too high.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torch_utils.distributed import all_reduce_sum
from torch_utils.frechet import Moments, frechet_influence

__all__ = ["Figure", "ScoreSums", "frechet_half_width", "inception_score", "kid", "kid_full", "precision_recall"]

BLOCK = 2048  # rows of a matrix of distances or kernels
KID_SEED = 2020  # of the subsets, as torch-fidelity has it
Z = 1.959963984540054  # 95% of a normal distribution lies within this many standard deviations


class Figure(NamedTuple):
    """A figure, half the width of its 95% interval (None: not known) and where that comes from, and the standard
    deviation over subsets or splits, where the field reports it."""

    value: float
    half_width: float | None = None
    how: str = ""
    std: float | None = None

    def __str__(self) -> str:
        return f"{self.value:g}" + ("" if self.half_width is None else f" ± {self.half_width:.2g}")


def kid(x: Tensor, y: Tensor, subsets: int = 100, size: int = 1000) -> Figure:
    """Kernel distance as the mean over subsets, with the standard deviation over them.

    The half-width takes subsets as independent as long as they do not use an image twice.

    Args:
        x, y: features `[N, D]` and `[M, D]`, any float dtype; N and M at least `size`.
        subsets, size: how many, and how many images of each side in one; 2 images at least. Drawn per subset by
            `choice(N)`, then `choice(M)` of one `RandomState(KID_SEED)`, without replacement.
    """
    random = np.random.RandomState(KID_SEED)
    values = []
    for _ in range(subsets):
        a, b = (f[torch.from_numpy(random.choice(len(f), size, replace=False)).to(f.device)].double() for f in (x, y))
        within = [_kernel(f, f) for f in (a, b)]
        pairs = sum((k.sum() - k.diagonal().sum()) / (size * (size - 1)) for k in within)
        values.append(pairs - 2 * _kernel(a, b).mean())
    found = torch.stack(values).cpu()
    std = float(found.std(correction=0))
    disjoint = min(subsets, len(x) // size, len(y) // size)
    return Figure(float(found.mean()), Z * std / math.sqrt(disjoint), f"spread of {subsets} subsets", std)


def kid_full(x: Tensor, y: Tensor) -> Figure:
    """The same estimator once over all features `[N, D]`, `[M, D]`: the figure with the least variance.

    Its half-width is that of a U-statistic: from the variance of what each image adds to it.
    """
    n, m = len(x), len(y)
    own_x, own_y = (_kernel_sums(f, f)[0] - (f.double().square().mean(1) + 1) ** 3 for f in (x, y))
    across_x, across_y = _kernel_sums(x, y)
    value = own_x.sum() / (n * (n - 1)) + own_y.sum() / (m * (m - 1)) - 2 * across_x.sum() / (n * m)
    variance = sum(
        4 * (own / (len(own) - 1) - across / (n + m - len(own))).var() / len(own)
        for own, across in ((own_x, across_x), (own_y, across_y))
    )
    return Figure(float(value), Z * math.sqrt(float(variance)), "what each image adds")


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _blocks(f: Tensor) -> Iterator[Tensor]:
    return (part.double() for part in f.split(BLOCK))


def _kernel_sums(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the kernel over the other set: `[N]` of each x, `[M]` of each y."""
    rows, columns = [], torch.zeros(len(y), dtype=torch.float64, device=y.device)
    for a in _blocks(x):
        parts = [_kernel(a, b) for b in _blocks(y)]
        rows.append(sum(part.sum(1) for part in parts))
        columns += torch.cat([part.sum(0) for part in parts])
    return torch.cat(rows), columns


def precision_recall(x: Tensor, y: Tensor, k: int = 3) -> tuple[Figure, Figure]:
    """Precision: the share of x within a ball around some y that reaches to its k-th other neighbour among y; recall
    the other way round.

    Half-widths are those of a share of independent images (Wilson), with the balls held fixed.

    Args:
        x: generated `[N, D]`. y: reference `[M, D]`. Both hold more than k rows.
    """
    return tuple(_share(_inside(a, b, _radii(b, k))) for a, b in ((x, y), (y, x)))


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances `[n, m]`."""
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_(min=0)


def _radii(f: Tensor, k: int) -> Tensor:
    """Squared distance of each row to its k-th other neighbour: the k + 1 nearest include the row itself."""
    found = []
    for a in _blocks(f):
        nearest = a.new_empty(len(a), 0)
        for b in _blocks(f):
            both = torch.cat([nearest, _squares(a, b)], dim=1)
            nearest = both.topk(min(k + 1, both.shape[1]), dim=1, largest=False).values
        found.append(nearest[:, k])
    return torch.cat(found)


def _inside(a: Tensor, b: Tensor, radii: Tensor) -> Tensor:
    """Whether each row of a is in the ball of some row of b."""
    found = []
    for rows in _blocks(a):
        parts = zip(_blocks(b), radii.split(BLOCK), strict=True)
        found.append(torch.stack([(_squares(rows, other) <= r).any(1) for other, r in parts]).any(0))
    return torch.cat(found)


def _share(hits: Tensor) -> Figure:
    n, p = len(hits), float(hits.double().mean())
    half = Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    return Figure(p, half, "share of independent images, balls fixed")


class ScoreSums:
    """Inception score of consecutive splits of `num` images, from sums: logits come in any order and are not kept."""

    def __init__(self, num: int, splits: int, classes: int, device: torch.device | str = "cpu") -> None:
        self._num, self._splits = num, splits
        # per split: the sum of p(class), then of log p(class) under p, then the number of images
        self._sums = torch.zeros(splits, classes + 2, dtype=torch.float64, device=device)

    def append(self, logits: Tensor, positions: Tensor) -> None:
        """Logits `[B, classes]` of the images at these positions `[B]`, 0 to num - 1."""
        log_p = logits.double().log_softmax(1)
        p = log_p.exp()
        split = ((positions.to(p.device) + 1) * self._splits - 1) // self._num
        rows = torch.cat([p, (p * log_p).sum(1, keepdim=True), torch.ones_like(p[:, :1])], dim=1)
        self._sums.index_add_(0, split, rows)

    def figure(self) -> Figure:
        """The mean over splits of the images of all processes, which all take part."""
        sums = all_reduce_sum(self._sums.clone())
        p = sums[:, :-2] / sums[:, -1:]
        divergence = sums[:, -2] / sums[:, -1] - torch.special.xlogy(p, p).sum(1)
        scores = divergence.exp().cpu()
        std = float(scores.std(correction=0))
        half = Z * std / math.sqrt(self._splits - 1) if self._splits > 1 else None
        return Figure(float(scores.mean()), half, f"spread of {self._splits} splits", std)


def inception_score(logits: Tensor, splits: int = 10) -> Figure:
    """Mean of the score over consecutive splits of `logits [N, classes]`, N at least `splits`."""
    sums = ScoreSums(len(logits), splits, logits.shape[1], logits.device)
    sums.append(logits, torch.arange(len(logits)))
    return sums.figure()


def frechet_half_width(generated: Moments, reference: Moments, rows: Tensor) -> Figure:
    """The Fréchet distance with the half-width that `generated.num` images give it, the reference held fixed.

    From the variance of the images' influence on it: the delta method, the limit of a bootstrap.

    Args:
        rows: features `[n, D]` of some of the generated images.
    """
    value, influence = frechet_influence(generated, reference, rows)
    half = Z * math.sqrt(float(influence.var()) / generated.num)
    return Figure(value, half, f"influence of {len(rows)} images, reference fixed")
