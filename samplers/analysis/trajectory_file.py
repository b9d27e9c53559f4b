"""Trajectory files: states, drifts and noise levels of sampling runs, as `generate.py --save-traj` writes them.

An npz with `x [B, T, ...]`, `drift [B, T-1, ...]`, `sigmas [B, T]` and `seeds [B]`, noisy to clean, float32. The clean
estimates follow: data = x - sigma * drift (coordinates x = data + sigma * noise). `summarise` gathers what
`samplers.analysis.geometry` measures (Chen et al., ICML 2024, arXiv 2405.11326).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samplers.analysis import geometry
from torch_utils.arrays import opened_arrays
from torch_utils.misc import expand_to

KEYS = ("x", "drift", "sigmas", "seeds")
BEND_WINDOW = 5  # neighbouring states in a fit of curvature and torsion
BEND_STATES = 11  # fewer states say nothing about torsion


@dataclass(frozen=True)
class Trajectory:
    """Sampling runs over common levels.

    Attributes:
        sigmas: `[T]` float64, falling; the last may be 0.
        x: `[T, B, ...]` states.
        drift: `[T-1, B, ...]` the drift first used in each step.
        seeds: of the B samples.
    """

    sigmas: Tensor
    x: Tensor
    drift: Tensor
    seeds: tuple[int, ...]

    @property
    def data(self) -> Tensor:
        """Clean estimates before each step, `[T-1, B, ...]`."""
        before = self.x[:-1].double()
        return before - expand_to(self.sigmas[:-1], before) * self.drift


def load_trajectory(path: str | Path, num: int | None = None) -> Trajectory:
    """Read a file, or its first `num` samples; nothing in it is executed.

    Raises:
        ValueError: no file, not an npz, one of another kind, arrays that do not fit each other, fewer than 3 states.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}: make one with `generate.py --save-traj=FILE`")
    with opened_arrays(path, "a trajectory file") as file:
        names = list(file)
        arrays = {key: file[key] for key in KEYS if key in names}
    if len(arrays) < len(KEYS):
        raise ValueError(
            f"{path} holds {', '.join(names) or 'nothing'}, not {', '.join(KEYS)}: "
            "make a trajectory file with `generate.py --save-traj=FILE`"
        )
    x, drift, sigmas, seeds = (torch.from_numpy(arrays[key])[:num] for key in KEYS)
    steps = x.shape[1] - 1 if x.ndim > 2 else 0
    if steps < 2 or not len(x) or drift.shape != (len(x), steps, *x.shape[2:]) or sigmas.shape != (len(x), steps + 1):
        raise ValueError(
            f"{path} is not a trajectory of 3 or more states: its shapes are x {list(x.shape)}, "
            f"drift {list(drift.shape)}, sigmas {list(sigmas.shape)}"
        )
    if not all(bool(v.isfinite().all()) for v in (x, drift, sigmas)):
        raise ValueError(f"{path} holds values that are not finite: make it again, with --precision=fp32")
    levels = sigmas[0].double()
    if bool((sigmas != sigmas[0]).any()) or bool((levels.diff() >= 0).any()) or levels[-1] < 0:
        raise ValueError(f"{path} has noise levels that differ between samples or do not fall: they must be common")
    return Trajectory(levels, x.transpose(0, 1), drift.transpose(0, 1), tuple(seeds.tolist()))


def summarise(trajectory: Trajectory) -> dict[str, Any]:
    """What there is to say about the shape of trajectories, as JSON-able numbers; None where one is not defined.

    Returns:
        `sigmas [T]`, `seeds [B]`; `[B][T]`: `deviation` (from the chord), `norm_state`, `distance_to_end`, and with
        T-1 entries `norm_estimate`, `norm_drift`, `cosine` (of the drift to the end point); `explained`
        and `explained_orthogonal` `[B][3]` (cumulative shares of 3 principal directions, the latter of what is left
        orthogonal to the chord); `projection [B][T][3]`; from 11 states on `arclength`, `curvature`, `torsion`.
    """
    x = trajectory.x
    explained = geometry.explained_variance(x)
    found: dict[str, Any] = {
        "deviation": geometry.chord_deviation(x).T,
        "norm_state": geometry.norms(x).T,
        "norm_estimate": geometry.norms(trajectory.data).T,
        "norm_drift": geometry.norms(trajectory.drift).T,
        "distance_to_end": geometry.distance_to_end(x).T,
        "cosine": geometry.cosine_to_end(x, trajectory.drift).T,
        "explained": explained[:, :3],
        "explained_orthogonal": explained[:, 3:],
    }
    if x[0, 0].numel() >= 3:
        curve = geometry.project3(x)
        found["projection"] = curve.transpose(0, 1)
        if len(x) >= BEND_STATES and bool(curve.isfinite().all()):
            found |= {name: v.T for name, v in geometry.bend(curve, BEND_WINDOW)._asdict().items()}
    plain = {name: _plain(value.tolist()) for name, value in found.items()}
    return {"sigmas": trajectory.sigmas.tolist(), "seeds": list(trajectory.seeds), **plain}


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value if abs(value) < float("inf") else None
