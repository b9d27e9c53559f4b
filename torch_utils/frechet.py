"""Fréchet distance between feature distributions, and the streaming mean and covariance it needs.

    d^2 = |mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr sqrt(S1 S2)

(Dowson and Landau 1982; as "FID" Heusel et al. 2017, arXiv 1706.08500, eq. 6). The last trace is the sum of the roots
of the eigenvalues of S1 S2, which are those of the symmetric L^T S1 L with S2 = L L^T: no root of a matrix is formed.
Where rounding is not small against the smallest of them, it is the sum of the singular values of A1^T A2 with any
factors S = A A^T: five times the work, exact for singular covariances (fewer images than features). All is float64.

What the features are is not known here: see networks/features/table.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from torch_utils.distributed import all_reduce_sum, broadcast_object

EPS = torch.finfo(torch.float64).eps
BLOCK = 256  # columns of a triangular matrix that are multiplied at once


@dataclass(frozen=True)
class Moments:
    """What is known of the features of some images: a fitted Gaussian, and more where it was asked for.

    Attributes:
        mu: `[D]` float64 mean.
        sigma: `[D, D]` float64 unbiased covariance.
        num: samples it was computed from; None: the file does not say.
        features: name of the feature extractor; None: the file does not say.
        rows: the features `[N, D]` float32 themselves, or some of them; None: not kept, or not on this process.
        protocol: how they were made, plain JSON; "weights" is the hash of the network's.
    """

    mu: Tensor
    sigma: Tensor
    num: int | None = None
    features: str | None = None
    rows: Tensor | None = None
    protocol: Mapping[str, Any] = field(default_factory=dict)

    def distance(self, other: Moments) -> float:
        return frechet_distance(self.mu, self.sigma, other.mu, other.sigma)


class Extractor(Protocol):
    """What `feature_stats` needs to know of a feature extractor."""

    name: str
    dim: int | None  # None: depends on the images
    device: torch.device

    def __call__(self, images: Tensor) -> Tensor: ...


class FeatureStats:
    """Streaming mean and covariance of feature vectors.

    Batches are merged through their own means (Chan, Golub and LeVeque 1983), so that a mean far from zero costs no
    digits and neither batch size nor order nor the number of processes matters beyond rounding.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.num = 0
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)  # sum of (f - mean) (f - mean)^T

    def append(self, features: Tensor) -> None:
        """Take in `features: [B, D]`, any float dtype, any B."""
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(
                f"features of shape {list(features.shape)} do not fit statistics of {len(self.mean)} numbers"
            )
        new = len(features)
        if new == 0:
            return
        x = features.detach().to(self.mean)
        centre = x.mean(dim=0)
        delta = centre - self.mean
        total = self.num + new
        # The shift between old and new mean enters the scatter as one more row.
        rows = torch.cat([x - centre, delta[None] * math.sqrt(self.num * new / total)])
        self.scatter.addmm_(rows.T, rows)
        self.mean += delta * (new / total)
        self.num = total

    def all_reduce(self) -> FeatureStats:
        """Merge the statistics of all processes, in place on every one of them."""
        num = all_reduce_sum(torch.tensor([self.num], dtype=torch.float64, device=self.mean.device))
        mean = all_reduce_sum(self.mean * self.num) / num.clamp(min=1)
        delta = self.mean - mean
        self.scatter = all_reduce_sum(self.scatter.addr(delta, delta, alpha=self.num))
        self.mean = mean
        self.num = int(num)
        return self

    def mean_cov(self) -> tuple[Tensor, Tensor]:
        """Mean `[D]` and unbiased covariance `[D, D]` on the CPU. Needs two samples."""
        if self.num < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.num}")
        scatter = self.scatter.cpu()
        return self.mean.cpu(), (scatter + scatter.T) / (2 * (self.num - 1))

    def moments(self, features: str | None = None) -> Moments:
        """`mean_cov` with its provenance, ready for `save_moments`."""
        return Moments(*self.mean_cov(), num=self.num, features=features)


def feature_stats(batches: Iterable[Tensor], extractor: Extractor) -> FeatureStats:
    """Statistics of the features of all batches of all processes.

    Args:
        batches: this process's share of the images, uint8 `[B, C, H, W]` each. A process may have none, but rank 0.
        extractor: images to features `[B, D]`, see `networks.features.table.load_features`.
    """
    stats = None
    for images in batches:
        features = extractor(images)
        if stats is None:
            stats = FeatureStats(features.shape[1], features.device)
        stats.append(features)
    dim = broadcast_object(stats.mean.numel() if stats else extractor.dim or 0)
    return (stats or FeatureStats(dim, extractor.device)).all_reduce()


def frechet_distance(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor) -> float:
    """Squared Fréchet distance of two Gaussians (this is the number called FID), at least 0.

    Args:
        mu1, mu2: means `[D]`.
        sigma1, sigma2: covariances `[D, D]`, singular ones included.

    Raises:
        ValueError: sizes differ, a number is not finite, or a matrix is no covariance.
    """
    mu1, sigma1, mu2, sigma2 = _checked(mu1, sigma1, mu2, sigma2)
    return _distance(mu1, sigma1, mu2, sigma2, _spectrum(sigma1, sigma2))


