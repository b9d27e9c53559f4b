"""Files of a folder or a zip by relative name.

Both sides of a data set use this: `dataset_tool.py` reads archives in the wild with it, `training/data/batches.py` the
finished data set. Nothing is ever extracted. Archives whose names leave their root and members of absurd size are
refused; what operating systems and tools leave beside images is passed over.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from training.data.decode import is_image_name

MAX_FILE_BYTES = 1 << 28  # of one file, unpacked; 8192 x 8192 RGB pixels fit
# Resource forks, thumbnails, copies and settings that macOS, Windows, network drives and notebooks leave behind.
_LITTER = {
    "__macosx", ".ds_store", ".appledouble", ".trashes", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin",
    "@eadir", ".thumbnails", ".ipynb_checkpoints",
}  # fmt: skip

_BEGINNING = 1 << 16  # bytes of a file in a folder that its checksum covers


class ImageArchive:
    """A folder or a zip file, read from several threads.

    Attributes:
        names: relative names of all files with `/`, sorted as strings; in archives of Windows tools they have `\\`.
        image_names: those of images.
        repeated: images of a zip that a later one of the same name hides.
        root: the deepest folder that holds all images, "" where there is none.

    Raises:
        OSError: `path` is neither a folder nor a zip file, or cannot be read.
        ValueError: the zip is damaged or holds names that leave its root, or two files of one name.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._zip: zipfile.ZipFile | None = None
        self._open()
        stored = _walk(self.path) if self._zip is None else _inside(self._zip)
        self._stored = _by_name(stored, self.path)
        self.names = sorted(self._stored)
        self.image_names = [name for name in self.names if is_image_name(name)]
        self.repeated = sum(is_image_name(name) for name in stored) - sum(map(is_image_name, set(stored)))
        ends = [posixpath.dirname(name) for name in self.image_names[:1] + self.image_names[-1:]]  # of sorted names
        self.root = posixpath.commonpath(ends) if ends else ""

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def _open(self) -> None:
        if self.path.is_dir():
            return
        if not self.path.exists():
            named = str(self.path).partition(":")[0] in ("toy", "series", "shapes")
            raise FileNotFoundError(
                f"{self.path} {'is no data set of images' if named else 'does not exist'}: give a folder or a zip file"
            )
        if self.path.suffix.lower() != ".zip":
            shapes = " nor, as shapes are, a .npz file with `parts`" if self.path.suffix == ".npz" else ""
            raise OSError(f"{self.path} is neither a folder nor a .zip file{shapes}")
        try:
            self._zip = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise ValueError(f"{self.path} is not a complete zip file ({error}): copy or download it again") from error

    def read(self, name: str) -> bytes:
        """The bytes of one file.

        Raises:
            OSError, ValueError: missing, damaged, encrypted or too large.
        """
        try:
            if self._zip is None:
                path = self.path / self._stored[name]
                _check_size(path.stat().st_size)
                return path.read_bytes()
            info = self._zip.getinfo(self._stored[name])
            _check_size(info.file_size)
            return self._zip.read(info)
        except KeyError:
            raise ValueError(f"{self.path} holds no file {name}") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise ValueError(f"damaged or encrypted inside of the zip file ({error})") from error

    def fingerprint(self, names: list[str]) -> str:
        """SHA-256 over names, sizes and checksums, so that a copy elsewhere has the same and a replaced file another.

        Checksums are those of the zip's directory; of the beginnings of files in a folder.
        """
        if self._zip is None:
            with ThreadPoolExecutor(8) as pool:
                facts = list(pool.map(self._size_and_checksum, names, chunksize=64))
        else:
            infos = [self._zip.getinfo(self._stored[name]) for name in names]
            facts = [(info.file_size, info.CRC) for info in infos]
        digest = hashlib.sha256()
        for name, fact in zip(names, facts, strict=True):
            digest.update(repr((name, *fact)).encode())
        return digest.hexdigest()

    def _size_and_checksum(self, name: str) -> tuple[int, int]:
        with open(self.path / self._stored[name], "rb") as file:
            return os.fstat(file.fileno()).st_size, zlib.crc32(file.read(_BEGINNING))

    def close(self) -> None:
        if self._zip is not None:
            self._zip.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None}  # an open file does not travel to another process

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def _walk(root: Path) -> list[str]:
    """Relative names of all files below `root`; links to folders are followed, each folder once."""
    names: list[str] = []
    seen = {os.path.realpath(root)}

    def fail(error: OSError) -> None:
        raise error

    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=fail):
        real = {s: os.path.realpath(os.path.join(folder, s)) for s in sorted(subfolders)}
        subfolders.clear()
        for name, target in real.items():
            if target not in seen:
                seen.add(target)
                subfolders.append(name)
        prefix = Path(folder).relative_to(root).as_posix()
        names += [file if prefix == "." else f"{prefix}/{file}" for file in files]
    return names


def _inside(archive: zipfile.ZipFile) -> list[str]:
    names = archive.namelist()
    for name in names:
        parts = name.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or re.match("[A-Za-z]:", name):
            raise ValueError(
                f"{archive.filename} holds {name!a}, a name that leaves the archive: do not trust this file"
            )
    return names


def _by_name(stored: Iterable[str], archive: Path) -> dict[str, str]:
    """Name with `/` -> the name that the archive knows, without folders and litter."""
    found: dict[str, str] = {}
    for raw in stored:
        name = raw.replace("\\", "/")
        parts = name.split("/")
        if parts[-1] == "" or any(part.startswith("._") or part.lower() in _LITTER for part in parts):
            continue
        if found.setdefault(name, raw) != raw:
            raise ValueError(f"{archive} holds {found[name]!a} and {raw!a}, which are one name: rename one of them")
    return found


def _check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise ValueError(f"the file unpacks to {size} bytes, more than the {MAX_FILE_BYTES} allowed")
