"""Pictures beside a snapshot of trajectory optimisation: samples, coefficients and the path they make.

samples-NNNNNN.png               a grid of samples along the learned levels
plain-NNNNNN.png                 the same noise along the ordinary levels (all coefficients 0)
coefficients/NNNNNN/I.png        map I of c of the first sample, grey, -scale black to +scale white
paths/NNNNNN/J.png               noise levels of its elements at step J, in logarithms from 0.002 to 80

Of points in the plane instead: samples and plain over the data, and

trajectories-NNNNNN.png          the way of some points along the ordinary and the learned levels; levels step by step
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from networks.models.mac import MACNetwork
from samplers.field import as_field
from samplers.run import decoded
from samplers.solvers.elementwise import sample_mac
from torch_utils.images import enlarged, make_grid, save_image, to_uint8
from torch_utils.report.plot import colour, figure
from torch_utils.report.scatter import scatter
from training.data.toys import ToyDataset
from training.pictures.preview import POINTS, fixed_starts, shown_part

COLUMNS, MAX_ROWS = 6, 10
TRAJECTORIES = 24  # shown


@functools.singledispatch
@torch.inference_mode()
def draw(dataset: Any, path: Path, averaged: Mapping[str, nn.Module]) -> None:
    """Images: all pictures of the averaged network; `path` is that of the grid, samples-NNNNNN.png."""
    net: MACNetwork = averaged["ema"]
    number = path.stem.removeprefix("samples-")
    rows = min(net.label_dim or COLUMNS, MAX_ROWS)
    noise, labels = fixed_starts(net, rows * COLUMNS, repeat=COLUMNS)
    levels = [*net.schedule, 0.0]
    c = net.coefficients(noise, labels)
    for name, chosen in ((path.name, c), (f"plain-{number}.png", torch.zeros_like(c[:1]))):
        images = decoded(as_field(net), sample_mac(net, noise, levels, class_labels=labels, coefficients=chosen))
        save_image(enlarged(make_grid(to_uint8(images).cpu(), columns=COLUMNS)), path.parent / name)
    for i, grey in enumerate(to_uint8(c[0] / net.C.scale).cpu()):
        save_image(grey[None], path.parent / "coefficients" / number / f"{i}.png")
    for j, level in enumerate(levels):
        save_image(level_picture(net.family.gamma(level, c[:1])[0]).cpu(), path.parent / "paths" / number / f"{j}.png")


@draw.register
@torch.inference_mode()
def _(dataset: ToyDataset, path: Path, averaged: Mapping[str, nn.Module]) -> None:
    """Points: all pictures; `path` is that of the samples."""
    net, data = averaged["ema"], dataset.images()
    number = path.stem.removeprefix("samples-")
    noise, labels = fixed_starts(net, POINTS)
    learned = net.coefficients(noise, labels)
    choices = {f"plain-{number}.png": torch.zeros_like(learned), path.name: learned}
    spread = data.double().square().mean().sqrt().item()
    ways = [states(net, noise, labels, c, spread) for c in choices.values()]
    for name, way in zip(choices, ways, strict=True):
        save_image(scatter(way[-1], reference=shown_part(data)), path.parent / name)
    draw_trajectories(net, ways, learned, data, path.parent / f"trajectories-{number}.png")


def level_picture(gamma: Tensor) -> Tensor:
    """Noise levels `[C, H, W]` as uint8: black at 0.002 and below, white at 80, even in logarithms."""
    low, high = 0.002, 80.0
    share = (gamma.clamp(min=low).log() - math.log(low)) / math.log(high / low)
    image = to_uint8(2 * share - 1)
    return image if image.shape[0] in (1, 3) else image[:1]


def states(net: MACNetwork, noise: Tensor, labels: Tensor | None, c: Tensor, spread: float) -> Tensor:
    """`[N + 1, B, 2]`: states along the levels of `c`, in coordinates in which noise and data fit into one picture.

    Of a flow its own, gamma0 data + gamma1 noise; of a denoiser data + gamma noise, brought to the spread of the data.
    """
    found: list[Tensor] = []
    end = sample_mac(
        net, noise, [*net.schedule, 0.0], class_labels=labels, coefficients=c, trace=lambda step: found.append(step.x)
    )
    nominal = [level for level in net.schedule if level < math.inf]
    if net.start == "exact":
        shares = [net.family.endpoints(level, c)[0] for level in nominal]
        first = [noise]
    else:
        shares = [spread / (spread**2 + net.family.gamma(level, c).square()).sqrt() for level in nominal]
        first = []
    shown = first + [share * x for share, x in zip(shares, found, strict=True)] + [end]
    return torch.stack([x.flatten(1).cpu().double() for x in shown])


def draw_trajectories(net: MACNetwork, ways: Sequence[Tensor], c: Tensor, data: Tensor, path: Path) -> None:
    """Ordinary and learned trajectories over the data, and the learned levels over the nominal ones.

    Args:
        ways: states `[N + 1, B, 2]` along ordinary and learned levels; the first TRAJECTORIES of B are drawn, of the
            others the ends.
        c: the learned coefficients, `[B, maps, 1, 1]`.
        data: `[n, 2, 1, 1]`.
    """
    reference = shown_part(data).flatten(1).cpu()
    with figure(path, f"{len(net.schedule)} Euler steps", (14, 4.8)) as fig:
        panels = fig.subplots(1, 3)
        for ax, way, name in zip(panels, ways, ("ordinary levels", "learned levels"), strict=False):
            ax.plot(*reference.T, ".", color="0.8", markersize=2, zorder=0, label="data")
            ax.plot(*way[-1].T, ".", color=colour(0), markersize=2, zorder=1, label="samples")
            ax.plot(*way[:, :TRAJECTORIES].unbind(2), color="black", linewidth=0.8, marker="o", markersize=2)
            ax.set(title=name, aspect="equal")
            ax.legend(loc="lower left", markerscale=4)
        finite = [level for level in net.schedule if level < math.inf]
        maps = torch.stack([net.family.gamma(level, c[:TRAJECTORIES]).flatten(1).cpu().double() for level in finite])
        steps = range(len(net.schedule) - len(finite), len(net.schedule))
        for axis in range(maps.shape[2]):
            panels[2].plot(steps, maps[:, :, axis], color=colour(axis), linewidth=0.7, alpha=0.4)
            panels[2].plot([], [], color=colour(axis), label=f"coordinate {axis + 1}")
        panels[2].plot(steps, finite, color="black", marker="o", label="ordinary")
        panels[2].set(title="levels", xlabel="step", ylabel="noise level σ", yscale="log")
        panels[2].set_xticks(list(steps))
        panels[2].legend()
