"""Figures in one style, drawn without a display (matplotlib's Agg) and written whole or not at all.

    with figure("loss.png", title="Training loss") as fig:
        ax = fig.subplots()
        ax.plot(steps, losses, color=colour(0), marker=marker(0))

matplotlib is imported on first use: it takes a second, which no command line should wait for to print its help.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch_utils.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

# Dark enough on white, apart from each other for colour-blind readers too when markers differ.
COLOURS = (
    "#1f6fb4", "#d9541e", "#2a9134", "#8e44ad", "#b8860b", "#c2255c", "#0b8a8f", "#5c4b3c", "#6a7f10", "#495057",
)  # fmt: skip
MARKERS = "osD^vPXd<>p"  # one more than colours: the pairs repeat late

STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e3e5e8",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "figure.facecolor": "white",
}


def colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def marker(i: int) -> str:
    return MARKERS[i % len(MARKERS)]


def pixels(figure: Figure, dpi: int = 100) -> Tensor:
    """A figure drawn, uint8 `[3, H, W]`."""
    import numpy as np
    import torch
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(dpi)
    canvas.draw()
    return torch.from_numpy(np.array(canvas.buffer_rgba()))[..., :3].permute(2, 0, 1).contiguous()


@contextmanager
def figure(
    path: str | Path, title: str = "", size: tuple[float, float] = (7.0, 4.5), dpi: int = 120
) -> Iterator[Figure]:
    """A figure that is written to `path` (PNG) when the block ends without an error.

    Args:
        title: above all axes.
        size: width and height in inches.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        fig = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(fig)
        if title:
            fig.suptitle(title, fontsize=12, fontweight="bold")
        yield fig
        buffer = io.BytesIO()  # draw first: a file is only touched once its content is complete
        fig.savefig(buffer, format="png", dpi=dpi)
    with atomic_write(path) as f:
        f.write(buffer.getbuffer())
