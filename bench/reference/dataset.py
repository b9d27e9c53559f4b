"""Image data sets to a zip of PNG files as a researcher writes it: one image after the other, with PIL and zipfile.

The rules are those of the published data set format: numbered names, uncompressed PNG in a stored zip, labels behind.
"""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
from tqdm import tqdm

__all__ = ["cifar_images", "convert", "folder_images"]

Labelled = Iterator[tuple[np.ndarray, "int | None"]]


def cifar_images(path: Path, limit: int) -> Labelled:
    """The first `limit` training images of the CIFAR-10 archive, with classes."""
    images, labels = [], []
    with tarfile.open(path, "r:gz") as tar:
        for batch in range(1, 6):
            member = tar.getmember(f"cifar-10-batches-py/data_batch_{batch}")
            with tar.extractfile(member) as file:
                data = pickle.load(file, encoding="latin1")
            images.append(data["data"].reshape(-1, 3, 32, 32))
            labels.append(data["labels"])
    images = np.concatenate(images).transpose([0, 2, 3, 1])
    labels = np.concatenate(labels)
    assert images.shape == (50000, 32, 32, 3)
    assert (np.min(images), np.max(images)) == (0, 255)
    for index in range(limit):
        yield images[index], int(labels[index])


def folder_images(path: Path) -> Labelled:
    """All images of a folder, in order."""
    for name in sorted(p for p in path.rglob("*") if p.suffix in (".jpg", ".png")):
        yield np.array(PIL.Image.open(name)), None


def center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The centred square, resized with Lanczos."""
    crop = min(image.shape[:2])
    image = image[(image.shape[0] - crop) // 2 : (image.shape[0] + crop) // 2]
    image = image[:, (image.shape[1] - crop) // 2 : (image.shape[1] + crop) // 2]
    return np.array(PIL.Image.fromarray(image, "RGB").resize((size, size), PIL.Image.Resampling.LANCZOS))


def convert(images: Labelled, total: int, dest: Path, size: int | None = None) -> None:
    """Write the data set; with `size`, images are cropped and resized to it."""
    labels, first = [], None
    with zipfile.ZipFile(dest, "w", zipfile.ZIP_STORED) as archive:
        for index, (image, label) in tqdm(enumerate(images), total=total, disable=True):
            if size is not None:
                image = center_crop(image, size)
            first = first or image.shape
            assert image.shape == first
            name = f"{index:08d}"
            name = f"{name[:5]}/img{name}.png"
            buffer = io.BytesIO()
            PIL.Image.fromarray(image, "RGB").save(buffer, format="png", compress_level=0, optimize=False)
            archive.writestr(name, buffer.getbuffer())
            labels.append([name, label])
        archive.writestr("dataset.json", json.dumps({"labels": labels if labels[0][1] is not None else None}))
