"""PNG files and zip archives that we write ourselves, against Pillow's reader and zipfile's bytes."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from training.data import stored_zip
from training.data.png import encode_png
from training.data.stored_zip import StoredZip


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (5, 7, 3), (32, 32, 3), (300, 200), (256, 256, 3)])
def test_png_is_read_as_written(shape):
    pixels = np.random.RandomState(0).randint(0, 256, shape, dtype=np.uint8)
    data = encode_png(pixels)
    image = Image.open(io.BytesIO(data))
    image.verify()  # every checksum
    image = Image.open(io.BytesIO(data))
    assert (image.mode, image.size, image.info) == ("L" if len(shape) == 2 else "RGB", (shape[1], shape[0]), {})
    np.testing.assert_array_equal(np.array(image), pixels)
    reference = io.BytesIO()
    Image.fromarray(pixels).save(reference, "PNG", compress_level=0)
    assert len(data) <= len(reference.getvalue()) + 64


def test_png_of_pixels_that_are_not_contiguous():
    pixels = np.random.RandomState(0).randint(0, 256, (3, 8, 16), dtype=np.uint8)
    for view in (pixels.transpose(1, 2, 0), pixels[0].T, pixels.transpose(1, 2, 0)[::-1, ::2]):
        np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(encode_png(view)))), view)


def both(files):
    ours, theirs = io.BytesIO(), io.BytesIO()
    archive = StoredZip(ours)
    with zipfile.ZipFile(theirs, "w", zipfile.ZIP_STORED) as reference:
        for name, data in files.items():
            archive.add(name, data)
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, 0o644 << 16
            reference.writestr(info, data)
    archive.close()
    return ours.getvalue(), theirs.getvalue()


@pytest.mark.parametrize("limit", [None, "count", "offset"])
def test_zip_is_what_zipfile_writes(limit, monkeypatch):
    """Also beyond 65,535 files and 4 GiB, tried with smaller limits."""
    if limit == "count":
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 40)
        monkeypatch.setattr(stored_zip, "_MOST_FILES", 40)
    if limit == "offset":
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 5000)
        monkeypatch.setattr(stored_zip, "_MOST_BYTES", 5000)
    random = np.random.RandomState(0)
    files = {f"{i // 10:05d}/img{i:08d}.png": random.bytes(random.randint(300)) for i in range(100)}
    ours, theirs = both(files)
    assert ours == theirs
    monkeypatch.undo()
    with zipfile.ZipFile(io.BytesIO(ours)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == files


def test_empty_zip():
    ours, theirs = both({})
    assert ours == theirs
