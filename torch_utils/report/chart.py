"""Line charts of a page that a reader can zoom into: numbers here, the drawing in web/page.js with uPlot."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch_utils.report.plot import colour

MANY = 40  # values of a line whose points are not marked any more


@dataclass(frozen=True)
class Line:
    """Points joined in the order of x. A value that is not a finite number is a gap.

    Attributes:
        hue: number of the colour, as for `torch_utils.report.plot.colour`.
        dash: lengths of strokes and gaps; none: a full line.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    hue: int
    dash: Sequence[int] = ()


@dataclass(frozen=True)
class Chart:
    """Lines over one x axis.

    Attributes:
        log_x, log_y: logarithmic axes, which leave out what is not positive.
        falling: x falls from left to right, as noise levels do.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False
    falling: bool = False

    def html(self) -> str:
        """A card of the page; everything in it is escaped."""
        xs = sorted({x for line in self.lines for x in line.x if _shown(x, self.log_x)})
        values = [dict(zip(line.x, line.y, strict=True)) for line in self.lines]
        columns = [[y if _shown(y := v.get(x), self.log_y) else None for x in xs] for v in values]
        series = [
            {"name": line.name, "points": len(line.x) < MANY, "colour": colour(line.hue), "dash": list(line.dash)}
            for line in self.lines
        ]
        chart = {
            "x_label": self.x_label, "y_label": self.y_label, "log_x": self.log_x, "log_y": self.log_y,
            "falling": self.falling, "series": series, "data": [xs, *columns],
        }  # fmt: skip
        # "<" would end the element that holds the data, whatever a name says.
        data = json.dumps(chart, allow_nan=False).replace("<", "\\u003c")
        return (
            f'<section class="card"><h3>{html.escape(self.title)}</h3>\n'
            f'<div class="chart"><script type="application/json">{data}</script></div></section>\n'
        )


def _shown(value: float | None, log: bool) -> bool:
    return value is not None and math.isfinite(value) and (value > 0 or not log)
