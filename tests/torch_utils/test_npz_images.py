import numpy as np
import pytest
import torch

from torch_utils.npz_images import NpzImages


def random_images(*shape):
    return np.random.RandomState(0).randint(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("name", ["images", "arr_0"])
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_and_first_are_the_same_images(tmp_path, save, name, channels):
    images = random_images(7, 4, 5, channels)
    save(tmp_path / "last.npz", **{name: images, "other": np.zeros(3)})
    save(tmp_path / "first.npz", **{name: images.transpose(0, 3, 1, 2).copy()})
    for file in ("last.npz", "first.npz"):
        opened = NpzImages(tmp_path / file)
        assert len(opened) == 7
        assert opened.image_shape == (channels, 4, 5)
        batches = list(opened.images(range(7), batch=3))
        assert [len(b) for b in batches] == [3, 3, 1]
        assert all(b.dtype == torch.uint8 for b in batches)
        assert torch.equal(torch.cat(batches), torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))


def test_some_indices(tmp_path):
    images = random_images(9, 3, 2, 2)
    np.savez(tmp_path / "images.npz", images)
    picked = torch.cat(list(NpzImages(tmp_path / "images.npz").images([1, 2, 6, 8], batch=3)))
    assert np.array_equal(picked, images[[1, 2, 6, 8]])


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"mu": np.zeros(2)}, "it holds mu, and images are an array images or arr_0"),
        ({"images": np.zeros((2, 4, 4, 3))}, "got float64"),
        ({"images": random_images(2, 4, 4, 4)}, r"got uint8 \[2, 4, 4, 4\]"),
        ({"images": random_images(2, 4, 4)}, r"got uint8 \[2, 4, 4\]"),
        ({"images": np.asfortranarray(random_images(2, 4, 4, 3))}, "Fortran"),
        ({"images": np.array([None])}, "got object"),
    ],
)
def test_bad_arrays(tmp_path, arrays, words):
    np.savez(tmp_path / "images.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        NpzImages(tmp_path / "images.npz")


def test_bad_files(tmp_path):
    (tmp_path / "images.npz").write_text("no zip")
    with pytest.raises(ValueError, match="not an npz of images"):
        NpzImages(tmp_path / "images.npz")
    with pytest.raises(OSError, match="nowhere"):
        NpzImages(tmp_path / "nowhere.npz")
