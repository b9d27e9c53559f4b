"""How straight and even sampling trajectories are, from their states alone.

With states x_0 (noise) .. x_N (data), step shares w_i = |dt_i| / |t_N - t_0| and v_i = dx_i / w_i:

    curvature = sum_i w_i mean(|v_i - (x_N - x_0)|^2)

mean over samples and dimensions: the variance of the velocity along the way, 0 if and only if one Euler step is exact
(Lee, Kim, Ye 2023, arXiv 2301.12003, section 3.1, there summed over dimensions). It depends on solver and step count:
few steps give little of it, one step none. Give 100 steps or more for a number about the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["data_predictions", "step_deviations", "trajectory_curvature"]


def _steps(states: Tensor | Sequence[Tensor], times: Tensor | Sequence[float] | None) -> tuple[Tensor, Tensor]:
    """States `[N+1, B, ...]` in float64 and times `[N+1]`; default: equal steps from 1 to 0."""
    x = (states if isinstance(states, Tensor) else torch.stack(list(states))).double()
    if len(x) < 2:
        raise ValueError(f"a trajectory of {len(x)} state has no step: give 2 states or more")
    if times is None:
        return x, torch.linspace(1, 0, len(x), dtype=torch.float64, device=x.device)
    t = torch.as_tensor(times, dtype=torch.float64, device=x.device)
    if t.shape != (len(x),):
        raise ValueError(f"{len(x)} states need as many times, got shape {list(t.shape)}")
    return x, t


def step_deviations(
    states: Tensor | Sequence[Tensor], times: Tensor | Sequence[float] | None = None
) -> tuple[Tensor, Tensor]:
    """Shares of the steps `[N]`, and v_i - (x_N - x_0) `[N, B, ...]`; float64, arguments as `trajectory_curvature`."""
    x, t = _steps(states, times)
    share = t.diff() / (t[-1] - t[0])
    return share, x.diff(dim=0) / share.reshape(-1, *[1] * (x.ndim - 1)) - (x[-1] - x[0])


def trajectory_curvature(states: Tensor | Sequence[Tensor], times: Tensor | Sequence[float] | None = None) -> Tensor:
    """Curvature per dimension, `[]` float64.

    Args:
        states: `[N+1, B, ...]` along the way, in native coordinates.
        times: `[N+1]`, falling or rising; None: equal steps.
    """
    share, deviation = step_deviations(states, times)
    return (share.reshape(-1, *[1] * (deviation.ndim - 1)) * deviation.square()).sum(0).mean()


def data_predictions(states: Tensor | Sequence[Tensor], times: Tensor | Sequence[float] | None = None) -> Tensor:
    """Where each step would arrive at t = 0: x_i - t_i v_i with the velocity v_i it used, `[N, B, ...]` float64."""
    x, t = _steps(states, times)
    shape = (-1, *[1] * (x.ndim - 1))
    return x[:-1] - t[:-1].reshape(shape) * x.diff(dim=0) / t.diff().reshape(shape)
