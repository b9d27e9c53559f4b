"""Small image files, archives and conversions that the tests of data sets share."""

import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from PIL import Image

import dataset_tool

RANDOM = np.random.RandomState(0)


def run(*args):
    return CliRunner().invoke(dataset_tool.main, [str(a) for a in args])


def convert(source, dest, *args):
    result = run(f"--source={source}", f"--dest={dest}", "--workers=2", *args)
    assert result.exit_code == 0, result.output
    return result.output


def refuse(source, dest, *args, match, left=()):
    """The conversion fails with one sentence that holds `match`, and nothing is left in the folder of `dest`."""
    result = run(f"--source={source}", f"--dest={dest}", "--workers=2", *args)
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit), result.exception
    assert match in result.output.replace("\n", " "), result.output
    assert "Traceback" not in result.output
    if dest and Path(dest).parent.exists():
        assert sorted(p.name for p in Path(dest).parent.iterdir()) == sorted(left)


def contents(dest):
    """Name -> bytes of a data set, in stored order for a zip."""
    if dest.is_dir():
        return {p.relative_to(dest).as_posix(): p.read_bytes() for p in sorted(dest.rglob("*")) if p.is_file()}
    with zipfile.ZipFile(dest) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pictures(dest):
    return [np.array(Image.open(io.BytesIO(data))) for name, data in contents(dest).items() if name.endswith(".png")]


def labels(dest):
    entries = json.loads(contents(dest)["dataset.json"])["labels"]
    return entries and [label for _, label in entries]


def pixels(size=8, channels=3, width=None):
    return RANDOM.randint(0, 256, [size, width or size, *([channels] if channels > 1 else [])], dtype=np.uint8)


def class_folders(root, num):
    """Colour pictures of 16 pixels, by turns in the folders a and b."""
    random = np.random.RandomState(0)
    for i in range(num):
        path = root / f"{'ab'[i % 2]}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.randint(0, 256, (16, 16, 3), np.uint8)).save(path)


def png(array, mode=None):
    file = io.BytesIO()
    array = np.ascontiguousarray(array)
    image = Image.fromarray(array) if mode is None else Image.frombytes(mode, array.shape[1::-1], array.tobytes())
    if mode == "P":
        image.putpalette([v for i in range(256) for v in (i, 255 - i, i // 2)])
    image.save(file, "TIFF" if mode == "CMYK" else "PNG")
    return file.getvalue()


def write(root, files):
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else png(data))
    return root


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data if isinstance(data, bytes) else png(data))
    return path


def cifar_archive(path, rows, targets, *, members, per_member, other_value, other_label, row_of_255, make=pickle.dumps):
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for k, member in enumerate(members):
            data = np.full((per_member, 3072), other_value, dtype=np.uint8)
            numbers = [other_label] * per_member
            if k == 0:
                data[: len(rows)], numbers[: len(rows)] = rows, [int(t) for t in targets]
                data[row_of_255] = 255
            raw = make({"data": data, "labels": numbers})
            info = tarfile.TarInfo(member)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return path


def write_dataset(path, files, labels="absent"):
    """A data set of files (arrays become PNG) with `dataset.json`: a zip, or a folder if the name has no .zip."""
    files = dict(files) | ({} if labels == "absent" else {"dataset.json": json.dumps({"labels": labels}).encode()})
    return write_zip(path, files) if path.suffix == ".zip" else write(path, files)


def write_ten(path):
    """Ten images of four classes."""
    files = {f"00000/img{i:08d}.png": pixels(4) for i in range(10)}
    return write_dataset(path, files, [[name, i % 4] for i, name in enumerate(files)])
