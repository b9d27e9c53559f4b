"""Files of a folder or a zip by relative name, and the decoding of image files that strangers wrote.

Both sides of a data set use this: `dataset_tool.py` reads archives in the wild with it, `training/data/batches.py` the
finished data set. Nothing is ever extracted. Archives whose names leave their root, members and pictures of absurd
size and formats whose decoders start other programs are refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

__all__ = ["MAX_FILE_BYTES", "MAX_PIXELS", "ImageArchive", "decode_image", "is_image_name"]

MAX_FILE_BYTES = 1 << 28  # of one file, unpacked; 8192 x 8192 RGB pixels fit
MAX_PIXELS = 1 << 26  # of one image
_RUNS_PROGRAMS = {"EPS", "WMF"}  # PIL hands these to Ghostscript or to the Windows renderer


@cache
def _pil() -> tuple[frozenset[str], tuple[str, ...]]:
    """Extensions PIL knows, and the formats that may be decoded. Loading all plugins takes a moment, hence lazy."""
    Image.init()
    return frozenset(Image.registered_extensions()), tuple(f for f in Image.ID if f not in _RUNS_PROGRAMS)


def is_image_name(name: str) -> bool:
    """Whether PIL knows the extension, in any case."""
    return os.path.splitext(name)[1].lower() in _pil()[0]


def decode_image(data: bytes) -> Image.Image:
    """The decoded first frame of an image file, in whatever mode it is stored.

    Raises:
        ValueError: damaged or truncated data, an unknown format, more than `MAX_PIXELS` pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_pil()[1]) as image:
            size = image.size
            if size[0] * size[1] <= MAX_PIXELS:
                image.load()
                return image
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly every type there is on damaged data
        reason = "its format is unknown or damaged" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise ValueError(f"not a readable image ({' '.join(reason.split()) or type(error).__name__})") from error
    raise ValueError(f"the image has {size[0]}x{size[1]} pixels, more than the {MAX_PIXELS} allowed")


class ImageArchive:
    """A folder or a zip file, read from several threads.

    Attributes:
        names: relative names of all files with `/`, sorted as strings.
        image_names: those of images.

    Raises:
        OSError: `path` is neither a folder nor a zip file, or cannot be read.
        ValueError: the zip is damaged or holds names that leave its root.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._zip: zipfile.ZipFile | None = None
        self._open()
        if self._zip is not None:
            names = [info.filename for info in self._zip.infolist() if not info.is_dir()]
            for name in names:
                _check_name(name, self.path)
        else:
            names = _walk(self.path)
        self.names = sorted(names)
        self.image_names = [name for name in self.names if is_image_name(name)]

    def _open(self) -> None:
        if self.path.is_dir():
            return
        if not self.path.exists():
            raise FileNotFoundError(f"{self.path} does not exist: give a folder or a zip file")
        if self.path.suffix.lower() != ".zip":
            raise OSError(f"{self.path} is neither a folder nor a .zip file")
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
                path = self.path / name
                _check_size(path.stat().st_size)
                return path.read_bytes()
            info = self._zip.getinfo(name)
            _check_size(info.file_size)
            return self._zip.read(info)
        except KeyError:
            raise ValueError(f"{self.path} holds no file {name}") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise ValueError(f"damaged or encrypted inside of the zip file ({error})") from error

    def labels(self) -> dict[str, Any] | None:
        """Name -> label of `dataset.json` at the root; None without that file or with `"labels": null`.

        Raises:
            ValueError: the file is not `{"labels": [[name, label], ...] or null}`.
        """
        if "dataset.json" not in self.names:
            return None
        try:
            entries = json.loads(self.read("dataset.json"))["labels"]
            return None if entries is None else {str(name).replace("\\", "/"): label for name, label in entries}
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(
                f'dataset.json in {self.path} must be {{"labels": [[file name, label], ...]}} or {{"labels": null}}'
            ) from error

    def fingerprint(self, names: list[str]) -> str:
        """SHA-256 over names and sizes with, in a zip, the checksums and, in a folder, the times of change."""
        digest = hashlib.sha256()
        for name in names:
            if self._zip is None:
                status = (self.path / name).stat()
                digest.update(repr((name, status.st_size, status.st_mtime_ns)).encode())
            else:
                info = self._zip.getinfo(name)
                digest.update(repr((name, info.file_size, info.CRC)).encode())
        return digest.hexdigest()

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


def _check_name(name: str, archive: Path) -> None:
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or parts[0] == "" or ":" in parts[0]:
        raise ValueError(f"{archive} holds {name!a}, a name that leaves the archive: do not trust this file")


def _check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise ValueError(f"the file unpacks to {size} bytes, more than the {MAX_FILE_BYTES} allowed")
