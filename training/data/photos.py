"""Photographs that installed packages ship, cut into small crops: natural images where nothing can be downloaded.

scikit-learn brings a palace and a flower (640 x 427), matplotlib a portrait (512 x 600). Each is shrunk by 2 and by 4,
and cut into crops of 32 x 32 pixels, one every 4 pixels. What lies right of TRAIN of the width is the part "test": no
pixel of it is in a crop of the part "train", and crops across the border are in neither.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from training.data.originals import Source, array_source

SIZE, STRIDE, SHRINK, TRAIN = 32, 4, (2, 4), 0.75


def _photographs() -> dict[str, Path]:
    import matplotlib
    import sklearn.datasets

    images = Path(sklearn.datasets.__file__).parent / "images"
    portrait = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    return {"palace": images / "china.jpg", "flower": images / "flower.jpg", "portrait": portrait}


def open_photos(path: Path, split: str | None, labels: str) -> Source:
    """The crops of one part; their class is the photograph."""
    crops: list[np.ndarray] = []
    classes: list[int] = []
    found = _photographs()
    for c, (name, file) in enumerate(found.items()):
        if not file.is_file():
            raise ValueError(f"the photograph {name} is not installed ({file}): pip install scikit-learn matplotlib")
        whole = Image.open(file).convert("RGB")
        for shrink in SHRINK:
            image = np.asarray(whole.reduce(shrink))
            border = round(TRAIN * image.shape[1])
            first, last = {"train": (0, border), "test": (border, image.shape[1])}[split]
            corners = [
                (i, j)
                for i in range(0, image.shape[0] - SIZE + 1, STRIDE)
                for j in range(first, last - SIZE + 1, STRIDE)
            ]
            crops += [image[i : i + SIZE, j : j + SIZE] for i, j in corners]
            classes += [c] * len(corners)
    return array_source(f"photographs ({split})", crops, classes, list(found))
