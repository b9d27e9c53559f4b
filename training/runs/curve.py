"""The course of a training run, read from its stats.jsonl: loss, smoothed loss, speed.

Smoothing is a centred average over images, which does not lag behind: s_n = sum_i w_ni loss_i / sum_i w_ni with
w_ni = m_i exp(-((kimg_n - kimg_i) / (WIDTH kimg_last))^2 / 2) and m_i the images of tick i.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

WIDTH = 0.02  # of the whole run: standard deviation of the smoothing


def read_curve(run_dir: str | Path) -> dict[str, list[float]]:
    """`kimg`, `loss`, `smooth` and `images_per_second`, a number per tick.

    Raises:
        ValueError: no run directory, nothing in its statistics, or a damaged file.
    """
    ticks, path = read_stats(run_dir), Path(run_dir) / "stats.jsonl"
    try:
        kimg = [t["Progress/kimg"]["mean"] for t in ticks]
        loss = [t["Loss/loss"]["mean"] for t in ticks]
        speed = [1000 / t["Timing/sec_per_kimg"]["mean"] for t in ticks]
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{path} is not the statistics of a training run: an entry lacks {error}") from error
    return {"kimg": kimg, "loss": loss, "smooth": _smooth(kimg, loss), "images_per_second": speed}


def read_stats(run_dir: str | Path) -> list[dict[str, Any]]:
    """The ticks of a run; a last line without its end is being written, or was when the run was killed.

    Raises:
        ValueError: no run directory, nothing in its statistics, or a damaged file.
    """
    path = Path(run_dir) / "stats.jsonl"
    if not path.is_file():
        raise ValueError(
            f"{run_dir} holds no stats.jsonl: give the directory of a training run, such as runs/00000-..."
        )
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    if not lines:
        raise ValueError(f"{path} holds no tick yet: wait for the run's first one")
    ticks = []
    for number, line in enumerate(lines, 1):
        try:
            ticks.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path} is damaged in line {number}: {error}") from error
    return ticks


def _smooth(kimg: list[float], loss: list[float]) -> list[float]:
    k, value = np.array(kimg), np.array(loss)
    images = np.maximum(np.diff(k, prepend=0), 1e-9)
    width = max(WIDTH * k[-1], 1e-9)
    # One row of weights at a time: a long run has many ticks.
    weights = (images * np.exp(-(((k - at) / width) ** 2) / 2) for at in k)
    return [float(w @ value / w.sum()) for w in weights]
