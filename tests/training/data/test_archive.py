"""Names in folders and zips: litter of systems and tools, colons, backslashes, the folder that holds everything."""

import os
import zipfile

import pytest
from dataset_files import convert, labels, pictures, pixels, refuse, write, write_zip

from training.data.archive import ImageArchive
from training.data.image_dataset import ImageDataset

FORK = b"\x00\x05\x16\x07\x00\x02\x00\x00" + bytes(60)
LITTER = {
    "__MACOSX/cat/._0.png": FORK, "cat/._0.png": FORK, "._cat": FORK, "dog/.DS_Store": b"\0\0\0\1Bud1",
    "cat/Thumbs.db": b"x", "THUMBS.DB": b"x", "dog/desktop.ini": b"x", "dog/@eaDir/0.png/thumb.jpg": b"x",
    ".ipynb_checkpoints/0-checkpoint.png": b"x", "$RECYCLE.BIN/$R1.png": b"x",
}  # fmt: skip


@pytest.mark.parametrize("form", ["zip", "folder"])
def test_litter_is_no_image_and_no_class(form, tmp_path):
    files = {f"{c}/{i}.png": pixels() for c in ("cat", "dog") for i in range(2)}
    both = LITTER | files
    source = write_zip(tmp_path / "in.zip", both) if form == "zip" else write(tmp_path / "in", both)
    output = convert(source, tmp_path / "o.zip", "--labels=folders")
    assert "Skipped" not in output
    assert labels(tmp_path / "o.zip") == [0, 0, 1, 1]
    assert len(pictures(tmp_path / "o.zip")) == 4
    assert len(ImageDataset(source)) == 4
    assert ImageArchive(source).names == sorted(files)


@pytest.mark.parametrize(
    "name", ["2021-06-01T10:30:00.png", "Photos 10:30/a.png", "1:2/3:4.png", "a/C:.png", "ab:c.png"]
)
def test_colons_are_names(name, tmp_path):
    image = pixels()
    convert(write_zip(tmp_path / "in.zip", {name: image}), tmp_path / "o.zip")
    assert (pictures(tmp_path / "o.zip")[0] == image).all()
    assert (ImageDataset(tmp_path / "in.zip")[0][0].transpose(1, 2, 0) == image).all()


@pytest.mark.parametrize("name", ["c:a.png", "C:\\a.png", "\\\\host\\a.png", "\\a.png", "a/..\\b.png", "..", "a/.."])
def test_names_that_leave(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        info = zipfile.ZipInfo("x")
        info.filename = name
        archive.writestr(info, b"x")
    with pytest.raises(ValueError, match="leaves the archive"):
        ImageArchive(tmp_path / "in.zip")


def windows_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo("x")
            info.filename = name.replace("/", "\\")
            archive.writestr(info, data)
    return path


def test_names_of_other_data_are_no_images():
    for name in ("toy:moons", "series:elnino", "shapes:boxes:size=4"):
        with pytest.raises(FileNotFoundError, match=f"{name} is no data set of images"):
            ImageArchive(name)


def test_backslashes_are_folders(tmp_path):
    path = windows_zip(tmp_path / "in.zip", {"cat/": b"", "cat/1.txt": b"one", "cat/sub/2.txt": b"two"})
    archive = ImageArchive(path)
    assert archive.names == ["cat/1.txt", "cat/sub/2.txt"]
    assert archive.read("cat/sub/2.txt") == b"two"
    assert len(archive.fingerprint(archive.names)) == 64


@pytest.mark.skipif(os.name == "nt", reason="a backslash is no name there")
def test_unpacked_backslashes_are_folders_too(tmp_path):
    root = write(tmp_path / "in", {"cat\\1.png": pixels(), "dog\\1.png": pixels()})
    convert(root, tmp_path / "o.zip")
    assert labels(tmp_path / "o.zip") == [0, 1]


def test_two_files_of_one_name_are_refused(tmp_path):
    path = windows_zip(tmp_path / "in.zip", {"a/1.png": b"x"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/1.png", b"y")
    with pytest.raises(ValueError, match="which are one name"):
        ImageArchive(path)


@pytest.mark.parametrize(
    ("names", "root"),
    [
        (["a/b/1.png", "a/b/2.png"], "a/b"), (["a/b/1.png", "a/c.png"], "a"), (["a/1.png", "a-b/1.png"], ""),
        (["1.png"], ""), (["ab/1.png", "ac/1.png"], ""), (["a/1.png", "read.txt"], "a"), (["x.txt"], ""),
    ],
)  # fmt: skip
def test_root(names, root, tmp_path):
    assert ImageArchive(write_zip(tmp_path / "in.zip", dict.fromkeys(names, b"x"))).root == root


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_names_that_the_console_cannot_print(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(b"no image")
    (folder / "b.png").write_bytes(b"no image")
    write(folder, {"c.png": pixels()})
    output = convert(folder, tmp_path / "o.zip", "--skip-broken")
    assert "caf\\udce9.png" in output
    refuse(folder, tmp_path / "x/o.zip", match="b.png")
