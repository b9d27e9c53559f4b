"""PNG files without compression, written straight from pixels: many times faster than a general encoder."""

from __future__ import annotations

import struct
import zlib

import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GRAY, _RGB = 0, 2  # colour types


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return b"".join((struct.pack(">I", len(data)), body, struct.pack(">I", zlib.crc32(body))))


_END = _chunk(b"IEND", b"")


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 pixels `[H, W]` or `[H, W, 3]`: filter 0 in every row, deflate at level 0."""
    height, width = pixels.shape[:2]
    rows = np.zeros((height, 1 + pixels[0].size), np.uint8)  # a row begins with the number of its filter
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, _GRAY if pixels.ndim == 2 else _RGB, 0, 0, 0)
    return b"".join((_SIGNATURE, _chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(rows, 0)), _END))
