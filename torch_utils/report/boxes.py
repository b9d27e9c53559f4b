"""Shapes made of boxes as a picture: one drawing in space each, in a grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from torch_utils.report.plot import pixels

COLUMNS = 8
MOST = 64  # shapes in one picture
CORNERS = np.array([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
FACES = ((0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5))  # of corners
LIGHT = (0.75, 0.75, 0.85, 0.85, 0.6, 1.0)  # of faces: sides, front and back, bottom, top


def draw_shapes(parts: Tensor, *, columns: int = COLUMNS, titles: Sequence[str] = ()) -> Tensor:
    """Parts `[N, L, V]` in the units of the data -> picture uint8 `[3, H, W]` of the first MOST shapes.

    All shapes have one scale, and parts of a shape their colours.

    Args:
        columns: shapes in a row.
        titles: of the first column's shapes, one a row.

    Raises:
        ValueError: no shape, or boxes that are not finite.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection

    parts = parts[:MOST, :, :7].detach().double().cpu().numpy()
    if not len(parts) or not np.isfinite(parts).all():
        raise ValueError("there is no shape to draw whose boxes are finite: the sampler or the network is broken")
    columns = min(columns, len(parts))
    rows = -(-len(parts) // columns)
    figure = Figure(figsize=(1.5 * columns, 1.5 * rows))
    low, high = _ends(parts)
    reach = max(float(np.quantile((high - low).max(1), 0.95)) / 2, 1e-3)
    for index, shape in enumerate(parts):
        left, bottom = index % columns / columns, 1 - (index // columns + 1) / rows
        axes = figure.add_axes((left, bottom, 1 / columns, 1 / rows), projection="3d")
        for slot in np.flatnonzero(shape[:, 0] > 0.5):
            corners = shape[slot, 1:4] + CORNERS * np.abs(shape[slot, 4:7])
            colour = np.array(colormaps["tab20"](slot % 20)[:3])
            faces = [corners[list(face)] for face in FACES]
            axes.add_collection3d(
                Poly3DCollection(
                    faces, facecolors=[colour * light for light in LIGHT], edgecolors="0.2", linewidths=0.3
                )
            )
        centre = (low[index] + high[index]) / 2
        axes.set(**{f"{a}lim": (c - reach, c + reach) for a, c in zip("xyz", centre, strict=True)})
        axes.set_box_aspect((1, 1, 1), zoom=1.35)
        axes.view_init(elev=18, azim=-58)
        axes.set_axis_off()
        if index % columns == 0 and index // columns < len(titles):
            axes.text2D(0.03, 0.93, titles[index // columns], transform=axes.transAxes, fontsize=8)
    return pixels(figure)


def _ends(parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest corner `[N, 3]` of the parts that exist; 0 of shapes without."""
    exists, half = parts[..., :1] > 0.5, np.abs(parts[..., 4:7]) / 2
    low = np.where(exists, parts[..., 1:4] - half, np.inf).min(1)
    high = np.where(exists, parts[..., 1:4] + half, -np.inf).max(1)
    none = ~exists.any(1)
    return np.where(none, 0, low), np.where(none, 0, high)
