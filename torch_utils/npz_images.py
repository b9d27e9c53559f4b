"""Images in an npz, read batch by batch: a file of 50 000 images of 256 x 256 pixels is 10 GB and is never held.

The array is called `images` or `arr_0` (what other samplers write), uint8 `[N, H, W, C]` or `[N, C, H, W]` with 1 or 3
channels; where both readings fit, channels are last. Compressed files work as well.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import IO

import numpy as np
import torch
from torch import Tensor

NAMES = ("images", "arr_0")


class NpzImages:
    """uint8 images of an npz.

    Attributes:
        image_shape: `(C, H, W)`.

    Raises:
        ValueError: not an npz, no such array, or not images.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                there = [name.removesuffix(".npy") for name in archive.namelist()]
                found = [name for name in NAMES if name in there]
                if not found:
                    raise ValueError(
                        f"it holds {', '.join(there[:5]) or 'nothing'}, and images are an array {' or '.join(NAMES)}"
                    )
                self._member = f"{found[0]}.npy"
                with archive.open(self._member) as f:
                    self._shape, fortran, dtype = _read_header(f)
                    self._start = f.tell()
        except (zipfile.BadZipFile, ValueError) as error:
            raise ValueError(f"{path} is not an npz of images: {error}") from error
        self._channels_last = len(self._shape) == 4 and self._shape[3] in (1, 3)
        if (
            dtype != np.uint8
            or fortran
            or not (self._channels_last or (len(self._shape) == 4 and self._shape[1] in (1, 3)))
        ):
            raise ValueError(
                f"{path}: images must be a C-ordered uint8 array [N, H, W, C] or [N, C, H, W] with 1 or 3 channels, "
                f"got {dtype} {list(self._shape)}{' in Fortran order' if fortran else ''}"
            )
        _, *rest = self._shape
        self.image_shape = (rest[2], rest[0], rest[1]) if self._channels_last else tuple(rest)

    def __len__(self) -> int:
        return self._shape[0]

    def images(self, indices: Sequence[int], batch: int) -> Iterator[Tensor]:
        """Batches uint8 `[<= batch, C, H, W]` of the images at these ascending indices."""
        size = int(np.prod(self._shape[1:]))
        with zipfile.ZipFile(self.path) as archive, archive.open(self._member) as f:
            for start in range(0, len(indices), batch):
                rows = bytearray()
                for index in indices[start : start + batch]:
                    f.seek(self._start + index * size)
                    rows += f.read(size)
                images = torch.frombuffer(rows, dtype=torch.uint8).reshape(-1, *self._shape[1:])
                yield images.permute(0, 3, 1, 2) if self._channels_last else images


def _read_header(f: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(f)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(f)
