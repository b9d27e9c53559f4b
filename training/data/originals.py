"""Readers of data sets that come in a container of their own: digits, CIFAR-10, MNIST, LSUN, lmdb records.

These files come from the internet and are treated so: nothing is extracted, nothing that a file names is executed, and
no more is unpacked than the data set has. What a reader returns, `Source`, is shared with the readers of folders and
zips in `sources.py`.
"""

from __future__ import annotations

import gzip
import io
import math
import tarfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from training.data.cifar_pickle import read_batch


@dataclass(frozen=True, kw_only=True)
class Source:
    """Images that can be read in any order from several threads.

    Attributes:
        description: what was found, for the user.
        size: number of images; an entry that turns out to be broken counts.
        read: index -> bytes of an image file, or uint8 pixels [H,W] or [H,W,3]; ValueError or OSError if broken.
        name: index -> name for messages.
        labels: one label (class number or vector) or None per image; None: no labels at all.
        label_file: what the labels come from, for messages; label_kind: where they are no classes.
        class_names: one per class, where there are names.
        repeated: images that a later one of the same name hides.
        notes: what else the user should know, a sentence each.
        force_rgb: gray images become RGB.
        skip_broken: an unreadable entry is left out with a notice instead of ending the conversion.
        close: releases files.
    """

    description: str
    size: int
    read: Callable[[int], bytes | np.ndarray]
    name: Callable[[int], str]
    labels: Sequence[Any] | None = None
    label_file: str = ""
    label_kind: str | None = None
    class_names: Sequence[str] | None = None
    repeated: int = 0
    notes: tuple[str, ...] = ()
    force_rgb: bool = False
    skip_broken: bool = False
    close: Callable[[], None] = lambda: None


def array_source(
    description: str, images: Sequence[np.ndarray], labels: Sequence[int], class_names: Sequence[str] | None = None
) -> Source:
    """Decoded images `[H,W]` or `[H,W,3]`, uint8, with class numbers."""
    return Source(
        description=f"{description}: {len(images)} images in {len(set(labels))} classes",
        size=len(images),
        read=lambda i: images[i],
        name=lambda i: f"image {i} of {description}",
        labels=list(labels),
        class_names=class_names,
    )


