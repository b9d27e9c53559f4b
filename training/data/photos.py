"""Photographs that installed packages ship, cut into small crops: natural images where nothing can be downloaded.

scikit-learn brings a palace and a flower (640 x 427), matplotlib a portrait (512 x 600). Squares of 64 and 128 of their
pixels, one every 8 and every 16, are shrunk to crops of 32 x 32 or 64 x 64. What lies right of TRAIN of the width is
the part "test": no pixel of it is in a crop of the part "train", and crops across the border are in neither.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from training.data.originals import Source, array_source

SQUARES, OVERLAP, TRAIN = (64, 128), 8, 0.75


def _photographs() -> dict[str, Path]:
    import matplotlib
    import sklearn.datasets

    images = Path(sklearn.datasets.__file__).parent / "images"
    portrait = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    return {"palace": images / "china.jpg", "flower": images / "flower.jpg", "portrait": portrait}


def open_photos(size: int) -> Callable[[Path, str | None, str], Source]:
    """Crops of `size` pixels; their class is the photograph."""
    stride = size // OVERLAP

    def open_crops(path: Path, split: str | None, labels: str) -> Source:
        crops: list[np.ndarray] = []
        classes: list[int] = []
        found = _photographs()
        for c, (name, file) in enumerate(found.items()):
            if not file.is_file():
                raise ValueError(
                    f"the photograph {name} is not installed ({file}): pip install scikit-learn matplotlib"
                )
            whole = Image.open(file).convert("RGB")
            for square in SQUARES:
                image = np.asarray(whole.reduce(square // size))
                border = round(TRAIN * image.shape[1])
                first, last = {"train": (0, border), "test": (border, image.shape[1])}[split]
                corners = [
                    (i, j)
                    for i in range(0, image.shape[0] - size + 1, stride)
                    for j in range(first, last - size + 1, stride)
                ]
                crops += [image[i : i + size, j : j + size] for i, j in corners]
                classes += [c] * len(corners)
        return array_source(f"photographs ({split})", crops, classes, list(found))

    return open_crops
