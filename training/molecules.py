"""What is measured of generated angles of molecules besides errors: where they dwell, how they move, against a record.

Angles are in degrees, `(phi, psi)` of one residue after the other. All of it is over differences modulo 360; a KL of
kernel densities or a discrepancy over raw degrees, as published, sees nothing (`torch_utils/scores.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from torch_utils.scores import trajectory_scores, wrapped
from training.data.series_sources import RESIDUE_WELLS

Array = np.ndarray[Any, Any]

REACH = 60.0  # degrees from a well in both angles that count as being in it
BINS, FLOOR = 36, 1e-6
LAGS = 20

_CENTRES = np.array(list(RESIDUE_WELLS.values()))


def residues(angles: Array) -> Array:
    """`[..., 2 R]` as pairs `[..., R, 2]`.

    Raises:
        ValueError: an odd number of angles.
    """
    if angles.shape[-1] % 2:
        raise ValueError(f"{angles.shape[-1]} angles are not pairs of phi and psi")
    return angles.reshape(*angles.shape[:-1], -1, 2)


def _from_wells(angles: Array) -> Array:
    """Wrapped differences `[..., R, wells, 2]`."""
    return wrapped(residues(angles)[..., None, :] - _CENTRES)


def occupancy(angles: Array) -> dict[str, float]:
    """Share of residues and frames in each well, and elsewhere."""
    inside = (np.abs(_from_wells(angles)) < REACH).all(-1)
    shares = inside.reshape(-1, len(_CENTRES)).mean(0)
    return dict(zip(RESIDUE_WELLS, shares.tolist(), strict=True)) | {"elsewhere": float(1 - shares.sum())}


def transition_rate(angles: Array) -> float:
    """Changes of the nearest well, per residue and frame, of trajectories `[K, T, 2 R]`."""
    nearest = np.square(_from_wells(angles)).sum(-1).argmin(-1)
    return float((np.diff(nearest, axis=1) != 0).mean())


def autocorrelation(angles: Array, lags: int = LAGS) -> list[float]:
    """Autocorrelation of cos phi in trajectories `[K, T, 2 R]`, mean over residues, at lags 1, 2, ..."""
    x = np.cos(np.radians(residues(angles)[..., 0]))
    x = x - x.mean((0, 1))
    norm = np.square(x).mean() or 1.0  # angles that do not move
    return [float((x[:, k:] * x[:, :-k]).mean() / norm) for k in range(1, min(lags, x.shape[1] - 1) + 1)]


def ramachandran_kl(data: Array, made: Array) -> float:
    """KL of histograms of all (phi, psi), of `data` from `made`: 36 x 36 cells, 1e-6 added to each share."""
    edges = np.linspace(-180, 180, BINS + 1)
    shares = []
    for angles in (data, made):
        phi, psi = residues(angles).reshape(-1, 2).T
        counts = np.histogram2d(phi, psi, bins=(edges, edges))[0]
        share = counts / counts.sum() + FLOOR
        shares.append(share / share.sum())
    p, q = shares
    return float((p * np.log(p / q)).sum())


def compare(data: Array, made: Array) -> dict[str, Any]:
    """How trajectories `[K, T, 2 R]` made by a model differ from recorded ones."""
    ours, theirs = occupancy(made), occupancy(data)
    return {
        "occupancy": ours,
        "occupancy_distance": 0.5 * sum(abs(ours[k] - theirs[k]) for k in ours),  # total variation
        "ramachandran_kl": ramachandran_kl(data, made),
        "transition_rate": transition_rate(made),
        "autocorrelation": autocorrelation(made),
    }


def one_step(members: Array, observed: Array) -> dict[str, float]:
    """Wrapped and raw RMSE, MAE and correlation of members `[n, M, D]` with what came, `[n, D]`.

    Those of a member hold its own spread: of a perfect ensemble they are the root of 2 times those of the mean,
    `mean_RMSE`, the direction of the sum of members as vectors.
    """
    near, raw = (trajectory_scores(members, observed, period) for period in (360.0, None))
    mean = np.degrees(np.angle(np.exp(1j * np.radians(members)).mean(1)))
    rmse = float(np.sqrt(np.square(wrapped(mean - observed)).mean()))
    return near | {"mean_RMSE": rmse} | {f"raw_{k}": v for k, v in raw.items()}


def lifted(members: Array, observed: Array) -> Array:
    """Members `[n, M, ...]` moved by whole turns to within half a turn of what came, `[n, ...]`."""
    return observed[:, None] + wrapped(members - observed[:, None])
