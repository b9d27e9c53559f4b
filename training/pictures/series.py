"""Pictures of forecasts: fans of ensembles, maps beside what came, errors by lead; angles, and orbits in space."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from samplers.field import Facts
from samplers.planning.plan import SamplerOptions
from torch_utils.report.plot import colour, figure, marker
from training.data.series import SeriesDataset
from training.forecast import plan_of, roll_out
from training.molecules import lifted

Array = np.ndarray[Any, Any]

FANS = ((5, 95, 0.2), (25, 75, 0.4))  # percentiles, opacity
PAST = 12  # frames before a fan
SHOWN = 30  # leads of a fan: more are drawn as trajectories
PANELS = 8  # windows
DOTS = 20_000


def draw_continuation(path: Path, averaged: Mapping[str, nn.Module], *, dataset: SeriesDataset) -> None:
    """The picture of a snapshot: windows of the training part, continued."""
    net, leads = averaged["ema"], max(dataset.horizon, 6)
    device = next(net.parameters()).device
    starts = dataset.starts_before(leads)
    starts = starts[np.linspace(0, len(starts) - 1, 1 if dataset.resolution > 1 else 4).astype(int)]
    noise = {"solver": "ipndm", "num_steps": 7} if Facts.of(net).begins == "noise" else {}
    plan = plan_of(net, SamplerOptions(**noise))
    made = roll_out(net, plan, dataset, starts, leads=leads, members=8, device=device)
    draw_forecast(path, dataset, starts, made.members, "Training windows, continued")


def draw_forecast(path: Path, dataset: SeriesDataset, starts: Array, members: Array, title: str) -> None:
    """Fans of vectors, or maps of the first window; `members [n, M, leads, C, H, W]` are states."""
    leads = members.shape[2]
    chosen = np.linspace(0, len(starts) - 1, min(len(starts), PANELS)).astype(int)
    starts, members = starts[chosen], members[chosen]
    _, after, _ = dataset.windows(starts, leads)
    back = min(PAST, int(starts[:, 1].min()))
    past = dataset.recording.values[starts[:, :1], starts[:, 1:] + np.arange(-back, 0)]
    came = dataset.to_frames(after.numpy(), starts[:, 1])
    said = dataset.to_frames(members, starts[:, 1][:, None])
    if dataset.resolution > 1:
        draw_maps(path, came[0], said[0], title, dataset.unit)
    else:  # one of several angles is enough: they jump at the edge
        past, came, said = (x[..., : 1 if dataset.scaling.is_angle else 3, 0, 0] for x in (past, came, said))
        if dataset.scaling.is_angle:
            came = np.unwrap(came, period=360, axis=1)
            said = lifted(said, came)
        draw_fans(path, past, came, said, title, dataset.unit)


def draw_fans(path: Path, past: Array, came: Array, said: Array, title: str, unit: str) -> None:
    """What was known, what came and what was said, one panel a window, a colour a channel.

    Args:
        past: `[n, W, C]`. came: `[n, leads, C]`. said: `[n, M, leads, C]`.
    """
    shown, came, said = min(len(past), PANELS), came[:, :SHOWN], said[:, :, :SHOWN]
    rows = -(-shown // 4)
    with figure(path, title, (3.4 * min(shown, 4), 2.6 * rows)) as fig:
        axes = fig.subplots(rows, min(shown, 4), sharey=True, squeeze=False).flat
        for ax in axes[shown:]:
            ax.set_axis_off()
        for i, ax in enumerate(axes[:shown]):
            back, ahead = np.arange(-past.shape[1] + 1, 1), np.arange(1, came.shape[1] + 1)
            for c in range(past.shape[2]):
                ink = colour(c)
                for low, high, alpha in FANS:
                    a, b = np.percentile(said[i, :, :, c], (low, high), axis=0)
                    share = f"{high - low} % of members"
                    ax.fill_between(ahead, a, b, color=ink, alpha=alpha, linewidth=0, label=share)
                ax.plot(ahead, said[i, :, :, c].mean(0), color=ink, label="their mean")
                ax.plot(back, past[i, :, c], color="black", linewidth=1)
                ax.plot(
                    ahead, came[i, :, c], color="black", marker=marker(c), markersize=3, linewidth=0.8, label="came"
                )
            ax.axvline(0.5, color="0.6", linewidth=0.8)
            ax.set(xlabel="frames ahead", ylabel=unit if i % 4 == 0 else "")
            if i == 0:
                handles, names = ax.get_legend_handles_labels()
                fig.legend(handles[:4], names[:4], loc="outside lower center", ncols=4)  # those of the first number


def draw_maps(path: Path, came: Array, said: Array, title: str, unit: str) -> None:
    """Rows: what came, mean and spread of the ensemble, two members; columns: leads.

    Args:
        came: `[leads, C, H, W]`. said: `[M, leads, C, H, W]`. The first channel is drawn.
    """
    rows = {"came": came, "mean": said.mean(0), "spread": said.std(0)}
    rows |= {f"member {m + 1}": said[m] for m in range(min(2, len(said)))}
    reach, wide = float(np.abs(came[:, 0]).max()), float(rows["spread"][:, 0].max())
    with figure(path, title, (1.5 * len(came) + 1, 1.5 * len(rows) + 0.6)) as fig:
        axes = fig.subplots(len(rows), len(came), squeeze=False)
        for row, (name, maps) in zip(axes, rows.items(), strict=True):
            for lead, ax in enumerate(row):
                spread = name == "spread"
                image = ax.imshow(
                    maps[lead, 0], cmap="viridis" if spread else "RdBu_r", origin="lower",
                    vmin=0 if spread else -reach, vmax=wide if spread else reach,
                )  # fmt: skip
                ax.set(xticks=[], yticks=[])
                ax.grid(False)
                if name == "came":
                    ax.set_title(f"lead {lead + 1}", fontsize=9)
                if lead == 0:
                    ax.set_ylabel(name)
            fig.colorbar(image, ax=list(row), fraction=0.02, label=unit)


def draw_leads(path: Path, scores: Mapping[str, Mapping[str, Any]], title: str, unit: str) -> None:
    """CRPS, MSE and SSR by lead, a line for each forecast; `unit` is that of the scored values."""
    units = {"crps": unit, "mse": f"({unit})²", "ssr": "spread / error"}
    with figure(path, title, (11, 3.4)) as fig:
        for ax, key in zip(fig.subplots(1, 3), ("crps", "mse", "ssr"), strict=True):
            for i, (name, found) in enumerate(scores.items()):
                values = found["by_lead"][key]
                ax.plot(range(1, len(values) + 1), values, color=colour(i), marker=marker(i), label=name)
            ax.set(title=key.upper(), xlabel="lead", ylabel=units[key])
            if key == "ssr":
                ax.axhline(1, color="0.6", linewidth=0.8)
                ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def draw_ramachandran(path: Path, data: Array, made: Array, title: str) -> None:
    """(phi, psi) of all residues, recorded and made; the first and last 30 frames of one trajectory stand out.

    Args:
        data, made: trajectories `[K, T, 2 R]` in degrees.
    """
    dots = min(DOTS, data.size // 2, made.size // 2)
    with figure(path, title, (9, 4.6)) as fig:
        for ax, angles, name in zip(fig.subplots(1, 2), (data, made), ("recorded", "made"), strict=True):
            pairs = angles.reshape(*angles.shape[:2], -1, 2)
            shown = pairs.reshape(-1, 2)[:: max(pairs.size // 2 // dots, 1)]
            ax.plot(*shown.T, ".", color="0.75", markersize=2)
            for part, ink, when in ((pairs[0, :30], "black", "first 30"), (pairs[0, -30:], colour(0), "last 30")):
                ax.plot(*part.reshape(-1, 2).T, ".", color=ink, markersize=4, label=f"{when} frames of one")
            ax.set(title=name, xlabel="phi", ylabel="psi", xlim=(-180, 180), ylim=(-180, 180), aspect="equal")
            ax.legend(loc="lower right")


def draw_trajectories(path: Path, data: Array, made: Array, title: str, angles: bool) -> None:
    """The first two numbers over time, and against each other: recorded `[T, C]` in black, made `[K, T, C]`."""
    shown = min(made.shape[2], 2)
    with figure(path, title, (11, 2.4 * (shown + 1))) as fig:
        grid = fig.add_gridspec(shown, 3)
        dots = {"linestyle": "none", "marker": ".", "markersize": 3} if angles else {"linewidth": 0.9}
        for c in range(shown):
            ax = fig.add_subplot(grid[c, :2])
            for k in range(min(len(made), 3)):
                ax.plot(made[k, :, c], color=colour(k), **dots)
            ax.plot(data[:, c], color="black", **dots)
            ax.set(xlabel="frames ahead", ylabel=f"number {c + 1}", **({"ylim": (-180, 180)} if angles else {}))
        if shown == 2:
            ax = fig.add_subplot(grid[:, 2])
            last = 1 if angles else data.shape[1] - 1  # of orbits in space the outer coordinates
            ax.plot(made[0][:, 0], made[0][:, last], color=colour(0), **dots, label="made")
            ax.plot(data[:, 0], data[:, last], color="black", alpha=0.6, **dots, label="came")
            ax.set(xlabel="number 1", ylabel=f"number {last + 1}")
            ax.legend()
