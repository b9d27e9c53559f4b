"""Points in the plane as a picture, where images would be shown as a grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from torch_utils.report.plot import pixels

MAX_POINTS = 20_000


def is_points(shape: Sequence[int]) -> bool:
    """Whether data of this shape, without the batch, are points in the plane: two channels of one pixel."""
    return tuple(shape) == (2, 1, 1)


def scatter(points: Tensor, reference: Tensor | None = None) -> Tensor:
    """`points [N, 2, ...]` -> picture uint8 `[3, H, W]`; `reference` points lie below in grey.

    Axes have one scale and hold 99.8 % of what is shown, so that few stray points do not shrink the rest.

    Raises:
        ValueError: points of another dimension than two, or none that is finite.
    """
    from matplotlib.figure import Figure

    layers = [p.detach().flatten(1).float().cpu() for p in (reference, points) if p is not None]
    if any(p.ndim != 2 or p.shape[1] != 2 for p in layers):
        raise ValueError(f"only points of two dimensions can be drawn, these have shape {list(points.shape)}")
    layers = [p[p.isfinite().all(1)][:MAX_POINTS].numpy() for p in layers]
    shown = layers[0] if reference is not None and len(layers[0]) else layers[-1]
    if not len(shown):
        raise ValueError("there is no finite point to draw: the sampler or the network is broken")
    low, high = np.quantile(shown, 0.001, axis=0), np.quantile(shown, 0.999, axis=0)
    reach = 0.55 * max(float((high - low).max()), 1e-6) * 1.1
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    for layer, colour in zip(layers, ("0.75", "tab:blue")[-len(layers) :], strict=True):
        axes.plot(*layer.T, ".", color=colour, markersize=max(2.0, 6 - np.log10(len(layer) + 1)), markeredgewidth=0)
    centre = (low + high) / 2
    axes.set(xlim=(centre[0] - reach, centre[0] + reach), ylim=(centre[1] - reach, centre[1] + reach), aspect="equal")
    return pixels(figure)
