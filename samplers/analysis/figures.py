"""Pictures of samplers and runs: numbers in, one PNG out. What the numbers mean is said where they are computed.

Noise levels run from left (noise) to right (data) on every axis, as sampling does; a last level of 0 has no place on a
logarithmic axis and is left out. A solver has the same colour in every picture; its variants differ in the line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samplers.analysis.trajectory_file import Trajectory
from samplers.solvers.table import SOLVERS
from torch_utils.images import to_uint8
from torch_utils.misc import expand_to
from torch_utils.report.plot import COLOURS, colour, figure, marker

LEVEL = "noise level σ (data in [-1, 1])"
LINES = ("-", "--", ":", "-.")
DATA_STD = 0.5  # of images in [-1, 1], about: states are shown with this spread at every level


def draw_compare(report: Mapping[str, Any], path: str | Path) -> None:
    """Error, and Fréchet distance where there is one, against NFE; a line per solver."""
    measures = [("rmse", f"RMSE to the teacher ({report['teacher']['solver']}, {report['teacher']['nfe']} NFE)")]
    if "frechet" in report:
        measures.append(("frechet", f"Fréchet distance ({report['frechet']['features']})"))
    solvers = solver_styles({r["solver"]: r["method"] for r in report["results"]})
    styles = {
        label: {"color": colour(hue), "marker": marker(hue), "linestyle": LINES[dash % len(LINES)]}
        for label, (hue, dash) in solvers.items()
    }
    with figure(
        path, "Error of solvers by network evaluations", (5.2 * len(measures) + 1.8, max(4.6, 0.3 * len(styles) + 1.2))
    ) as fig:
        panels = fig.subplots(1, len(measures), squeeze=False)[0]
        for ax, (key, name) in zip(panels, measures, strict=True):
            for label, style in styles.items():
                points = [(r["nfe"], r[key]) for r in report["results"] if r["solver"] == label and r.get(key)]
                if points:
                    ax.plot(*zip(*points, strict=True), label=label, **style)
            ax.set(xlabel="network evaluations per image (NFE)", ylabel=name, yscale="log")
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.grid(which="minor", axis="y", alpha=0.4)
            _plain_numbers(ax.yaxis)
        fig.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")


def draw_curvature(report: Mapping[str, Any], path: str | Path) -> None:
    """The integrand of the curvature along the way, a band of two standard errors around it; and a sweep over beta."""
    models = report["results"]
    sweep = sorted((r["beta"], r["curvature"], 2 * r["stderr"]) for r in models if r["beta"] is not None)
    panels = 2 if len({beta for beta, *_ in sweep}) > 1 else 1
    with figure(path, "Curvature of sampling trajectories", (5.6 * panels + 1.4, 4.4)) as fig:
        along, *rest = fig.subplots(1, panels, squeeze=False)[0]
        for i, r in enumerate(models):
            t, mean, error = (np.array(r[key]) for key in ("times", "profile", "profile_stderr"))
            along.plot(t, mean, color=colour(i), label=f"{r['label']}: {r['curvature']:.3g}")
            along.fill_between(t, mean - 2 * error, mean + 2 * error, color=colour(i), alpha=0.25, linewidth=0)
        along.set(xlabel="time t (0 = data, 1 = noise)", ylabel="|velocity - chord|² per dimension", ylim=(0, None))
        along.invert_xaxis()
        along.legend()
        for ax in rest:
            beta, value, error = zip(*sweep, strict=True)
            ax.errorbar(beta, value, yerr=error, color=colour(0), marker="o", capsize=3)
            for r in models:
                if r["beta"] is None:
                    ax.axhline(r["curvature"], color="0.4", linestyle="--", label=r["label"])
            ax.set(xlabel="beta (weight of the prior)", ylabel="curvature per dimension", xscale="log", yscale="log")
            if ax.get_legend_handles_labels()[0]:
                ax.legend()


def _plain_numbers(axis: Any) -> None:
    """20, 10, 5 on a logarithmic axis instead of powers; between the decades only where few are shown."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    axis.set_major_formatter(Plain(labelOnlyBase=False))
    axis.set_minor_formatter(Plain(labelOnlyBase=False, minor_thresholds=(1.5, 0.7)))


