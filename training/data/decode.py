"""Decoding of image files that strangers wrote: pixels as stored, with what the file says beside them.

Pictures of absurd size and formats whose decoders start other programs are refused. Two remarks of a file change what
its pixels mean and are kept in `image.info`: `alpha`, the opacity that a PNG's colour key gives each pixel, and
`orientation`, how EXIF asks to turn it. `several` says that the file holds further frames.
"""

from __future__ import annotations

import io
import os
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

MAX_PIXELS = 1 << 26  # of one image
_RUNS_PROGRAMS = {"EPS", "WMF"}  # PIL hands these to Ghostscript or to the Windows renderer

_ORIENTATION = 274  # the EXIF tag
TURNS = {  # its values but 1, which is upright -> what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_INVERSE = {6: 8, 8: 6}  # the others are their own


@cache
def _pil() -> tuple[frozenset[str], tuple[str, ...]]:
    """Extensions PIL knows, and the formats that may be decoded. Loading all plugins takes a moment, hence lazy."""
    Image.init()
    return frozenset(Image.registered_extensions()), tuple(f for f in Image.ID if f not in _RUNS_PROGRAMS)


def is_image_name(name: str) -> bool:
    """Whether PIL knows the extension, in any case."""
    return os.path.splitext(name)[1].lower() in _pil()[0]


def decode_image(data: bytes) -> Image.Image:
    """The decoded first frame of an image file, in whatever mode it is stored.

    Raises:
        ValueError: damaged or truncated data, an unknown format, more than `MAX_PIXELS` pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_pil()[1]) as image:
            size = image.size
            if size[0] * size[1] <= MAX_PIXELS:
                several, tags = _several(image, data), getattr(image, "tag_v2", None)
                tiff_turn = None if tags is None else tags.get(_ORIENTATION)
                image.load()
                if tiff_turn in TURNS and _ORIENTATION not in image.tag_v2:  # Pillow turns TIFF files by itself
                    image = image.transpose(TURNS[_INVERSE.get(tiff_turn, tiff_turn)])
                turn = tiff_turn if tags is not None else _orientation(image)
                if turn in TURNS:
                    image.info["orientation"] = turn
                image.info["several"] = several
                if image.format == "PNG" and image.mode != "P" and "transparency" in image.info:
                    image.info["alpha"] = _key_alpha(image, data)
                return image
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly every type there is on damaged data
        reason = "its format is unknown or damaged" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise ValueError(f"not a readable image ({' '.join(reason.split()) or type(error).__name__})") from error
    raise ValueError(f"the image has {size[0]}x{size[1]} pixels, more than the {MAX_PIXELS} allowed")


def _several(image: Image.Image, data: bytes) -> bool:
    """Whether a file has more frames than the first. Some formats look for them, which is left to another reader."""
    try:
        if image.format in ("PNG", "JPEG"):
            return getattr(image, "is_animated", False)
        with Image.open(io.BytesIO(data), formats=[image.format]) as other:
            return getattr(other, "is_animated", False)
    except Exception:  # what cannot be read behind the first frame is no concern of it
        return False


def _orientation(image: Image.Image) -> Any:
    """What EXIF or XMP say; None where they say nothing or cannot be read, which does not harm the pixels."""
    if not image.info.keys() & {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}:
        return None
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:
        return None


def _key_alpha(image: Image.Image, png: bytes) -> Image.Image:
    """Opacity, mode L: 0 where a pixel has the colour of the file's tRNS chunk, 255 elsewhere (PNG 3rd ed., 11.3.1.1).

    The chunk counts in samples as stored, Pillow gives gray of 2 and 4 bits scaled to 8 and of RGB with 16 bits the
    upper half, so the file's own depth decides.
    """
    depth, key = png[24], np.array(image.info["transparency"])  # IHDR is the first chunk
    if image.mode == "RGB":
        pixels = np.array(image).astype(np.int32)
        if depth == 16:
            pixels = pixels << 8 | np.array(_lower_half(png))
        clear = (pixels == key).all(-1)
    elif image.mode == "1":
        clear = np.array(image) == bool(key)
    elif depth < 8:
        clear = np.array(image) == key * (255 // ((1 << depth) - 1))
    else:
        clear = np.array(image) == key
    return Image.fromarray(np.where(clear, 0, 255).astype(np.uint8))


def _lower_half(png: bytes) -> Image.Image:
    """The less significant bytes of an RGB PNG with 16 bits per sample."""
    image = Image.open(io.BytesIO(png), formats=["PNG"])
    image.tile = [(*tile[:3], "RGB;16L") for tile in image.tile]  # read as little-endian: the other byte comes first
    image.load()
    return image
