"""dataset_tool.py: CIFAR-10 from its archive, folders of small PNG files, folders of photographs to be cropped."""

from __future__ import annotations

import io
import pickle
import tarfile
import tempfile
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from bench.reference import dataset as reference
from bench.rows.row import Row, Work
from training.data.sources import open_source
from training.data.transforms import make_transform
from training.data.writer import convert

__all__ = ["ROWS"]

WORKERS = 2
_FOLDERS: list[tempfile.TemporaryDirectory] = []  # live until the program ends


def _folder() -> Path:
    _FOLDERS.append(tempfile.TemporaryDirectory(prefix="fewstep-bench-"))
    return Path(_FOLDERS[-1].name)


def _pictures(num: int, size: int) -> np.ndarray:
    """Smooth colours with grain, as photographs are to an encoder: uint8 `[num, size, size, 3]`."""
    random = np.random.default_rng(0)
    coarse = random.integers(20, 236, (num, 5, 5, 3), dtype=np.uint8)
    smooth = np.stack([Image.fromarray(x).resize((size, size), Image.Resampling.BICUBIC) for x in coarse])
    return smooth + random.integers(0, 20, smooth.shape, dtype=np.uint8)


def _cifar(num: int) -> Work:
    folder = _folder()
    source = folder / "cifar-10-python.tar.gz"
    data = np.tile(_pictures(10_000, 32).transpose(0, 3, 1, 2).reshape(-1, 3072), (5, 1))
    data[0], data[1] = 0, 255
    with tarfile.open(source, "w:gz", compresslevel=1) as tar:
        for k, rows in enumerate(np.split(data, 5), 1):
            raw = pickle.dumps({"data": rows, "labels": [i % 10 for i in range(len(rows))]}, protocol=4)
            info = tarfile.TarInfo(f"cifar-10-batches-py/data_batch_{k}")
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return _work(
        folder, lambda dest: reference.convert(reference.cifar_images(source, num), num, dest),
        lambda dest: _ours(source, dest, max_images=num),
    )  # fmt: skip


def _files(num: int, size: int, suffix: str, crop: int | None) -> Work:
    folder = _folder()
    source = folder / "in"
    source.mkdir()
    for i, image in enumerate(_pictures(num, size)):
        Image.fromarray(image).save(source / f"{i:05d}{suffix}")
    return _work(
        folder, lambda dest: reference.convert(reference.folder_images(source), num, dest, crop),
        lambda dest: _ours(source, dest, crop=crop),
    )  # fmt: skip


def _ours(source: Path, dest: Path, *, crop: int | None = None, max_images: int | None = None) -> None:
    transform = make_transform("center-crop" if crop else None, (crop, crop) if crop else None)
    opened = open_source(str(source))
    convert(opened, dest, transform, max_images=max_images, workers=WORKERS)
    opened.close()


def _work(folder: Path, theirs: partial, ours: partial) -> Work:
    """Both conversions, after a look at their results: the same names, pixels and labels."""
    results = [folder / "theirs.zip", folder / "ours.zip"]
    theirs(results[0])
    ours(results[1])
    for (name, a), (same, b) in zip(*map(_content, results), strict=True):
        if name != same or not np.array_equal(a, b):
            raise ValueError(f"{name} and {same} of the two conversions differ")
    return Work(partial(theirs, results[0]), partial(ours, results[1]))


def _content(path: Path) -> list[tuple[str, np.ndarray]]:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")]
        return [(name, np.array(Image.open(io.BytesIO(archive.read(name))))) for name in names]


ROWS = [
    Row(f"dataset_tool, {name}", prepare, goal, agree=None, repeats=5)
    for name, prepare, goal in (
        ("10,000 CIFAR images", partial(_cifar, 10_000), 1.5),
        ("2,000 PNG 32x32", partial(_files, 2000, 32, ".png", None), 1.5),
        ("500 JPEG 512x512 to 64x64", partial(_files, 500, 512, ".jpg", 64), 3),
    )
]
