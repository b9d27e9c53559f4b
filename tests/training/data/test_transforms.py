"""Crops against golden data and hand-made pixels; colour conversion of every mode."""

import numpy as np
import pytest
from golden_cases import cases
from PIL import Image

from training.data.transforms import make_transform, to_gray_or_rgb

RANDOM = np.random.RandomState(1)


def image(height, width, channels=3):
    shape = [height, width, channels] if channels > 1 else [height, width]
    return Image.fromarray(RANDOM.randint(0, 256, shape, dtype=np.uint8))


def stored(case, entry):
    array = case[entry["array"]]
    return array[tuple(entry["index"])] if entry.get("index") is not None else array


@pytest.mark.parametrize("case", cases("combostoc", "center_crop"))
def test_golden_adm_crop(case):
    size = case.spec["params"]["size"]
    own = make_transform("center-crop-adm", (size, size))(Image.fromarray(stored(case, case.spec["inputs"]["image"])))
    expect = case.spec["expect"]["image"]
    tolerance = dict(expect["tolerance"])
    differing = tolerance.pop("max_mismatch_fraction", 1)
    reference = stored(case, expect).astype(float)
    np.testing.assert_allclose(np.array(own).astype(float), reference, **tolerance)
    assert (np.array(own) != reference).mean() <= differing


@pytest.mark.parametrize("name", ["center-crop", "center-crop-adm", "resize-center-crop"])
@pytest.mark.parametrize("size", [(8, 8), (9, 8), (8, 21), (40, 16)])
def test_crops_keep_pixels_where_the_image_fits(name, size):
    """With the shorter side at the target nothing is resized: the result is the centre of the image."""
    height, width = size
    side = min(size)
    source = image(height, width)
    own = np.array(make_transform(name, (side, side))(source))
    top, left = (height - side) // 2, (width - side) // 2
    if name == "resize-center-crop":
        top, left = round((height - side) / 2), round((width - side) / 2)
    np.testing.assert_array_equal(own, np.array(source)[top : top + side, left : left + side])


def test_adm_halves_with_a_box_filter():
    source = image(32, 32, 1)
    own = np.array(make_transform("center-crop-adm", (16, 16))(source))
    mean = np.array(source, float).reshape(16, 2, 16, 2).mean((1, 3))
    assert np.abs(own - mean[:, :, None]).max() <= 1


def test_center_crop_wide():
    wide = make_transform("center-crop-wide", (16, 12))
    source = image(12, 16)
    own = np.array(wide(source))
    assert own.shape == (16, 16, 3)
    np.testing.assert_array_equal(own[2:14], np.array(source))
    assert not own[:2].any()
    assert not own[14:].any()
    assert wide(image(40, 15)) is None  # narrower than the target
    assert wide(image(22, 32)) is None  # 16 * 22 / 32 = 11 rows
    assert wide(image(24, 32)) is not None


def test_rows_of_the_wide_crop_round_half_to_even():
    source = image(10, 16)
    own = np.array(make_transform("center-crop-wide", (8, 5))(source))  # 8 * 10 / 16 = 5 rows
    cut = source.crop((0, 2, 16, 7)).resize((8, 5), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(own[1:6], np.array(cut))
    assert make_transform("center-crop-wide", (8, 5))(image(9, 16)) is None  # 4.5 -> 4 rows
    assert make_transform("center-crop-wide", (8, 6))(image(11, 16)) is not None  # 5.5 -> 6 rows


@pytest.mark.parametrize("name", ["center-crop", "center-crop-wide", "center-crop-adm", "resize-center-crop"])
def test_crops_make_gray_rgb(name):
    own = make_transform(name, (8, 8))(image(20, 20, 1))
    assert own.mode == "RGB"
    array = np.array(own)
    assert (array == array[:, :, :1]).all()


def test_plain_resize_keeps_the_mode_and_ignores_the_aspect_ratio():
    for channels, mode in ((1, "L"), (3, "RGB")):
        source = image(10, 20, channels)
        own = make_transform(None, (8, 8))(source)
        assert (own.mode, own.size) == (mode, (8, 8))
        np.testing.assert_array_equal(own, source.resize((8, 8), Image.Resampling.LANCZOS))
        assert make_transform(None, (20, 10))(source) is source
        assert make_transform(None, None)(source) is source


def test_filters_differ():
    source = image(20, 20)
    results = [
        np.array(make_transform(None, (8, 8), name)(source)) for name in ("lanczos", "bicubic", "bilinear", "box")
    ]
    for i, a in enumerate(results):
        assert all((a != b).any() for b in results[:i])


def test_modes():
    gray, rgb = image(4, 4, 1), image(4, 4)
    assert to_gray_or_rgb(gray) is gray
    assert to_gray_or_rgb(rgb) is rgb
    for mode in ("CMYK", "YCbCr", "HSV"):
        assert to_gray_or_rgb(rgb.convert(mode)).mode == "RGB"
    np.testing.assert_array_equal(to_gray_or_rgb(rgb.convert("CMYK")), rgb)
    deep = np.array([[0, 128, 129, 65535], [257, 385, 386, 65407]], np.uint16)
    own = to_gray_or_rgb(Image.fromarray(deep))
    assert np.array(own).tolist() == [[0, 0, 1, 255], [1, 1, 2, 255]]
    with pytest.raises(ValueError, match="type F"):
        to_gray_or_rgb(Image.fromarray(np.zeros((4, 4), np.float32)))
    with pytest.raises(ValueError, match="type I"):
        to_gray_or_rgb(Image.fromarray(np.full((4, 4), 70000, np.int32)))


def test_transparency_needs_a_background():
    gray = np.array([[10, 200]], np.uint8)
    image = Image.merge("LA", [Image.fromarray(gray), Image.fromarray(np.array([[0, 255]], np.uint8))])
    with pytest.raises(ValueError, match="--background"):
        to_gray_or_rgb(image)
    assert np.array(to_gray_or_rgb(image, "white")).tolist() == [[255, 200]]
    assert np.array(to_gray_or_rgb(image, "black")).tolist() == [[0, 200]]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    palette.info["transparency"] = 0
    with pytest.raises(ValueError, match="transparency"):
        to_gray_or_rgb(palette)
    assert to_gray_or_rgb(palette, "white").getpixel((0, 0)) == (255, 255, 255)