def frechet_influence(one: Moments, other: Moments, rows: Tensor) -> tuple[float, Tensor]:
    """The squared distance, and by how much each feature vector in it moves that, times their number: `[n]`.

    To first order a vector f among those of `one` moves it by (2 (m1 - m2) + (1 - T) (f - m1)) . (f - m1) / N, but for
    a constant, T = A (A^T S1 A)^(-1/2) A^T the linear map that carries the covariance S1 into S2 = A A^T, with any A.

    Args:
        rows: some of the vectors, `[n, D]`.
    """
    mu1, sigma1, mu2, sigma2 = _checked(one.mu, one.sigma, other.mu, other.sigma)
    spectrum = _spectrum(sigma1, sigma2, vectors=True)
    value = _distance(mu1, sigma1, mu2, sigma2, spectrum)
    if spectrum is None:
        a = factor(sigma2)
        values, vectors = torch.linalg.eigh(a.T @ sigma1 @ a)
        keep = values > len(values) * EPS * values[-1:].sum()  # none of a covariance of rank 0
        values, vectors = values[keep], vectors[:, keep]
    else:
        a, values, vectors = spectrum
    delta = rows.to(mu1) - mu1
    quadratic = delta.square().sum(1) - (delta @ a @ (vectors * values**-0.25)).square().sum(1)
    return value, 2 * delta @ (mu1 - mu2) + quadratic


def _checked(*moments: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two means and covariances in float64, these symmetric; a ValueError says what is wrong with them."""
    mu1, sigma1, mu2, sigma2 = (torch.as_tensor(v, dtype=torch.float64, device="cpu") for v in moments)
    dim = len(mu1)
    shapes = [list(v.shape) for v in (mu1, sigma1, mu2, sigma2)]
    if shapes != [[dim], [dim, dim]] * 2:
        raise ValueError(f"mean and covariance of both sides must have one size [D], [D, D]; got {shapes}")
    if not all(bool(v.isfinite().all()) for v in (mu1, sigma1, mu2, sigma2)):
        raise ValueError("feature statistics hold NaN or infinite numbers: check the images or the reference file")
    return mu1, (sigma1 + sigma1.T) / 2, mu2, (sigma2 + sigma2.T) / 2


def _distance(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor, spectrum: Any) -> float:
    if spectrum is None:
        root_trace = torch.linalg.svdvals(factor(sigma1).T @ factor(sigma2)).sum()
    else:
        root_trace = spectrum[1].sqrt().sum()
    distance = (mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace() - 2 * root_trace
    return max(float(distance), 0.0)  # equal inputs may round to -1e-13


def _spectrum(sigma1: Tensor, sigma2: Tensor, vectors: bool = False, allowed: float | None = None) -> Any:
    """L with S2 = L L^T `[D, D]`, and the eigenvalues `[D]` of L^T S1 L, with `vectors` also its vectors `[D, D]`.

    None where rounding may change the sum of their roots by more than `allowed`, by default 1e-9 of the traces.
    """
    allowed = 1e-9 * float(sigma1.trace() + sigma2.trace()) if allowed is None else allowed
    lower, failed = torch.linalg.cholesky_ex(sigma2)
    if failed:
        return None
    product = _between(lower, sigma1).numpy()
    # numpy's LAPACK: with vectors a fifth faster than torch's, and scipy's takes 0.15 s to import
    values, found = np.linalg.eigh(product) if vectors else (np.linalg.eigvalsh(product), None)
    if not values[0] > 0:
        return None
    error = 8 * EPS * values[-1] * np.sum(0.5 / np.sqrt(values))  # of every one a few units of the largest's rounding
    if not error < allowed:
        return None
    return lower, torch.from_numpy(values), None if found is None else torch.from_numpy(found)


def _between(lower: Tensor, sigma: Tensor) -> Tensor:
    """The lower triangle of L^T S L, which numpy reads, in blocks: a third of the multiplications of the whole."""
    out = torch.empty_like(sigma)
    for i in range(0, len(sigma), BLOCK):
        out[i:, i : i + BLOCK] = lower[i:, i:].T @ (sigma[i:, i:] @ lower[i:, i : i + BLOCK])
    return out


def factor(sigma: Tensor) -> Tensor:
    """A `[D, R]` with A A^T = sigma, symmetric, and R its numerical rank."""
    lower, failed = torch.linalg.cholesky_ex(sigma)
    pivots = lower.diagonal().square()
    floor = len(sigma) * EPS
    # A singular matrix can pass by luck of rounding; its pivots give it away. The margin costs only time.
    if not failed and pivots.min() > 1e3 * floor * pivots.max():
        return lower
    values, vectors = torch.linalg.eigh(sigma)
    if values[0] < -1e-3 * values[-1].abs():
        raise ValueError(
            f"not a covariance: its eigenvalues run from {values[0]:.3g} to {values[-1]:.3g}, none may be negative"
        )
    keep = values > floor * values[-1]  # the rest is rounding, whose square roots would be large
    return vectors[:, keep] * values[keep].sqrt()
