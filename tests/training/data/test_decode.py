"""Decoding: colour keys of PNG files at every depth, opaque alpha, EXIF orientation in every format that has it."""

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
from dataset_files import contents, convert, pictures, pixels, png, refuse, write, write_dataset, write_zip
from PIL import Image

from training.data.decode import TURNS, decode_image
from training.data.image_dataset import ImageDataset
from training.data.toys import ToyDataset
from training.data.transforms import to_gray_or_rgb

GRAY, RGB, PALETTE = 0, 2, 3


def raw_png(samples, depth, colour, key=None, palette=None):
    """A PNG file of samples `[H, W]` or `[H, W, C]` of `depth` bits, with `key` as its tRNS chunk."""
    samples = np.atleast_3d(samples).astype(np.uint16)
    height, width, _ = samples.shape
    bits = (samples[..., None] >> np.arange(depth)[::-1]) & 1
    rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    body = np.concatenate([np.zeros((height, 1), np.uint8), rows], 1).tobytes()

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))]
    parts += [] if palette is None else [chunk(b"PLTE", np.uint8(palette).tobytes())]
    parts += [] if key is None else [chunk(b"tRNS", key)]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", zlib.compress(body)), chunk(b"IEND", b"")])


def keyed(depth, colour):
    """A file whose last pixel alone has the key's colour, its near misses beside it; and its opaque 8 bit pixels."""
    top = (1 << depth) - 1
    if colour == PALETTE:
        return raw_png([[1, 0]], depth, colour, bytes([0]), [[9, 9, 9], [50, 60, 70]]), [[50, 60, 70]]
    if colour == GRAY:
        data = np.array([[top, 0]]) if depth == 1 else np.array([[top, 1, 2]])
        return raw_png(data, depth, colour, struct.pack(">H", data[0, -1])), None
    data = np.array([[[top, 0, 7], [top, 1, 7], [top, 1, 8]]])
    if depth == 16:
        data = np.array([[[0x1234, 0x0010, 7], [0x1234, 0x0011, 8], [0x1234, 0x0010, 8]]])  # alike but for low bytes
    return raw_png(data, depth, colour, struct.pack(">HHH", *data[0, -1])), None


KINDS = [(1, GRAY), (2, GRAY), (4, GRAY), (8, GRAY), (16, GRAY), (8, RGB), (16, RGB), (1, PALETTE), (8, PALETTE)]


@pytest.mark.parametrize(("depth", "colour"), KINDS)
def test_colour_keys_are_transparency(depth, colour, tmp_path):
    file, _ = keyed(depth, colour)
    with pytest.raises(ValueError, match="--background"):
        to_gray_or_rgb(decode_image(file))
    white, black = (np.array(to_gray_or_rgb(decode_image(file), c)).astype(int) for c in ("white", "black"))
    assert (white[:, -1] == 255).all()
    assert (black[:, -1] == 0).all()
    np.testing.assert_array_equal(white[:, :-1], black[:, :-1])  # the near misses are opaque
    root = write(tmp_path / "in", {"a.png": file})
    refuse(root, tmp_path / "x/o.zip", "--resolution=8x8", match="in/a.png: the image has transparency")
    convert(root, tmp_path / "o.zip", "--resolution=8x8", "--background=white")
    with pytest.raises(ValueError, match=r"a\.png: the image has transparency"):
        ImageDataset(root)


@pytest.mark.parametrize("colour", [GRAY, RGB])
@pytest.mark.parametrize("depth", [8, 16])
def test_a_colour_key_that_no_pixel_has_changes_nothing(depth, colour):
    data = np.random.RandomState(0).randint(1, 1 << depth, (4, 4, 3 if colour == RGB else 1))
    plain = to_gray_or_rgb(decode_image(raw_png(data, depth, colour)))
    key = bytes(6 if colour == RGB else 2)
    np.testing.assert_array_equal(to_gray_or_rgb(decode_image(raw_png(data, depth, colour, key))), plain)


def test_interlaced_16_bit_colour_keys(tmp_path):
    """Adam7 is read by Pillow alone; the lower bytes come from the same reader, so a plain file tells."""
    data = np.random.RandomState(1).randint(0, 1 << 16, (5, 7, 3))
    key = data[2, 3]
    image = to_gray_or_rgb(decode_image(raw_png(data, 16, RGB, struct.pack(">HHH", *key))), "black")
    own = np.array(image)
    assert not own[2, 3].any()
    own[2, 3] = data[2, 3] >> 8
    np.testing.assert_array_equal(own, data >> 8)


