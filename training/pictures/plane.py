"""Pictures of a flow of points in the plane: forward lines, learned trajectories, densities.

Forward lines are the paths x_t between data and the noise that training pairs with them; where they cross, the
trajectories that the network learns must turn (Lee, Kim, Ye 2023, arXiv 2301.12003, figure 1). A row of panels a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samplers.path import PATHS
from samplers.solvers.native import sample_native, uniform_times
from torch_utils.report.plot import colour, figure

LINES = 60  # forward lines and trajectories in a panel
TIMES = 33  # points of a forward line, which is no straight line on the variance-preserving path
BINS = 48  # of a density, along each axis
PANEL = (3.5, 2.8)  # inches
TITLES = ("Forward lines of training", "Learned trajectories", "Density of samples", "Density of data")


@dataclass(frozen=True)
class Plane:
    """What a row of panels shows, all float64 on the host.

    Attributes:
        name: of the model.
        lines: forward lines from data to noise, `[T, n, 2]`.
        states: sampling trajectories from noise to data, `[K + 1, n, 2]`.
        samples, data: points `[N, 2]`.
    """

    name: str
    lines: np.ndarray
    states: np.ndarray
    samples: np.ndarray
    data: np.ndarray


@torch.inference_mode()
def look(
    name: str,
    net: nn.Module,
    pairs: tuple[Tensor, Tensor],
    data: Tensor,
    noise: Tensor,
    steps: int,
    class_labels: Tensor | None = None,
) -> Plane:
    """The flow of a velocity network of points, by Euler steps from the prior it recommends.

    Args:
        pairs: data and its noise in training, `[n, 2, 1, 1]` each, of which LINES are drawn.
        data, noise: for the densities, unit noise, `[N, 2, 1, 1]`.
        class_labels: of the noise, `[N, label_dim]`.
    """
    chosen = torch.randperm(len(pairs[0]), generator=torch.Generator().manual_seed(0))[:LINES].to(data.device)
    x, z = (end[chosen].double() for end in pairs)
    path, times = PATHS[net.path](), torch.linspace(0, 1, TIMES, dtype=torch.float64, device=data.device)
    lines = torch.stack([path.mix(x, z, t) for t in times])
    states: list[Tensor] = []
    samples = sample_native(
        net, net.start_noise(noise), uniform_times(steps), class_labels=class_labels,
        trace=lambda step: states.append(step.x[:LINES]),
    )  # fmt: skip
    layers = (lines, torch.stack([*states, samples[:LINES]]), samples, data)
    return Plane(name, *(layer.double().flatten(-3).cpu().numpy() for layer in layers))


def draw_planes(planes: Sequence[Plane], path: str | Path) -> None:
    """A row of four panels each: lines and trajectories on common axes, densities on those of the data.

    Raises:
        ValueError: points that are not finite.
    """
    curves = np.concatenate([v.reshape(-1, 2) for p in planes for v in (p.lines[[0, -1]], p.states)])
    if not np.isfinite(curves).all() or not all(np.isfinite(p.samples).all() for p in planes):
        raise ValueError("some points are not finite: the sampler or the network is broken")
    whole = _box(curves.min(0), curves.max(0), 0.04)
    data = np.concatenate([p.data for p in planes])
    near = _box(np.quantile(data, 0.001, axis=0), np.quantile(data, 0.999, axis=0), 0.12)
    with figure(path, "", (4 * PANEL[0], len(planes) * PANEL[1] + 0.4), dpi=90) as fig:
        panels = fig.subplots(len(planes), 4, squeeze=False, sharex="col", sharey="col")
        for ax, title in zip(panels[0], TITLES, strict=True):
            ax.set_title(title)
        for plane, row in zip(planes, panels, strict=True):
            _curves(row[0], plane.lines, noise=-1)
            _curves(row[1], plane.states, noise=0)
            _densities(row[2:], plane, near)
            row[0].set_ylabel(plane.name, fontweight="bold")
        for ax in panels[:, :2].flat:
            ax.set(xlim=whole[:, 0], ylim=whole[:, 1])
        panels[0, 0].legend(loc="best", handletextpad=0.1, markerscale=2)
        for ax in panels.flat:
            ax.grid(visible=False)


def _box(low: np.ndarray, high: np.ndarray, margin: float) -> np.ndarray:
    """Corners `[2, 2]`, wider by a share of the size along each axis."""
    edge = margin * np.maximum(high - low, 1e-6)
    return np.stack([low - edge, high + edge])


def _curves(ax: Any, curves: np.ndarray, noise: int) -> None:
    """Curves `[T, n, 2]`, whose end at index `noise` is the noise."""
    ax.plot(*curves.transpose(2, 0, 1), color=colour(9), alpha=0.45, linewidth=0.7)
    for end, label, i in ((noise, "noise", 1), (-1 - noise, "data" if noise else "samples", 0)):
        ax.plot(*curves[end].T, ".", color=colour(i), label=label, markersize=4, markeredgewidth=0)


def _densities(panels: Sequence[Any], plane: Plane, box: np.ndarray) -> None:
    """Histograms of samples and data on one scale, that of the data."""
    edges = [np.linspace(low, high, BINS + 1) for low, high in box.T]
    counts = [np.histogram2d(*points.T, bins=edges)[0] / len(points) for points in (plane.samples, plane.data)]
    top = np.quantile(counts[1][counts[1] > 0], 0.98)
    for ax, count in zip(panels, counts, strict=True):
        ax.pcolormesh(*edges, count.T, cmap="Blues", vmin=0, vmax=top)
