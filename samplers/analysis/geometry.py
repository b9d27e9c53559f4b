"""Geometry of sampling trajectories: how straight they are, how few dimensions they live in, how they bend.

Sampling trajectories of one model share one shape, nearly straight, with a bend at medium noise (Chen, Zhou, Wang,
Shen, Lyu: On the Trajectory Regularity of ODE-based Diffusion Sampling, ICML 2024, arXiv 2405.11326; arXiv 2506.10177).

Notation: states `x [T, B, ...]` from noisy to clean at levels `sigmas [T]`; anything computed per sample comes back
with the batch axis named in the docstring. All arithmetic is float64. Nothing here evaluates a network.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def _flat(x: Tensor) -> Tensor:
    """`[T, B, ...]` -> `[T, B, D]` in float64."""
    return x.reshape(x.shape[0], x.shape[1], -1).double()


def _chord(x: Tensor) -> Tensor:
    """Unit vector from first to last state: `[T, B, D] -> [B, D]`."""
    u = x[-1] - x[0]
    return u / u.norm(dim=-1, keepdim=True)


def _without(x: Tensor, u: Tensor) -> Tensor:
    """Component of `x [T, B, D]` orthogonal to the unit vectors `u [B, D]`."""
    return x - (x * u).sum(-1, keepdim=True) * u


def chord_deviation(x: Tensor) -> Tensor:
    """Distance of every state from the straight line between the first and the last: `[T, B]`, zero at both ends."""
    x = _flat(x)
    deviation = _without(x[-1] - x, _chord(x)).norm(dim=-1)
    deviation[0] = deviation[-1] = 0
    return deviation


def norms(x: Tensor) -> Tensor:
    """`[T, B, ...] -> [T, B]`."""
    return _flat(x).norm(dim=-1)


def distance_to_end(x: Tensor) -> Tensor:
    """Distance of every state from the last one, `[T, B]`."""
    x = _flat(x)
    return (x - x[-1]).norm(dim=-1)


def cosine_to_end(x: Tensor, drift: Tensor) -> Tensor:
    """Cosine between the drift and the direction from the end point: states `[T, B, ...]`, drifts `[T-1, B, ...]`."""
    x, drift = _flat(x), _flat(drift)
    return torch.cosine_similarity(drift, x[:-1] - x[-1], dim=-1)


def explained_variance(x: Tensor) -> Tensor:
    """Cumulative share of a trajectory's variance in its three leading principal directions.

    Returns `[B, 6]`: for the trajectory itself, then for what is left orthogonal to its chord.
    """
    x = _flat(x)
    return torch.cat([_cumulative(x), _cumulative(_without(x, _chord(x)))], dim=-1)


def _principal(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular values and vectors of the centred states, from the T x T Gram matrix: exact in O(T^2 D)."""
    centred = (x - x.mean(0)).transpose(0, 1)  # [B, T, D]
    values, vectors = torch.linalg.eigh(centred @ centred.transpose(1, 2))
    return values.flip(-1).clamp(min=0), vectors.flip(-1), centred


def _cumulative(x: Tensor) -> Tensor:
    values, _, _ = _principal(x)
    return (values.cumsum(-1) / values.sum(-1, keepdim=True))[:, :3]


def project3(x: Tensor) -> Tensor:
    """Three coordinates per state: along the chord, and along the two leading directions orthogonal to it.

    Coordinates are relative to the end point, `[T, B, 3]`. Signs: with the middle state m = x[T // 2] - x[-1], the
    first axis has <m, u> < 0, the other two > 0, then the third is negated.
    """
    x = _flat(x)
    relative = x - x[-1]
    u = _chord(x)
    values, vectors, centred = _principal(_without(x, u))
    axes = (vectors[:, :, :2].transpose(1, 2) @ centred) / values[:, :2, None].sqrt()  # [B, 2, D]
    axes = torch.cat([u[:, None], axes], dim=1)
    axes = torch.linalg.qr(axes.transpose(1, 2)).Q.transpose(1, 2)  # orthonormal to rounding; signs are set below
    coordinates = torch.einsum("tbd,bkd->tbk", relative, axes)
    signs = coordinates[x.shape[0] // 2].sign()  # [B, 3]
    return coordinates * signs * torch.tensor([-1.0, 1.0, -1.0], dtype=x.dtype, device=x.device)


class Bend(NamedTuple):
    """Arc length, curvature and torsion of a space curve, each `[T, B]`."""

    arclength: Tensor
    curvature: Tensor
    torsion: Tensor


def bend(curve: Tensor, window: int) -> Bend:
    """Curvature and torsion of `curve [T, B, 3]` by local least squares over `window` neighbouring states.

    In every window r(s + ds) - r(s) = r' ds + r'' ds^2 / 2 + r''' ds^3 / 6 is fitted; then kappa = |r' x r''| / |r'|^3
    and torsion = <r' x r'', r'''> / |r' x r''|^2. Near the ends the window is filled from inside the curve.

    Raises:
        ValueError: `window` is even, below 5, or too long for the curve.
    """
    steps, half = curve.shape[0], window // 2
    if window % 2 == 0 or window < 5 or 2 * half >= steps:
        raise ValueError(f"window={window} must be odd, at least 5 and shorter than the {steps} states of the curve")
    r = curve.double()
    s = torch.cat([r.new_zeros(1, r.shape[1]), (r[1:] - r[:-1]).norm(dim=-1).cumsum(0)])
    index = torch.arange(steps, device=r.device)
    index = torch.cat([index[half + 1 : 2 * half + 1], index, index[steps - 2 * half : steps - half]])
    neighbours = index.unfold(0, window, 1)  # [T, window]
    ds = s[neighbours] - s[:, None]  # [T, window, B]
    dr = r[neighbours] - r[:, None]  # [T, window, B, 3]
    basis = torch.stack([ds, ds**2 / 2, ds**3 / 6], dim=-1)  # [T, window, B, 3]
    normal = torch.einsum("twbi,twbj->tbij", basis, basis)
    right = torch.einsum("twbi,twbk->tbik", basis, dr)
    d1, d2, d3 = torch.linalg.solve(normal, right).unbind(2)  # each [T, B, 3]
    cross = torch.linalg.cross(d1, d2)
    size = cross.norm(dim=-1)
    return Bend(s, size / d1.norm(dim=-1) ** 3, (cross * d3).sum(-1) / size**2)