def open_digits(path: Path, split: str | None, labels: str) -> Source:
    """UCI optical digits as scikit-learn ships them: 1797 real 8x8 gray images, values 0..16."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return array_source("scikit-learn digits", images, digits.target.tolist())


def _unpack(path: Path, limit: int) -> bytes:
    """The content of a gzip file, refused beyond `limit` bytes: a small archive may unpack to terabytes."""
    parts: list[bytes] = []
    stream = zlib.decompressobj(31)  # gzip, with its checksum
    with open(path, "rb") as file:
        while block := file.read(1 << 18):
            while block and not stream.eof:
                parts.append(stream.decompress(block, limit + 1))
                limit -= len(parts[-1])
                if limit < 0:
                    raise ValueError("it unpacks to far more than the data set it claims to be")
                block = stream.unconsumed_tail
    if not stream.eof:
        raise EOFError("it ends early")
    return b"".join(parts)


_CIFAR_UNPACKED = 1 << 29
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_DAMAGED = (gzip.BadGzipFile, tarfile.TarError, zlib.error, EOFError)


def open_cifar10(path: Path, split: str | None, labels: str) -> Source:
    """CIFAR-10, Krizhevsky 2009: a tar of pickled dicts with `data` [10000,3072] and `labels`."""
    wanted = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, 6)]
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(_unpack(path, _CIFAR_UNPACKED)), mode="r:") as tar:
            for info in tar:
                folder, _, name = info.name.rpartition("/")
                plain = info.isfile() and not info.issparse()  # a sparse one may claim any size
                if plain and folder in ("cifar-10-batches-py", "./cifar-10-batches-py") and name in wanted:
                    members[name] = tar.extractfile(info).read()
    except (*_DAMAGED, ValueError) as error:
        raise ValueError(
            f"{path} is not the CIFAR-10 archive, or is incomplete ({error}): download it again"
        ) from error
    if len(members) < len(wanted):
        raise ValueError(f"{path} lacks {', '.join(n for n in wanted if n not in members)}: download it again")
    images: list[np.ndarray] = []
    extremes: list[int] = []
    targets: list[Any] = []
    for name in wanted:
        data, numbers = read_batch(members[name], f"{name} of {path}")
        images += list(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        extremes += [data.min(initial=255), data.max(initial=0)]
        targets += numbers
    count = 10000 * len(wanted)
    return _checked(f"CIFAR-10 ({split})", path, images, extremes, targets, count, _CIFAR10)


def open_mnist(pad: int) -> Callable[[Path, str | None, str], Source]:
    """MNIST, LeCun et al. 1998; `pad` zero pixels on each side (EDM: 28 -> 32)."""

    def read(path: Path, split: str | None, labels: str) -> Source:
        if "images-idx3" not in path.name:
            raise ValueError(f"{path} is not an MNIST image file: give train-images-idx3-ubyte.gz")
        count = 10000 if path.name.startswith("t10k") else 60000
        sibling = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
        pixels = _read_idx(path, 16, count * 28 * 28).reshape(count, 28, 28)
        targets = _read_idx(sibling, 8, count).tolist()
        images = np.pad(pixels, ((0, 0), (pad, pad), (pad, pad)))
        return _checked("MNIST", path, images, [pixels.min(), pixels.max()], targets, count)

    return read


def _read_idx(path: Path, header: int, size: int) -> np.ndarray:
    try:
        with gzip.open(path) as stream:
            data = stream.read(header + size + 1)
    except _DAMAGED as error:
        raise ValueError(f"{path} is damaged or incomplete ({error}): download it again") from error
    if len(data) != header + size:
        raise ValueError(
            f"{path} must unpack to {header + size} bytes, got {'more' if len(data) > header + size else len(data)}"
        )
    return np.frombuffer(data, np.uint8, offset=header)


def _checked(
    description: str, path: Path, images: Sequence[np.ndarray], extremes: list[int], targets: list[Any], count: int,
    class_names: Sequence[str] | None = None,
) -> Source:  # fmt: skip
    """Published facts every copy must satisfy: the count, pixel values that span 0..255, classes 0..9.

    `extremes` are smallest and largest values of parts of the images.
    """
    valid = len(images) == len(targets) == count and all(type(t) is int for t in targets)
    if not valid or (min(extremes), max(extremes)) != (0, 255) or (min(targets), max(targets)) != (0, 9):
        raise ValueError(
            f"{path} is not the original {description}: it must hold {count} images with pixel values spanning 0..255 "
            f"and as many labels spanning 0..9, got {len(images)} images and {len(targets)} labels"
        )
    return array_source(description, images, targets, class_names)


@dataclass
class _Lmdb:
    """A read-only lmdb environment with its keys."""

    path: Path
    keys: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        import lmdb

        if not self.path.exists():
            raise FileNotFoundError(f"{self.path} does not exist")
        try:
            folder = self.path.is_dir()
            self.env = lmdb.open(str(self.path), readonly=True, lock=False, readahead=False, subdir=folder)
            with self.env.begin() as view:
                self.keys = list(view.cursor().iternext(keys=True, values=False))
        except lmdb.Error as error:
            raise ValueError(f"{self.path} is not an lmdb data base ({error})") from error

    def read(self, key: bytes) -> bytes:
        with self.env.begin() as view:
            return bytes(view.get(key))


def open_lsun(path: Path, split: str | None, labels: str) -> Source:
    """LSUN, Yu et al. 2015, arXiv 1506.03365: key -> image file, in key order; broken entries are known to occur."""
    base = _Lmdb(path)
    return Source(
        description=f"LSUN data base {path}: {len(base.keys)} images",
        size=len(base.keys),
        read=lambda i: base.read(base.keys[i]),
        name=lambda i: f"entry {i} of {path}",
        force_rgb=True,
        skip_broken=True,
        close=base.env.close,
    )


def open_lmdb(path: Path, split: str | None, labels: str) -> Source:
    """NVAE's preparation (CelebA-HQ 256, FFHQ): decimal key -> image file, or raw uint8 RGB of a square image."""
    base = _Lmdb(path)
    with suppress(ValueError):  # keys that are not numbers stay in their own order
        base.keys.sort(key=int)
    sizes = {len(base.read(key)) for key in base.keys[:8]}
    side = math.isqrt(min(sizes, default=0) // 3)
    raw = sizes == {3 * side * side} and side > 0  # image files differ in size

    def read(i: int) -> bytes | np.ndarray:
        data = base.read(base.keys[i])
        if raw and len(data) != 3 * side * side:
            raise ValueError(f"a record of {len(data)} bytes among records of {side}x{side} RGB pixels")
        return np.frombuffer(data, np.uint8).reshape(side, side, 3) if raw else data

    return Source(
        description=f"lmdb data base {path}: {len(base.keys)} {'raw ' if raw else ''}images",
        size=len(base.keys),
        read=read,
        name=lambda i: f"entry {i} of {path}",
        close=base.env.close,
    )
