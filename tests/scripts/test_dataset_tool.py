"""dataset_tool.py: golden conversions, labels, strange and broken images, options, full disks, identical output."""

import errno
import gzip
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from dataset_files import (
    RANDOM,
    cifar_archive,
    contents,
    convert,
    labels,
    pictures,
    pixels,
    png,
    refuse,
    run,
    write,
    write_zip,
)
from golden_cases import cases
from PIL import Image

from training.data import archive as archive_module
from training.data import decode as decode_module
from training.data import writer as writer_module
from training.data.sources import LAYOUTS
from training.data.stored_zip import StoredZip

ROOT = Path(__file__).parents[2]

# --- golden ---------------------------------------------------------------------------------------------------------


def write_array(path, array, mode):
    if mode == "1":
        image = Image.fromarray(array.astype(bool))
    else:
        image = Image.frombytes(mode, array.shape[1::-1], np.ascontiguousarray(array).tobytes())
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **({"lossless": True} if path.suffix == ".webp" else {}))


def build_source(case, folder):
    source = case.spec["source"]
    kind = source["type"]
    if kind == "missing":
        return folder / "nonexistent"
    if kind in ("directory", "zip"):
        root = folder / "input"
        root.mkdir()
        for file in source["files"]:
            write_array(root / file["path"], case[file["array"]], file["mode"])
        for name, text in source["text_files"].items():
            (root / name).write_text(text)
        if source["dataset_json"] is not None:
            (root / "dataset.json").write_text(json.dumps(source["dataset_json"]))
        if kind == "directory":
            return root
        return write_zip(
            folder / "input.zip", {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*.*")}
        )
    if kind == "cifar10_tar_gz":
        return cifar_archive(
            folder / source["file_name"], case[source["first_rows"]], case[source["first_labels"]],
            members=source["members"], per_member=source["rows_per_member"], other_value=source["other_value"],
            other_label=source["other_label"], row_of_255=source["row_of_255"],
        )  # fmt: skip
    assert kind == "mnist_idx_gz", kind
    first, count = case[source["first_images"]], source["count"]
    images = np.full((count, *first.shape[1:]), source["other_value"], dtype=np.uint8)
    numbers = np.full(count, source["other_label"], dtype=np.uint8)
    images[: len(first)], numbers[: len(first)] = first, case[source["first_labels"]]
    images[source["image_of_255"]] = 255
    for name, header, data in (
        (source["images_file"], source["images_header_bytes"], images),
        (source["labels_file"], source["labels_header_bytes"], numbers),
    ):
        with gzip.open(folder / name, "wb", compresslevel=1) as f:
            f.write(bytes(header) + data.tobytes())
    return folder / source["images_file"]


@pytest.mark.parametrize("case", cases("edm", "dataset_tool"))
def test_golden(case, tmp_path):
    if not case.spec["required"]:
        pytest.skip(case.spec["note"])
    expect = case.spec["expect"]
    source, dest = build_source(case, tmp_path), tmp_path / "output" / case.spec["dest"]
    if expect["error"] is not None:
        refuse(source, dest, *case.spec["options"], match="Error: ")
        return
    convert(source, dest, *case.spec["options"])
    files = contents(dest)
    own = list(files) if expect["names_order"] == "zip order" else sorted(files)
    assert own == expect["names"]
    # The reference's text, but for what we add behind the labels.
    text, added = files["dataset.json"].decode(), json.loads(files["dataset.json"])
    assert text.startswith(expect["dataset_json"].removesuffix("}"))
    assert added.pop("labels") == json.loads(expect["dataset_json"])["labels"]
    assert added.keys() <= {"label_kind", "class_names"}
    if expect["zip_compress_types"] is not None:
        with zipfile.ZipFile(dest) as archive:
            assert sorted({i.compress_type for i in archive.infolist()}) == expect["zip_compress_types"]
    for entry in expect["images"]:
        image = Image.open(io.BytesIO(files[entry["name"]]))
        array = np.array(image)
        assert image.mode == entry["mode"]
        assert list(array.shape) == entry["shape"]
        tolerance = case.spec["tolerance"]["images"]
        if tolerance["atol"] == 0:
            assert hashlib.sha256(array.tobytes()).hexdigest() == entry["sha256"]
        np.testing.assert_allclose(array.astype(float), case[entry["array"]].astype(float), **tolerance)


# --- folders, zips, labels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dest", ["a.zip", "folder"])
def test_output_does_not_depend_on_workers(dest, tmp_path):
    results = []
    for workers in (1, 3):
        target = tmp_path / str(workers) / dest
        result = run("--source=digits", f"--dest={target}", f"--workers={workers}", "--max-images=100")
        assert result.exit_code == 0, result.output
        results.append(contents(target) if target.is_dir() else target.read_bytes())
    assert results[0] == results[1]


def test_both_spellings_of_options(tmp_path):
    convert("digits", tmp_path / "a.zip", "--max_images=3", "--resize_filter=box", "--resolution=16,16")
    assert [p.shape for p in pictures(tmp_path / "a.zip")] == [(16, 16)] * 3


def test_existing_zip_is_replaced_and_kept_on_failure(tmp_path):
    dest = tmp_path / "a.zip"
    convert("digits", dest, "--max-images=2")
    before = dest.read_bytes()
    refuse("digits", dest, "--resolution=3x3", match="powers of two", left=["a.zip"])
    assert dest.read_bytes() == before
    convert("digits", dest, "--max-images=3")
    assert len(pictures(dest)) == 3


def test_folder_destination_must_be_empty(tmp_path):
    (tmp_path / "out").mkdir()
    convert("digits", tmp_path / "out", "--max-images=2")
    refuse("digits", tmp_path / "out", match="not empty", left=["out"])


def test_label_choices(tmp_path):
    files = {"b/1.png": pixels(), "a/2.png": pixels(), "3.png": pixels()}
    folder, archive = write(tmp_path / "in", files), write_zip(tmp_path / "in.zip", files)
    dest = tmp_path / "out.zip"
    for source, choice, expected in (
        (folder, "auto", [0, 1, 2]), (folder, "none", None),
        (archive, "auto", None), (archive, "folders", [0, 1, 2]),
    ):  # fmt: skip
        convert(source, dest, f"--labels={choice}")
        assert labels(dest) == expected, (source, choice)


def test_labels_that_need_no_inference(tmp_path):
    root = write(tmp_path / "in", {"a/1.png": pixels(), "b/2.png": pixels()})
    (root / "dataset.json").write_text(json.dumps({"labels": [["a\\1.png", 4], ["b/2.png", 2], ["gone.png", 9]]}))
    convert(root, tmp_path / "o.zip")
    assert labels(tmp_path / "o.zip") == [4, 2]
    convert(root, tmp_path / "o.zip", "--labels=folders")
    assert labels(tmp_path / "o.zip") == [0, 1]
    (root / "dataset.json").write_text('{"labels": 3}')
    refuse(root, tmp_path / "x" / "o.zip", match="dataset.json")


def test_linked_folders_are_read_once(tmp_path):
    root = write(tmp_path / "in", {"a/1.png": pixels()})
    write(tmp_path / "other", {"2.png": pixels()})
    (root / "b").symlink_to(tmp_path / "other", target_is_directory=True)
    (root / "a" / "loop").symlink_to(root, target_is_directory=True)
    convert(root, tmp_path / "o.zip")
    assert labels(tmp_path / "o.zip") == [0, 1]


# --- strange images ---------------------------------------------------------------------------------------------------


def test_modes_are_converted(tmp_path):
    gray = pixels(channels=1)
    deep = RANDOM.randint(0, 65536, (8, 8)).astype(np.uint16)
    bits = (gray > 99).astype(np.uint8)
    ink = pixels(channels=4)
    palette = np.stack([gray, 255 - gray, gray // 2], -1)
    for name, data, mode, expected in (
        ("deep.png", deep, "I;16", np.rint(deep / 257)),
        ("palette.png", gray, "P", palette),
        ("ink.tif", ink, "CMYK", np.array(Image.frombytes("CMYK", (8, 8), ink.tobytes()).convert("RGB"))),
        ("bits.png", None, None, bits * 255),
    ):
        file = io.BytesIO()
        Image.fromarray(bits.astype(bool)).save(file, "PNG")
        root = write(tmp_path / name, {name: file.getvalue() if data is None else png(data, mode)})
        convert(root, tmp_path / f"{name}.zip")
        np.testing.assert_array_equal(pictures(tmp_path / f"{name}.zip")[0], expected, err_msg=name)


def test_transparency(tmp_path):
    rgba = pixels(channels=4)
    rgba[:4, :, 3], rgba[4:, :, 3] = 0, 255
    root = write(tmp_path / "in", {"a.png": png(rgba, "RGBA")})
    for options in ((), ("--transform=center-crop", "--resolution=8x8")):
        refuse(root, tmp_path / "x/o.zip", *options, match="in/a.png: the image has transparency")
    for colour, value in (("white", 255), ("black", 0)):
        convert(root, tmp_path / "o.zip", f"--background={colour}")
        own = pictures(tmp_path / "o.zip")[0]
        assert (own[:4] == value).all()
        np.testing.assert_array_equal(own[4:], rgba[4:, :, :3])


def test_colour_profiles_are_not_copied(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    Image.fromarray(pixels()).save(root / "a.png", icc_profile=b"profile" * 50)
    convert(root, tmp_path / "o.zip")
    assert "icc_profile" not in Image.open(io.BytesIO(contents(tmp_path / "o.zip")["00000/img00000000.png"])).info


def test_bad_images_are_named_or_skipped(tmp_path):
    good = pixels()
    files = {
        "0wide.png": pixels(8, width=16), "1empty.png": b"", "2good.png": good, "3large.png": pixels(16),
        "4text.jpg": b"no image", "5gray.png": pixels(channels=1), "6cut.png": png(pixels())[:-60], "7good.png": good,
    }  # fmt: skip
    root = write(tmp_path / "in", files)
    output = convert(root, tmp_path / "o.zip", "--skip-broken")
    assert list(contents(tmp_path / "o.zip"))[:-1] == ["00000/img00000002.png", "00000/img00000007.png"]
    assert "6 were skipped" in output
    for name in files:
        if "good" not in name:
            one = write(tmp_path / f"only{name}", {"0.png": good, name: files[name]})
            refuse(one, tmp_path / "x/o.zip", match=name)
            assert output.count(f"Skipped {root / name}") == 1
    (root / "2good.png").unlink()
    (root / "7good.png").unlink()
    (root / "3large.png").unlink()
    (root / "5gray.png").unlink()
    refuse(root, tmp_path / "x/o.zip", "--skip-broken", match="none of the 4 images")


def test_bombs(tmp_path, monkeypatch):
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 100)
    root = write(tmp_path / "in", {"a.png": pixels(16)})
    refuse(root, tmp_path / "x/o.zip", match="16x16 pixels")
    monkeypatch.undo()
    monkeypatch.setattr(archive_module, "MAX_FILE_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(10**6))
    refuse(tmp_path / "in.zip", tmp_path / "x/o.zip", match="unpacks to 1000000 bytes")


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "x/../../a.png", "..\\a.png", "C:/a.png"])
def test_names_that_leave_the_archive(name, tmp_path):
    archive = write_zip(tmp_path / "in.zip", {"b.png": pixels(), name: pixels()})
    refuse(archive, tmp_path / "x/o.zip", match="leaves the archive")


def test_postscript_is_not_run(tmp_path):
    root = write(tmp_path / "in", {"a.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"})
    refuse(root, tmp_path / "x/o.zip", match="unknown or damaged")


# --- options and the disk ---------------------------------------------------------------------------------------------


def test_bad_arguments(tmp_path):
    folder = write(tmp_path / "in", {"a.png": pixels()})
    other = tmp_path / "archive.rar"
    other.write_bytes(b"x")
    empty = tmp_path / "empty"
    empty.mkdir()
    dest = tmp_path / "x" / "o.zip"
    for source, target, options, match in (
        (folder, "", (), "--dest is empty"),
        (folder, folder, (), "both"),
        ("", dest, (), "missing input"),
        (other, dest, (), "unknown archive type"),
        (empty, dest, (), "holds no images"),
        (folder, other, (), "does not end in .zip"),
        (folder, dest, ("--transform=center-crop",), "--resolution"),
        (folder, dest, ("--resolution=0x8",), "not a size"),
        (folder, dest, ("--resolution=8x16", "--transform=center-crop-wide"), "higher than wide"),
        (folder, dest, ("--resolution=8x16", "--transform=center-crop-adm"), "squares"),
        (folder, dest, ("--resolution=8x8", "--transform=center-crop-adm", "--resize-filter=box"), "fixed filters"),
        (folder, dest, ("--max-images=0",), "--max-images"),
    ):
        result = run(f"--source={source}", f"--dest={target}", *options)
        assert result.exit_code in (1, 2), (options, result.output)
        assert match in result.output.replace("\n", " "), result.output
        assert not dest.exists()
    (tmp_path / "in.zip").write_bytes(write_zip(tmp_path / "b.zip", {"a.png": pixels()}).read_bytes()[:-30])
    refuse(tmp_path / "in.zip", dest, match="not a complete zip")


@pytest.mark.parametrize("dest", ["o.zip", "out"])
def test_full_disk_leaves_nothing(dest, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(StoredZip, "add", full)
    monkeypatch.setattr(Path, "write_bytes", full)
    refuse("digits", tmp_path / "x" / dest, match="cannot write (No space left on device)")


def test_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(writer_module, "_check_shape", interrupt)
    run("--source=digits", f"--dest={tmp_path / 'o.zip'}")
    run("--source=digits", f"--dest={tmp_path / 'out'}")
    assert list(tmp_path.iterdir()) == []


def test_starts_without_torch(tmp_path):
    """Neither the help nor a conversion pays for what only training needs."""
    write(tmp_path / "in", {"a.png": pixels()})
    heavy = ["torch", "scipy", "sklearn", "lmdb", "matplotlib"]
    for options in (["--help"], [f"--source={tmp_path / 'in'}", f"--dest={tmp_path / 'o.zip'}"]):
        code = (
            "import sys, dataset_tool\n"
            f"try: dataset_tool.main({options!r})\n"
            f"finally: print('HEAVY', [name for name in {heavy!r} if name in sys.modules])"
        )
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert "HEAVY []" in result.stdout, result.stdout + result.stderr


def test_help_teaches():
    result = run("--help")
    assert result.exit_code == 0
    for layout in LAYOUTS:
        assert f"  {layout} " in result.output
    assert "[default: lanczos]" in " ".join(result.output.split())