def solver_styles(solvers: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Label -> numbers of its colour and of its dashes: the solver gives the colour, its variants the dashes.

    A solver has the same colour in every picture, but where another of the picture has it: then it takes the next.
    """
    order, styles, seen, hues = ["edm", *SOLVERS], {}, dict.fromkeys(solvers.values(), 0), {}
    for label, solver in solvers.items():
        if solver not in hues:
            own = order.index(solver) if solver in order else len(order) + len(hues)
            taken = {colour(hue) for hue in hues.values()}
            hues[solver] = next((h for h in range(own, own + len(COLOURS)) if colour(h) not in taken), own)
        styles[label] = (hues[solver], seen[solver])
        seen[solver] += 1
    return styles


def draw_trajectory(summary: Mapping[str, Any], path: str | Path) -> None:
    """Six panels over the summary of `samplers.analysis.trajectory_file`: thin lines are samples, the thick one their
    mean."""
    sigmas = np.array(summary["sigmas"])
    with figure(path, f"Geometry of {len(summary['seeds'])} sampling trajectories", (13, 7.2)) as fig:
        panels = fig.subplots(2, 3)
        _bundle(panels[0, 0], sigmas, summary["deviation"], colour(0))
        panels[0, 0].set(title="Deviation from the chord", ylabel="distance to the line start-end")
        _bundle(panels[0, 1], sigmas, summary["norm_state"], colour(0), "state")
        _bundle(panels[0, 1], sigmas, summary["norm_estimate"], colour(1), "denoised estimate")
        panels[0, 1].set(title="Magnitude", ylabel="Euclidean norm", yscale="log")
        panels[0, 1].legend()
        _bundle(panels[0, 2], sigmas, summary["cosine"], colour(0))
        panels[0, 2].set(title="Drift and direction from the end point", ylabel="cosine")
        _bundle(panels[1, 0], sigmas, [d[:-1] for d in summary["distance_to_end"]], colour(0))  # the last is 0
        panels[1, 0].set(title="Distance to the end point", ylabel="Euclidean distance", yscale="log")
        _explained(panels[1, 1], summary)
        _bend(panels[1, 2], sigmas, summary)
        for ax in (*panels[0], panels[1, 0]):
            _level_axis(ax)


def _bundle(ax: Any, sigmas: np.ndarray, values: Sequence[Sequence[float]], color: str, label: str = "mean") -> None:
    v = np.array(values, dtype=float)  # [B, T or T - 1]; None becomes NaN, a gap
    keep = sigmas[: v.shape[1]] > 0
    s = sigmas[: v.shape[1]][keep]
    ax.plot(s, v[:, keep].T, color=color, alpha=min(0.5, 4 / len(v)), linewidth=0.7)
    ax.plot(s, v[:, keep].mean(0), color=color, label=label, linewidth=2.2, marker="o", markersize=3)


def _level_axis(ax: Any) -> None:
    ax.set(xlabel=LEVEL, xscale="log")
    ax.invert_xaxis()


def _explained(ax: Any, summary: Mapping[str, Any]) -> None:
    for i, (key, label) in enumerate(
        (("explained", "trajectory"), ("explained_orthogonal", "orthogonal to its chord"))
    ):
        v = np.array(summary[key], dtype=float)
        places = np.arange(1, v.shape[1] + 1) + 0.36 * (i - 0.5)
        bars = ax.bar(places, 100 * v.mean(0), width=0.34, color=colour(i), label=label)
        ax.bar_label(bars, fmt="%.1f", fontsize=8)
    ax.set(title="Explained variance", xlabel="principal directions", ylabel="share of variance (%)", ylim=(0, 125))
    ax.set_xticks(range(1, v.shape[1] + 1))
    ax.set_yticks(range(0, 101, 20))
    ax.legend(loc="upper left", ncols=2)
    ax.grid(axis="x", visible=False)


def _bend(ax: Any, sigmas: np.ndarray, summary: Mapping[str, Any]) -> None:
    ax.set_title("Curvature and torsion")
    if "curvature" not in summary:
        ax.set_axis_off()
        ax.text(0.5, 0.5, "needs 11 or more states\nin 3 or more dimensions", ha="center", va="center", color="#5c6470")
        return
    for i, (key, name) in enumerate((("curvature", "curvature κ"), ("torsion", "|torsion τ|"))):
        _bundle(ax, sigmas, np.abs(np.array(summary[key], dtype=float)), colour(i), name)
    ax.set(ylabel="1 / length", yscale="log")
    ax.legend()
    _level_axis(ax)


def draw_projection(summary: Mapping[str, Any], path: str | Path) -> None:
    """Trajectories in three dimensions: along the chord, and the two leading directions orthogonal to it."""
    curves = np.array(summary["projection"], dtype=float)  # [B, T, 3]
    with figure(path, f"{len(curves)} trajectories in 3-D projection", (8, 5.4)) as fig:
        ax = fig.add_subplot(projection="3d")
        for i, curve in enumerate(curves):
            ax.plot(*curve.T, color=colour(i), alpha=max(0.25, min(1.0, 8 / len(curves))), linewidth=1.2)
        ax.scatter(*curves[:, 0].T, color="#8a919c", s=14, label="noise", depthshade=False)
        ax.scatter(
            [0], [0], [0], color="#1d2129", s=28, marker="*", label="end points (shifted to 0)", depthshade=False
        )
        ax.set_xlabel("along the chord", labelpad=14)
        ax.set_ylabel("1st orthogonal", labelpad=6)
        ax.set_zlabel("2nd orthogonal", labelpad=6)
        ax.xaxis.get_major_locator().set_params(nbins=6)
        ax.yaxis.get_major_locator().set_params(nbins=5)
        ax.set_box_aspect((2, 1, 1), zoom=1.1)
        ax.legend(loc="upper left")


def draw_strip(trajectory: Trajectory, path: str | Path, *, rows: int = 6, columns: int = 12) -> None:
    """States above clean estimates, step by step; a pair of rows per sample.

    States are scaled to the spread of data at every level. Raises ValueError where the states are not images.
    """
    T, B, *shape = trajectory.x.shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"states of shape {shape} are not images of 1 or 3 channels: no strip can be drawn of them")
    steps = np.unique(np.linspace(0, T - 1, min(columns, T)).round().astype(int)).tolist()
    B, (H, W) = min(B, rows), shape[1:]
    x = trajectory.x[steps, :B].double()
    level = trajectory.sigmas[steps]
    scale = DATA_STD / (DATA_STD**2 + level**2).sqrt()
    states = x * expand_to(scale, x)
    # The last state has no estimate of its own: it is the image.
    estimates = torch.cat([trajectory.data[steps[:-1], :B], x[-1:]])
    cells = torch.stack([states, estimates], dim=2)  # [steps, B, 2, C, H, W]
    cells = to_uint8(cells).permute(1, 2, 4, 0, 5, 3)  # [B, 2, H, steps, W, C]
    picture = _framed(cells, max(1, round(min(H, W) / 16)))
    size = (0.75 * len(steps) + 1.4, 0.8 * 2 * B * H / W + 1.2)
    with figure(path, "From noise to data: states (upper rows) and denoised estimates (lower rows)", size) as fig:
        ax = fig.subplots()
        gap = (picture.shape[1] - len(steps) * W) // len(steps)
        ax.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        ax.set_xticks([(W + gap) * i + W / 2 - 0.5 for i in range(len(steps))], [f"{v:.3g}" for v in level.tolist()])
        ax.set_yticks(
            [(2 * H + 3 * gap) * i + H - 0.5 + gap for i in range(B)], [f"seed {s}" for s in trajectory.seeds[:B]]
        )
        ax.set_xlabel(LEVEL)


def _framed(cells: Tensor, gap: int) -> np.ndarray:
    """`[B, 2, H, steps, W, C]` -> one picture with white gaps, wider ones between samples."""
    pad = torch.nn.functional.pad
    cells = pad(cells, (0, 0, 0, gap, 0, 0, 0, gap), value=255)  # right of every cell, below every row
    cells = cells.flatten(1, 2).flatten(2, 3)  # [B, 2 (H + gap), steps (W + gap), C]
    picture = pad(cells, (0, 0, 0, 0, 0, gap), value=255).flatten(0, 1)
    return picture.numpy()[:, :, 0] if picture.shape[2] == 1 else picture.numpy()


def draw_schedules(schedules: Mapping[str, Sequence[float]], path: str | Path) -> None:
    """Levels of schedules, one row each on a common logarithmic axis, and the same over the steps."""
    with figure(path, "Noise schedules", (11, max(3.4, 1.6 + 0.42 * len(schedules)))) as fig:
        left, right = fig.subplots(1, 2)
        for i, (name, sigmas) in enumerate(schedules.items()):
            shown = [s for s in sigmas if s > 0]
            style = {"color": colour(i), "marker": marker(i)}
            left.plot(shown, [i] * len(shown), **style)
            right.plot(np.linspace(0, 1, len(sigmas))[: len(shown)], shown, label=name, **style)
        left.set_yticks(range(len(schedules)), list(schedules))
        left.set_ylim(len(schedules) - 0.5, -0.5)
        left.set_title("Levels")
        _level_axis(left)
        right.set(title="Levels over steps", xlabel="step / steps", ylabel=LEVEL, yscale="log")


def draw_cost(cost: Tensor, sigmas: Sequence[float], indices: Sequence[int], path: str | Path, metric: str) -> None:
    """The cost of every jump, and the chosen path as stairs: one corner per jump.

    Args:
        cost: `[T, T]`, row = from, column = to.
        indices: the chosen levels.
    """
    values = cost.cpu().double().numpy()
    shown = np.ma.masked_where(np.tri(len(values), dtype=bool), values)
    ticks = np.unique(np.linspace(0, len(sigmas) - 1, min(9, len(sigmas))).round().astype(int)).tolist()
    names = [f"{sigmas[i]:.3g}" for i in ticks]
    with figure(path, f"Cost of jumps ({metric}) and the chosen path of {len(indices) - 1} steps", (7.4, 6.2)) as fig:
        ax = fig.subplots()
        image = ax.imshow(shown, cmap="cividis", norm=_cost_norm(shown), interpolation="nearest", aspect="auto")
        fig.colorbar(image, ax=ax, label=f"cost ({metric}, mean over samples)")
        columns = [i for a in indices[1:] for i in (a, a)]
        rows = [i for a in indices[:-1] for i in (a, a)]
        ax.plot([indices[0], *columns], [*rows, indices[-1]], color=colour(1), linewidth=1.4)
        ax.plot(indices[1:], indices[:-1], "o", color=colour(1), markeredgecolor="white", markersize=6, label="jumps")
        ax.set_xticks(ticks, names)
        ax.set_yticks(ticks, names)
        ax.set(xlabel=f"to {LEVEL}", ylabel="from noise level σ")
        ax.grid(visible=False)
        ax.legend(loc="lower left")


def _cost_norm(cost: np.ma.MaskedArray) -> Any:
    """Logarithmic where the numbers span decades; linear around zero, where `dev` may be negative."""
    from matplotlib.colors import Normalize, SymLogNorm

    size = np.abs(cost.compressed())
    small = np.quantile(size[size > 0], 0.25) if (size > 0).any() else 0
    if small == 0 or size.max() < 10 * small:
        return Normalize()
    return SymLogNorm(linthresh=small, vmin=cost.min(), vmax=cost.max())


def draw_curve(curve: Mapping[str, Any], path: str | Path) -> None:
    """Training loss, raw and smoothed, and speed, over thousands of images."""
    with figure(path, "Training", (11, 4.2)) as fig:
        left, right = fig.subplots(1, 2)
        left.plot(curve["kimg"], curve["loss"], color=colour(0), alpha=0.35, linewidth=1, label="per tick")
        left.plot(curve["kimg"], curve["smooth"], color=colour(0), linewidth=2.2, label="smoothed")
        left.set(title="Loss", xlabel="training images (thousands)", ylabel="mean loss per element")
        left.legend()
        right.plot(curve["kimg"], curve["images_per_second"], color=colour(2))
        right.set(title="Speed", xlabel="training images (thousands)", ylabel="images per second")
        right.set_ylim(bottom=0)
