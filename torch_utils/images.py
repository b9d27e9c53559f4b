"""Images between networks and files: uint8 <-> [-1, 1], grids, PNG files, and a writer that works beside the sampler.

u8 = trunc(clip(127.5 x + 128, 0, 255)) is the exact inverse of x = u8 / 127.5 - 1, that is, rounding half up. Files
appear whole or not at all: an image that could not be written completely (full disk) leaves nothing under its name.
"""

from __future__ import annotations

import io
import os
import queue
import threading
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from torch_utils.files import atomic_write

MIN_WIDTH = 512  # pixels of a picture of several images


def to_uint8(x: Tensor) -> Tensor:
    """Float images in [-1, 1], any shape and float dtype -> uint8; values outside are clipped."""
    if not x.is_floating_point():
        raise ValueError(f"to_uint8 converts float images in [-1, 1], got {x.dtype}")
    if x.dtype != torch.float64:  # half precision cannot hold 127.5 x + 128
        x = x.to(torch.float32)
    return (x * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """uint8 images -> float32 in [-1, 1]."""
    if images.dtype != torch.uint8:
        raise ValueError(f"from_uint8 converts uint8 images, got {images.dtype}")
    return images.to(torch.float32) / 127.5 - 1


def make_grid(images: Tensor, columns: int | None = None) -> Tensor:
    """`[N, C, H, W]` -> one image `[C, rows * H, columns * W]`, row by row, no gaps; missing cells are 0.

    `columns` defaults to the square root of N, rounded down.
    """
    n, c, h, w = images.shape
    columns = max(int(n**0.5), 1) if columns is None else columns
    if columns < 1:
        raise ValueError(f"a grid needs at least one column, got {columns}")
    rows = -(-n // columns)
    cells = images.new_zeros(rows * columns, c, h, w)
    cells[:n] = images
    return cells.reshape(rows, columns, c, h, w).permute(2, 0, 3, 1, 4).reshape(c, rows * h, columns * w)


def enlarged(picture: Tensor) -> Tensor:
    """`[C, H, W]` with every pixel a block of k x k, the smallest k that makes the picture at least MIN_WIDTH wide.

    Small images are shown as blocks rather than blurred by a viewer.
    """
    k = -(-MIN_WIDTH // picture.shape[2])
    return picture.repeat_interleave(k, 1).repeat_interleave(k, 2)


def to_pil(image: Tensor) -> Image.Image:
    """uint8 `[C, H, W]`: 1 channel -> mode L, 3 -> RGB, 4 -> RGBA."""
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3, 4):
        raise ValueError(
            f"an image file holds uint8 values in 1, 3 or 4 channels, got {image.dtype} of shape {list(image.shape)}"
        )
    array = image.permute(1, 2, 0).cpu().contiguous().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def image_format(path: str | os.PathLike[str]) -> str:
    """Pillow's name of the format that the suffix of `path` stands for; a ValueError where there is none."""
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    formats = Image.registered_extensions()
    if suffix not in formats:
        raise ValueError(f"'{path}' does not end in a known image suffix: use .png")
    return formats[suffix]


def save_image(image: Tensor, path: str | os.PathLike[str]) -> None:
    """Write uint8 `[C, H, W]` to `path` in the format of its suffix, whole or not at all; makes the folder."""
    buffer = io.BytesIO()  # encode first: a file is only touched once its content is complete
    to_pil(image).save(buffer, format=image_format(path))
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with atomic_write(path, "wb") as f:
        f.write(buffer.getbuffer())


class ImageWriter:
    """Writes images in background threads while the next batch is sampled.

        with ImageWriter() as writer:
            writer.put(image, path)          # uint8 [C, H, W] on the CPU

    The queue is bounded: `put` waits when the disk cannot keep up. The first error of a thread is raised by the next
    `put`, or on leaving the block; images still waiting are then dropped. Leaving the block normally waits for all.
    """

    def __init__(self, threads: int = 8, pending: int = 256, save: Callable[[Tensor, Any], None] = save_image) -> None:
        self._save = save
        self._queue: queue.Queue[tuple[Tensor, Any] | None] = queue.Queue(pending)
        self._error: BaseException | None = None
        self._dropping = False
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            if not self._dropping:
                try:
                    self._save(*job)
                except BaseException as error:  # whatever it is, the main thread raises it
                    self._error, self._dropping = error, True

    def put(self, image: Tensor, path: str | os.PathLike[str]) -> None:
        if self._error is not None:
            raise self._error
        self._queue.put((image, path))

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._dropping = True
        for _thread in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        if kind is None and self._error is not None:
            raise self._error
