"""Array files of numpy (.npy, .npz) that strangers wrote: nothing in them is run, and what is wrong is one sentence."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import IO, Any

import numpy as np

Array = np.ndarray[Any, Any]


@contextmanager
def opened_arrays(path: str | PathLike[str], what: str, file: IO[bytes] | None = None) -> Iterator[Mapping[str, Array]]:
    """The arrays of an npz by name, each read when it is asked for; the one of an .npy file is called "".

    Args:
        what: the kind of file that is expected, for the message: "a trajectory file".
        file: the content, where `path` only says where it is from.

    Raises:
        ValueError: neither of these files, a damaged one, or one without an array that the block asks for.
        OSError: a file that cannot be read.
    """
    try:
        loaded = np.load(path if file is None else file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            yield {"": loaded}
        else:
            with loaded:
                yield _Members(loaded)
    except (ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        # RuntimeError: what zipfile says of members that are encrypted or packed in a way that it does not know
        raise ValueError(f"{path} is not {what}: {error}") from error


class _Members(Mapping[str, Array]):
    """The arrays of an npz, without the bytes that numpy gives for a member that is none."""

    def __init__(self, file: np.lib.npyio.NpzFile) -> None:
        self._file = file

    def __getitem__(self, name: str) -> Array:
        value = self._file[name]
        if not isinstance(value, np.ndarray):
            raise ValueError(f"its member '{name}' is no array")
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._file.files  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.files)

    def __len__(self) -> int:
        return len(self._file.files)


def read_array(path: str | PathLike[str], what: str, file: IO[bytes] | None = None) -> Array:
    """The array of an .npy file; arguments and errors as of `opened_arrays`."""
    with opened_arrays(path, what, file) as arrays:
        return arrays[""]


def read_floats(path: str | PathLike[str], what: str, kinds: str = "f") -> Array:
    """The array of an .npy file as float64; a ValueError where its numbers are of none of these `kinds` of numpy."""
    array = read_array(path, what)
    if array.dtype.kind not in kinds:
        raise ValueError(f"{path} is not {what}: it holds {array.dtype}")
    return array.astype(np.float64)


def holds(path: str | PathLike[str], *arrays: str) -> bool:
    """Whether it is an npz with all of these arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {f"{name}.npy" for name in arrays} <= set(archive.namelist())
    except (zipfile.BadZipFile, IsADirectoryError):
        return False