def test_key_of_a_gif(tmp_path):
    image = Image.fromarray(np.array([[0, 200]], np.uint8))
    file = io.BytesIO()
    image.save(file, "GIF", transparency=0)
    with pytest.raises(ValueError, match="transparency"):
        to_gray_or_rgb(decode_image(file.getvalue()))
    assert np.array(to_gray_or_rgb(decode_image(file.getvalue()), "white").convert("L"))[0, 0] == 255


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_opaque_alpha_is_dropped_everywhere(mode, tmp_path):
    solid = pixels(channels=1 if mode == "LA" else 3)
    image = Image.fromarray(solid)
    if mode == "P":
        solid = np.stack([solid[..., 0] // 64 * 64] * 3, -1)
        image = Image.fromarray(solid).quantize(8)
        solid = np.array(image.convert("RGB"))
        image.info["transparency"] = b"\xff" * 8
    else:
        image.putalpha(255)
    file = io.BytesIO()
    image.save(file, "PNG")
    root = write(tmp_path / "in", {"a.png": file.getvalue()})
    convert(root, tmp_path / "o.zip")
    np.testing.assert_array_equal(pictures(tmp_path / "o.zip")[0], solid)
    own = ImageDataset(root)[0][0]
    np.testing.assert_array_equal(own[0] if mode == "LA" else own.transpose(1, 2, 0), solid)


def test_half_transparent_pixels_mix_with_the_background():
    rgba = np.array([[[100, 0, 200, 51]]], np.uint8)
    own = np.array(to_gray_or_rgb(Image.fromarray(rgba), "white"))
    np.testing.assert_array_equal(own, [[[224, 204, 244]]])  # 0.2 c + 0.8 * 255


def test_points_of_a_transparent_picture_are_its_black_pixels(tmp_path):
    picture = np.zeros((4, 4, 4), np.uint8)
    picture[1, 2, 3] = 255
    path = tmp_path / "dot.png"
    path.write_bytes(png(picture))
    points = ToyDataset(f"toy:{path}:size=5").images()[:, :, 0, 0]
    np.testing.assert_allclose(points.numpy(), [[2 / 3, 2 / 3]] * 5, rtol=1e-6)


# --- orientation ------------------------------------------------------------------------------------------------------


def oriented(image, orientation, form):
    exif = Image.Exif()
    exif[274] = orientation
    file = io.BytesIO()
    image.save(file, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    return file.getvalue()


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_reported_and_pixels_are_as_stored(form, orientation):
    stored = pixels(4, width=6)
    image = decode_image(oriented(Image.fromarray(stored), orientation, form))
    np.testing.assert_array_equal(np.array(image), stored)
    assert image.info.get("orientation", 1) == orientation


def test_the_turn_makes_images_upright():
    """Orientation 6 of the EXIF standard: row 0 of the file is the right-hand side of the scene."""
    stored = Image.fromarray(np.array([[1, 2, 3], [4, 5, 6]], np.uint8))
    np.testing.assert_array_equal(stored.transpose(TURNS[6]), [[4, 1], [5, 2], [6, 3]])
    np.testing.assert_array_equal(stored.transpose(TURNS[3]), [[6, 5, 4], [3, 2, 1]])


def test_conversion_counts_and_turns(tmp_path):
    images = [pixels() for _ in range(3)]
    files = {f"{i}.webp": oriented(Image.fromarray(x), o, "WEBP") for i, (x, o) in enumerate(zip(images, (6, 1, 3)))}  # noqa: B905
    root = write(tmp_path / "in", files)
    output = convert(root, tmp_path / "o.zip")
    assert "EXIF orientation: 2 images were taken as stored (--exif=apply turns them upright)" in output
    np.testing.assert_array_equal(pictures(tmp_path / "o.zip"), images)
    output = convert(root, tmp_path / "o.zip", "--exif=apply")
    assert "EXIF orientation: 2 images were turned upright" in output
    expected = [np.rot90(images[0], -1), images[1], np.rot90(images[2], 2)]
    np.testing.assert_array_equal(pictures(tmp_path / "o.zip"), expected)
    assert "EXIF" not in convert(write_dataset(tmp_path / "b", {"0.png": images[0]}), tmp_path / "o.zip")


@pytest.mark.parametrize("form", ["GIF", "WEBP", "TIFF", "PNG"])
def test_conversion_counts_images_of_several_frames(tmp_path, form):
    file, frames = io.BytesIO(), [Image.fromarray(pixels()) for _ in range(3)]
    frames[0].save(file, form, save_all=True, append_images=frames[1:])
    root = write_dataset(tmp_path / "in", {f"0.{form}": file.getvalue(), "1.png": pixels()})
    assert "Several frames: the first of 1 image was taken" in convert(root, tmp_path / "o.zip")
    with Image.open(file) as image:
        np.testing.assert_array_equal(pictures(tmp_path / "o.zip")[0], np.asarray(image.convert("RGB")))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_conversion_counts_images_that_others_of_their_name_hide(tmp_path):
    images, file = [pixels() for _ in range(3)], tmp_path / "a.zip"
    write_zip(file, {"0.png": images[0], "1.png": images[1]})
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("0.png", png(images[2]))
    for labels in ("auto", "none"):
        output = convert(file, tmp_path / "o.zip", f"--labels={labels}")
        assert "Equal names: 1 image was left out for a later one of the same name" in output
        np.testing.assert_array_equal(pictures(tmp_path / "o.zip"), [images[2], images[1]])


def test_damaged_exif_does_no_harm(tmp_path):
    file = io.BytesIO()
    Image.fromarray(pixels()).save(file, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    convert(write(tmp_path / "in", {"a.jpg": file.getvalue()}), tmp_path / "o.zip")
    assert len(contents(tmp_path / "o.zip")) == 2
