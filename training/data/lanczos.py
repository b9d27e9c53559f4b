"""Lanczos shrinking along rows as Pillow does it, to the last bit, by matrix products: half the time for photographs.

Pillow's weights are integers of 22 fractional bits, and every output is the rounded sum of weights times pixels. A
product in float32 decides the rounding wherever its sum lies clear of a half; the others, some in a thousand, are
summed again in float64, which holds such sums exactly. Whether weights and rounding are those of the Pillow at hand is
tried on random pixels, once for each pair of sizes; where not, Pillow does it all.
"""

from __future__ import annotations

import functools
import math
import operator
from typing import NamedTuple

import numpy as np
from PIL import Image

LEAST_SHRINK, LEAST_WIDTH = 3, 192  # below, Pillow is as fast
GROUP = 8  # outputs computed by one product from the pixels that any of them reads
DOUBT = 2e-3  # a float32 sum of weights times 0..255 errs by far less: 255 * 2**-24 * the number of weights
_BITS = 1 << 22
_TURN = Image.Transpose.TRANSPOSE


class _Weights(NamedTuple):
    """Per output: first pixel and weights `[m, taps]` float64; per group of outputs: rows, pixels, weights float32."""

    first: np.ndarray
    exact: np.ndarray
    groups: list[tuple[slice, slice, np.ndarray]]


def resize(image: Image.Image, size: tuple[int, int], resample: int) -> Image.Image:
    """`image.resize(size, resample)`, of an RGB image faster where it shrinks much."""
    width = size[0]
    shrinks = image.width >= max(LEAST_WIDTH, LEAST_SHRINK * width)
    if not (shrinks and image.mode == "RGB" and resample == Image.Resampling.LANCZOS and _trusted(image.width, width)):
        return image.resize(size, resample)
    return _rows(image, width).resize(size, resample)  # the width fits by now: only columns are left to Pillow


def _rows(image: Image.Image, width: int) -> Image.Image:
    """The image shrunk to `width`, of the same height."""
    weights = _weights(image.width, width)
    pixels = np.asarray(image.transpose(_TURN)).reshape(image.width, -1)  # a pixel of a row is a row of this matrix
    single = pixels.astype(np.float32)
    sums = np.empty((width, pixels.shape[1]), np.float32)
    for outputs, inputs, matrix in weights.groups:
        np.matmul(matrix, single[inputs], out=sums[outputs])
    sums += 0.5
    rounded = np.floor(sums)
    sums -= rounded
    doubtful = np.flatnonzero((sums < DOUBT) | (sums > 1 - DOUBT))
    row, column = np.divmod(doubtful, pixels.shape[1])
    read = np.minimum(weights.first[row, None] + np.arange(weights.exact.shape[1]), image.width - 1)
    rounded.reshape(-1)[doubtful] = np.floor((pixels[read, column[:, None]] * weights.exact[row]).sum(1) + 0.5)
    shrunk = np.clip(rounded, 0, 255, out=rounded).astype(np.uint8)
    return Image.fromarray(shrunk.reshape(width, image.height, 3)).transpose(_TURN)


def _lanczos(x: float) -> float:
    if x == 0:
        return 1.0
    return (
        math.sin(math.pi * x) / (math.pi * x) * math.sin(math.pi * (x / 3)) / (math.pi * (x / 3)) if abs(x) < 3 else 0.0
    )


@functools.lru_cache(256)
def _weights(n: int, m: int) -> _Weights:
    """Weights from `n` pixels to `m`, as Pillow rounds them."""
    scale = n / m
    first, rows = [], []
    for output in range(m):
        centre = (output + 0.5) * scale
        low, high = max(int(centre - 3 * scale + 0.5), 0), min(int(centre + 3 * scale + 0.5), n)
        raw = [_lanczos((x + low - centre + 0.5) * (1 / scale)) for x in range(high - low)]
        total = functools.reduce(operator.add, raw, 0.0)  # in order and rounded each time, unlike `sum`
        first.append(low)
        rows.append([math.trunc(w / total * _BITS + math.copysign(0.5, w)) / _BITS for w in raw])
    exact = np.zeros((m, max(map(len, rows))))
    for output, row in enumerate(rows):
        exact[output, : len(row)] = row
    groups = []
    for start in range(0, m, GROUP):
        outputs = range(start, min(start + GROUP, m))
        low, high = first[start], max(first[o] + len(rows[o]) for o in outputs)
        matrix = np.zeros((len(outputs), high - low), np.float32)
        for o in outputs:
            matrix[o - start, first[o] - low : first[o] - low + len(rows[o])] = rows[o]
        groups.append((slice(outputs.start, outputs.stop), slice(low, high), matrix))
    return _Weights(np.array(first), exact, groups)


@functools.lru_cache(256)
def _trusted(n: int, m: int) -> bool:
    """Whether this version of Pillow gives the same pixels."""
    pixels = np.random.RandomState(0).randint(0, 256, (16, n, 3)).astype(np.uint8)
    pixels[:4] = pixels[:4] // 128 * 255  # beyond both ends of the range
    image = Image.fromarray(pixels)
    return np.array_equal(_rows(image, m), image.resize((m, 16), Image.Resampling.LANCZOS))
