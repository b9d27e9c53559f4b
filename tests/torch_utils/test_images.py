"""Quantisation, grids, PNG files and the background writer."""

import errno
import os
import time

import numpy as np
import pytest
import torch
from golden_cases import cases
from PIL import Image

from torch_utils.images import ImageWriter, enlarged, from_uint8, make_grid, save_image, to_pil, to_uint8


@pytest.mark.parametrize("case", cases("edm", "quantise_uint8"))
def test_quantise(case):
    case.expect("out", to_uint8(case.tensor("in")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_value_survives_a_round_trip(dtype):
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(values).to(dtype)), values)
    assert from_uint8(values)[[0, 255]].tolist() == [-1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_quantised_in_float32(dtype):
    x = torch.linspace(-1.2, 1.2, 999).to(dtype)
    assert torch.equal(to_uint8(x), to_uint8(x.float()))


def test_wrong_types():
    with pytest.raises(ValueError, match="float images"):
        to_uint8(torch.zeros(3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="uint8"):
        from_uint8(torch.zeros(3))
    with pytest.raises(ValueError, match="1, 3 or 4 channels"):
        to_pil(torch.zeros(2, 4, 4, dtype=torch.uint8))


def test_grid_is_row_major_and_filled_with_black():
    images = torch.arange(1, 6, dtype=torch.uint8).reshape(5, 1, 1, 1).expand(5, 3, 2, 4)
    grid = make_grid(images, columns=3)
    assert grid.shape == (3, 4, 12)
    assert grid[1, ::2, ::4].tolist() == [[1, 2, 3], [4, 5, 0]]
    assert make_grid(images).shape == (3, 6, 8)
    assert make_grid(images[:1]).shape == (3, 2, 4)
    with pytest.raises(ValueError, match="column"):
        make_grid(images, columns=0)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_saved_images_are_exact(tmp_path, channels, mode):
    image = torch.randint(0, 256, [channels, 5, 7], dtype=torch.uint8)
    save_image(image, tmp_path / "new" / "folder" / "x.png")
    with Image.open(tmp_path / "new" / "folder" / "x.png") as opened:
        assert opened.mode == mode
        pixels = np.asarray(opened).reshape(5, 7, channels)
    np.testing.assert_array_equal(pixels, image.permute(1, 2, 0).numpy())


def test_unknown_suffix(tmp_path):
    with pytest.raises(ValueError, match=r"use \.png"):
        save_image(torch.zeros(3, 2, 2, dtype=torch.uint8), tmp_path / "x.picture")
    assert list(tmp_path.iterdir()) == []


def full_disk(*_args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        save_image(torch.zeros(3, 2, 2, dtype=torch.uint8), tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_writer_writes_everything(tmp_path):
    images = torch.randint(0, 256, [40, 3, 4, 4], dtype=torch.uint8)
    with ImageWriter(threads=3, pending=2) as writer:
        for i, image in enumerate(images):
            writer.put(image, tmp_path / f"{i}.png")
    for i, image in enumerate(images):
        with Image.open(tmp_path / f"{i}.png") as opened:
            assert np.array_equal(np.asarray(opened), image.permute(1, 2, 0).numpy())


def test_writer_error_reaches_the_main_thread_on_leaving():
    with pytest.raises(OSError, match="No space"), ImageWriter(threads=2, save=full_disk) as writer:
        writer.put(torch.zeros(1), "x")


def write_forever(writer, written):
    with writer:
        for i in range(1000):
            writer.put(torch.zeros(1), "x")
            written.append(i)
        raise KeyboardInterrupt


def test_writer_error_reaches_the_main_thread_on_put():
    written = []
    with pytest.raises(OSError, match="No space"):
        write_forever(ImageWriter(threads=1, pending=1, save=full_disk), written)
    assert len(written) <= 3  # one is being saved, one waits; there is room for the third once the first has failed


def test_interrupted_writer_drops_what_waits_and_keeps_the_first_error():
    saved = []

    def slow(image, path):
        time.sleep(0.02)
        saved.append(path)

    with pytest.raises(KeyboardInterrupt):
        write_forever(ImageWriter(threads=1, pending=2000, save=slow), [])
    assert len(saved) < 1000


@pytest.mark.parametrize(("width", "k"), [(8, 64), (300, 2), (511, 2), (512, 1), (2000, 1)])
def test_small_pictures_are_enlarged_by_a_whole_factor(width, k):
    picture = torch.arange(2 * width, dtype=torch.int32).reshape(1, 2, width)
    large = enlarged(picture)
    assert large.shape == (1, 2 * k, width * k)
    for i in range(k):
        assert torch.equal(large[:, i::k, i::k], picture)
