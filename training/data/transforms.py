"""From any decoded image to gray or RGB pixels, and the crops of the published data sets.

- `center-crop`, `center-crop-wide`: EDM, Karras et al. 2022, arXiv 2206.00364 (data preparation of the StyleGAN line).
- `center-crop-adm`: Dhariwal and Nichol 2021, arXiv 2105.05233; used by DiT, SiT and ComboStoc on ImageNet.
- `resize-center-crop`: shorter side to the target, then the crop; the CelebA and LSUN preparation of NVAE and IDFF.

A transform is a function `(image, width, height, filter) -> image`, or None for an image that is to be left out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from training.data.lanczos import resize

Transform = Callable[[Image.Image], "Image.Image | None"]

FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
}


def to_gray_or_rgb(image: Image.Image, background: str | None = None) -> Image.Image:
    """The image in mode L or RGB.

    Palettes, CMYK, YCbCr, Lab and HSV become RGB; 1 bit and 16 bit gray become 8 bit gray (16 bit rounded to nearest).
    Alpha that is opaque everywhere is dropped.

    Args:
        background: colour name put behind transparent images; None refuses them.

    Raises:
        ValueError: transparency without `background`, or pixels that are not 1, 8 or 16 bit.
    """
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    solid, alpha = _split(image)
    if alpha is None or alpha.getextrema()[0] == 255:
        return solid
    if background is None:
        raise ValueError("the image has transparency: dataset_tool.py --background=white or black puts a colour behind")
    return Image.composite(solid, Image.new(solid.mode, solid.size, background), alpha)


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colours in mode L or RGB, and opacity in mode L, or None for an image without."""
    if image.mode in ("LA", "La"):
        image = image.convert("LA")
        return image.getchannel("L"), image.getchannel("A")
    if image.mode in ("RGBA", "RGBa", "PA") or (image.mode == "P" and image.has_transparency_data):
        image = image.convert("RGBA")
        return image.convert("RGB"), image.getchannel("A")
    alpha = image.info.get("alpha")
    if alpha is None and "transparency" in image.info:
        clear = (np.atleast_3d(image) == image.info["transparency"]).all(-1)
        alpha = Image.fromarray(np.where(clear, 0, 255).astype(np.uint8))
    return _solid(image), alpha


def _solid(image: Image.Image) -> Image.Image:
    if image.mode in ("L", "RGB"):
        return image
    if image.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
        return image.convert("RGB")
    if image.mode == "1":
        return image.convert("L")
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.int64)
        # PIL widens 16 bit files of some formats to mode I; real 32 bit data has no 8 bit meaning.
        if image.mode != "I" or (image.format in ("PNG", "PPM") and deep.min() >= 0 and deep.max() <= 65535):
            return Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8))
    raise ValueError(
        f"the image has pixels of type {image.mode}; 1, 8 or 16 bit gray, RGB, palette or CMYK are readable"
    )


def _rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def _crop(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    return image if box == (0, 0, *image.size) else image.crop(box)


def center_crop(image: Image.Image, width: int, height: int, resample: int) -> Image.Image:
    """The largest centred square, as RGB, resized to `width` x `height`."""
    w, h = image.size
    side = min(w, h)
    left, top = (w - side) // 2, (h - side) // 2
    return resize(_crop(_rgb(image), (left, top, left + side, top + side)), (width, height), resample)


def center_crop_wide(image: Image.Image, width: int, height: int, resample: int) -> Image.Image | None:
    """The centred `width * h / w` rows, resized, on a black square of side `width`; None for an image too small."""
    w, h = image.size
    rows = round(width * h / w)  # Python rounds half to even, as the definition asks
    if w < width or rows < height:
        return None
    top = (h - rows) // 2
    strip = resize(_crop(_rgb(image), (0, top, w, top + rows)), (width, height), resample)
    canvas = Image.new("RGB", (width, width))
    canvas.paste(strip, (0, (width - height) // 2))
    return canvas


def center_crop_adm(image: Image.Image, width: int, height: int, resample: int) -> Image.Image:
    """Halve with a box filter while twice too large, bicubic to the shorter side, centred square."""
    image = _rgb(image)
    while min(image.size) >= 2 * width:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = width / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - width) // 2
    return image.crop((left, top, left + width, top + width))


def resize_center_crop(image: Image.Image, width: int, height: int, resample: int) -> Image.Image:
    """Shorter side to `width` (longer side rounded down), then the centred square (offset rounded half to even)."""
    w, h = image.size
    scaled = (width, int(width * h / w)) if w <= h else (int(width * w / h), width)
    image = resize(_rgb(image), scaled, resample)
    left, top = round((scaled[0] - width) / 2), round((scaled[1] - width) / 2)
    return image.crop((left, top, left + width, top + width))


def keep(image: Image.Image) -> Image.Image:
    """The image itself."""
    return image


TRANSFORMS: dict[str, Callable[[Image.Image, int, int, int], Image.Image | None]] = {
    "center-crop": center_crop,
    "center-crop-wide": center_crop_wide,
    "center-crop-adm": center_crop_adm,
    "resize-center-crop": resize_center_crop,
}


def make_transform(name: str | None, size: tuple[int, int] | None, resize_filter: str | None = None) -> Transform:
    """The function applied to every image (mode L or RGB).

    Args:
        name: a key of `TRANSFORMS`, or None: resize to `size` without keeping the aspect ratio, or nothing.
        size: width and height of the result.
        resize_filter: a key of `FILTERS`; None is lanczos.

    Raises:
        ValueError: a crop without a size, or a size or filter that the crop cannot have.
    """
    resample = FILTERS[resize_filter or "lanczos"]
    if name is None:
        return keep if size is None else lambda image: image if size == image.size else resize(image, size, resample)
    if size is None:
        raise ValueError(f"--transform={name} needs a target size: add --resolution=WxH, for example 64x64")
    width, height = size
    if name == "center-crop-wide" and height > width:
        raise ValueError(f"--transform={name} makes wide images: --resolution={width}x{height} is higher than wide")
    if name in ("center-crop-adm", "resize-center-crop") and width != height:
        raise ValueError(f"--transform={name} makes squares: --resolution={width}x{height} is not one")
    if name == "center-crop-adm" and resize_filter is not None:
        raise ValueError(f"--transform={name} has fixed filters: leave --resize-filter out")
    function = TRANSFORMS[name]
    return lambda image: function(image, width, height, resample)
