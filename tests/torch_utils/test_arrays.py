"""Array files: what is in them, and one sentence for all that may be wrong with them."""

import io
import zipfile

import numpy as np
import pytest

from torch_utils.arrays import holds, opened_arrays, read_array


def test_arrays_of_files(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(3), y=np.ones(2))
    np.save(tmp_path / "a.npy", np.arange(4))
    with opened_arrays(tmp_path / "a.npz", "it") as arrays:
        assert (list(arrays), arrays["x"].tolist()) == (["x", "y"], [0, 1, 2])
    assert read_array(tmp_path / "a.npy", "it").tolist() == [0, 1, 2, 3]
    assert read_array("somewhere", "it", io.BytesIO((tmp_path / "a.npy").read_bytes())).tolist() == [0, 1, 2, 3]
    assert holds(tmp_path / "a.npz", "x", "y")
    assert not holds(tmp_path / "a.npz", "z")
    assert not holds(tmp_path / "a.npy", "x")


def damaged(path):
    """An npz whose compressed bytes are not what was written."""
    np.savez_compressed(path, x=np.random.default_rng(0).random(1000))
    content = bytearray(path.read_bytes())
    content[100:200] = bytes(100)
    path.write_bytes(content)


def member(path, content, **flags):
    """A zip with one member x.npy, whose entry says `flags` of it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", content)
        for name, value in flags.items():
            setattr(archive.infolist()[0], name, value)


def encrypted(path):
    member(path, b"", flag_bits=1)
    content = path.read_bytes()
    path.write_bytes(content[:6] + b"\1" + content[7:])  # the entry beside the member says so too


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"text"), damaged,
        lambda path: path.write_bytes(b"PK\3\4" + bytes(60)),
        lambda path: np.savez(path, y=np.ones(1)), lambda path: np.savez(path, x=np.array([{}], dtype=object)),
        lambda path: path.write_bytes(b"\x93NUMPY\1\0\5\0oh no"),
        lambda path: member(path, b"text"), lambda path: member(path, b"text", compress_type=99), encrypted,
    ],
)  # fmt: skip
def test_one_sentence(tmp_path, write):
    path = tmp_path / "a.npz"
    write(path)
    with pytest.raises(ValueError, match=r"a\.npz is not a file of x"), opened_arrays(path, "a file of x") as arrays:
        arrays["x"]


def test_no_file(tmp_path):
    for path in tmp_path, tmp_path / "none.npz":
        with pytest.raises(OSError, match=path.name), opened_arrays(path, "it"):
            pass
