"""Charts of a page from the JSON files of `analyze.py`: the lines of `samplers.analysis.figures`, to zoom into.

Colours and dashes are those of the pictures: a solver has one colour, its variants differ in the dashes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from samplers.analysis.figures import LEVEL, solver_styles
from torch_utils.report.chart import Chart, Line

DASHES = ((), (8, 5), (2, 4), (8, 4, 2, 4))


def charts_of(name: str, report: Any) -> list[Chart]:
    """The charts of what `analyze.py` wrote into a file of this name, one of CHARTS.

    Raises:
        ValueError: the file has other contents.
    """
    try:
        return CHARTS[name](report)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        kind = name.removesuffix(".json")
        raise ValueError(f"this is not what `analyze.py {kind}` writes: make it again with that command") from error


def _compare(report: Mapping[str, Any]) -> list[Chart]:
    styles = solver_styles({r["solver"]: r["method"] for r in report["results"]})
    labels = {"rmse": "RMSE to the teacher", "frechet": "Fréchet distance"}
    return [
        Chart(
            f"{label} by network evaluations", "evaluations", label, log_y=True,
            lines=[_line(name, [(r["nfe"], r[key]) for r in report["results"] if r["solver"] == name and r.get(key)],
                         hue, dash) for name, (hue, dash) in styles.items()],
        )
        for key, label in labels.items()
        if key == "rmse" or key in report
    ]  # fmt: skip


def _line(name: str, points: Sequence[tuple[float, float]], hue: int, dash: int = 0) -> Line:
    return Line(name, [x for x, _ in points], [y for _, y in points], hue, DASHES[dash % len(DASHES)])


def _curve(report: Mapping[str, Any]) -> list[Chart]:
    kimg = report["kimg"]
    loss = [Line("smoothed", kimg, report["smooth"], 0), Line("per tick", kimg, report["loss"], 9)]
    speed = [Line("images per second", kimg, report["images_per_second"], 2)]
    images = "training images (thousands)"
    return [Chart("Training loss", images, "loss", loss, log_y=True), Chart("Speed", images, "images/s", speed)]


def _curvature(report: Mapping[str, Any]) -> list[Chart]:
    lines = [Line(r["label"], r["times"], r["profile"], i) for i, r in enumerate(report["results"])]
    return [Chart("Curvature along trajectories", "time (1 = noise)", "|velocity - chord|²", lines, falling=True)]


def _schedules(report: Mapping[str, Sequence[float]]) -> list[Chart]:
    lines = [
        _line(name, [(i / max(len(levels) - 1, 1), level) for i, level in enumerate(levels)], hue)
        for hue, (name, levels) in enumerate(report.items())
    ]
    return [Chart("Noise levels over steps", "step / steps", LEVEL, lines, log_y=True)]


CHARTS: dict[str, Callable[[Any], list[Chart]]] = {
    "compare.json": _compare,
    "curve.json": _curve,
    "curvature.json": _curvature,
    "schedules.json": _schedules,
}
