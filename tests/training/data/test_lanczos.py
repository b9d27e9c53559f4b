"""Shrinking by matrix products is Pillow's, to the last bit."""

import numpy as np
import pytest
from PIL import Image

from training.data import lanczos

LANCZOS = Image.Resampling.LANCZOS


@pytest.mark.parametrize(
    ("width", "height", "to"),
    [(512, 512, (64, 64)), (375, 300, (64, 32)), (1000, 40, (256, 40)), (333, 500, (7, 100)), (2048, 16, (1, 1))],
)
def test_same_pixels(width, height, to, monkeypatch):
    random = np.random.RandomState(width)
    for pixels in (random.randint(0, 256, (height, width, 3)), random.randint(0, 2, (height, width, 3)) * 255):
        image = Image.fromarray(pixels.astype(np.uint8))
        expected = np.array(image.resize(to, LANCZOS))
        assert lanczos._trusted(width, to[0])
        np.testing.assert_array_equal(lanczos.resize(image, to, LANCZOS), expected)


def test_other_images_are_left_to_pillow(monkeypatch):
    monkeypatch.setattr(lanczos, "_rows", None)
    random = np.random.RandomState(0).randint(0, 256, (64, 300, 3)).astype(np.uint8)
    for image, size, resample in (
        (Image.fromarray(random), (200, 64), LANCZOS), (Image.fromarray(random[..., 0]), (20, 8), LANCZOS),
        (Image.fromarray(random), (20, 8), Image.Resampling.BOX), (Image.fromarray(random[:, :99]), (9, 8), LANCZOS),
    ):  # fmt: skip
        np.testing.assert_array_equal(lanczos.resize(image, size, resample), image.resize(size, resample))


def test_a_pillow_that_rounds_otherwise_is_left_alone(monkeypatch):
    lanczos._trusted.cache_clear()
    monkeypatch.setattr(lanczos, "_BITS", 1 << 8)
    lanczos._weights.cache_clear()
    assert not lanczos._trusted(400, 50)
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (50, 400, 3)).astype(np.uint8))
    np.testing.assert_array_equal(lanczos.resize(image, (50, 50), LANCZOS), image.resize((50, 50), LANCZOS))
    monkeypatch.undo()
    lanczos._trusted.cache_clear()
    lanczos._weights.cache_clear()
