"""Convert a source to the data set format of EDM: numbered PNG files and `dataset.json`, in a zip or a folder.

Images are read, converted and encoded by a pool of threads, a chunk at a time (decoding and resizing release the
interpreter lock, handing over costs more than a small image), and written in source order by the caller. So the output
does not depend on the number of workers, byte for byte: fixed time stamps, no compression. It appears whole or not at
all.

Format: `{index // 1000:05d}/img{index:08d}.png` and `{"labels": [[name, label], ...]}`, or null unless all have labels,
with what `training/data/labels.py` describes beside it.
"""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from torch_utils.files import atomic_write, check_target
from torch_utils.temporaries import temporary_beside
from training.data.decode import TURNS, decode_image
from training.data.originals import Source
from training.data.png import encode_png
from training.data.stored_zip import StoredZip
from training.data.transforms import Transform, keep, to_gray_or_rgb

Put = Callable[[str, bytes], None]

MOST_PER_CHUNK, CHUNK_BYTES = 64, 1 << 20  # images that a thread makes before it hands them over


@dataclass
class Summary:
    """What a conversion did.

    Attributes:
        written, dropped, skipped: images; dropped are too small for the transform, skipped are broken.
        turned: read images with an EXIF orientation other than upright.
        several: written images whose files hold more frames than the one that was taken.
        unlabelled: written images that lack a label while others have one; first_unlabelled: the first of them.
        labelled: whether labels were written.
        shape: width, height, channels.
    """

    written: int = 0
    dropped: int = 0
    skipped: int = 0
    turned: int = 0
    several: int = 0
    unlabelled: int = 0
    first_unlabelled: str = ""
    labelled: bool = False
    shape: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class _Encoded:
    shape: tuple[int, int, int]
    png: bytes
    turned: bool
    several: bool

    @classmethod
    def of(cls, pixels: np.ndarray, turned: bool = False, several: bool = False) -> _Encoded:
        height, width = pixels.shape[:2]
        return cls((width, height, 3 if pixels.ndim == 3 else 1), encode_png(pixels), turned, several)


def check_destination(dest: str, source: str) -> Path:
    """The path to write to.

    Raises:
        ValueError: empty, the source itself, a folder that holds something, or a path of the wrong kind.
    """
    if not dest:
        raise ValueError("--dest is empty: give a folder or a file ending in .zip")
    path = Path(dest)
    if path.exists() and Path(source).exists() and path.samefile(source):
        raise ValueError(f"--dest and --source are both {dest}: write to another file")
    if _is_zip(path):
        if path.is_dir():
            raise ValueError(f"{dest} is a folder: give a file name ending in .zip, or a folder name without .zip")
        check_target(path)
    elif path.exists() and not path.is_dir():
        raise ValueError(f"{dest} is a file that does not end in .zip: give a folder or a file ending in .zip")
    elif path.is_dir() and any(path.iterdir()):
        raise ValueError(f"the folder {dest} is not empty: remove its content or choose another --dest")
    return path


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip"


def convert(
    source: Source,
    dest: Path,
    transform: Transform,
    *,
    background: str | None = None,
    exif: str = "ignore",
    max_images: int | None = None,
    skip_broken: bool = False,
    any_size: bool = False,
    workers: int = 1,
) -> Summary:
    """Write the data set; see the module's description.

    Args:
        source: where the images come from.
        dest: file ending in .zip (replaced if it exists), or an empty or absent folder.
        transform: from gray or RGB to the image to store, or None to leave it out.
        background: colour behind transparent images; None refuses them.
        exif: "apply" turns images as their EXIF orientation asks, "ignore" takes them as stored.
        max_images: read at most this many entries.
        skip_broken: leave out images that cannot be used, with a notice, instead of ending.
        any_size: accept sizes that are no power of two.
        workers: threads.

    Raises:
        ValueError: an image that cannot be used (named), or none left.
        OSError: the output cannot be written; nothing of it is left.
    """
    count = min(source.size, max_images or source.size)
    summary = Summary()
    entries: list[list[Any]] = []

    def prepare(index: int) -> _Encoded | None:
        data = source.read(index)
        if isinstance(data, np.ndarray) and transform is keep:
            return _Encoded.of(data)
        image, info = _gray_or_rgb(data, background)
        turn = TURNS.get(info.get("orientation"))
        image = image.convert("RGB") if source.force_rgb else image
        image = transform(image.transpose(turn) if turn is not None and exif == "apply" else image)
        return None if image is None else _Encoded.of(np.asarray(image), turn is not None, info.get("several", False))

    def skip(index: int, error: Exception, allowed: bool) -> None:
        if not allowed:
            raise ValueError(f"{source.name(index)}: {error} (--skip-broken goes on without such images)") from error
        summary.skipped += 1
        tqdm.write(f"Skipped {source.name(index)}: {error}")

    pause = 0.2 if sys.stderr.isatty() else 10  # seconds between progress lines; log files stay short
    bar = tqdm(total=count, unit="img", dynamic_ncols=True, desc=dest.name, mininterval=pause)
    one_each = threadpool_limits(1, user_api="blas")  # the threads of the pool are enough
    with one_each, _sink(dest) as put, bar as progress, closing(_ordered(prepare, count, workers)) as results:
        for index, encoded in enumerate(results):
            progress.update()
            if isinstance(encoded, Exception):
                skip(index, encoded, skip_broken or source.skip_broken)
                continue
            if encoded is None:
                summary.dropped += 1
                continue
            try:
                _check_shape(encoded.shape, summary.shape if summary.written else None, any_size)
            except ValueError as error:
                skip(index, error, skip_broken)
                continue
            name = f"{index // 1000:05d}/img{index:08d}.png"
            put(name, encoded.png)
            summary.shape = encoded.shape
            summary.written += 1
            summary.turned += encoded.turned
            summary.several += encoded.several
            if source.labels is not None and source.labels[index] is not None:
                entries.append([name, source.labels[index]])
            elif source.labels is not None:
                summary.unlabelled += 1
                summary.first_unlabelled = summary.first_unlabelled or source.name(index)
        if summary.written == 0:
            raise ValueError(f"none of the {count} images could be used: nothing was written")
        summary.labelled = len(entries) == summary.written
        content = {"labels": entries} | _about(source) if summary.labelled else {"labels": None}
        put("dataset.json", json.dumps(content).encode())
    return summary


def _about(source: Source) -> dict[str, Any]:
    about = {"label_kind": source.label_kind, "class_names": source.class_names and list(source.class_names)}
    return {key: value for key, value in about.items() if value is not None}


def _gray_or_rgb(data: bytes | np.ndarray, background: str | None) -> tuple[Image.Image, dict[str, Any]]:
    """An image in mode L or RGB, and what its file says beside it."""
    decoded = decode_image(data) if isinstance(data, bytes) else Image.fromarray(data)
    return to_gray_or_rgb(decoded, background), decoded.info


def _check_shape(shape: tuple[int, int, int], first: tuple[int, int, int] | None, any_size: bool) -> None:
    """Shapes are (width, height, channels); `first` is that of the images already written."""
    width, height, channels = shape
    if first is not None and shape != first:
        raise ValueError(
            f"the image is {width}x{height} with {channels} channels, those before are {first[0]}x{first[1]} with "
            f"{first[2]}; --transform=center-crop with --resolution makes images alike"
        )
    if width != height:
        raise ValueError(f"the image is {width}x{height}; images must be square: use --transform and --resolution")
    if width & (width - 1) and not any_size:
        raise ValueError(
            f"the image is {width}x{height}; sizes must be powers of two: use --resolution, or --any-size if the "
            "network you train takes such a size"
        )


def _ordered(
    prepare: Callable[[int], _Encoded | None], count: int, workers: int
) -> Iterator[_Encoded | Exception | None]:
    """`prepare(0)`, `prepare(1)`, ... or the error that it raised, computed by threads a bounded distance ahead."""

    def chunk(start: int, end: int) -> list[_Encoded | Exception | None]:
        return [_or_error(prepare, index) for index in range(start, end)]

    first = chunk(0, min(1, count))
    yield from first
    bytes_each = max((len(made.png) for made in first if isinstance(made, _Encoded)), default=1)  # all have one size
    size = max(1, min(MOST_PER_CHUNK, CHUNK_BYTES // bytes_each))
    starts = iter(range(1, count, size))
    pool = ThreadPoolExecutor(workers)
    try:
        ahead = deque(pool.submit(chunk, start, min(start + size, count)) for start in islice(starts, 2 * workers))
        while ahead:
            done = ahead.popleft().result()
            ahead.extend(pool.submit(chunk, start, min(start + size, count)) for start in islice(starts, 1))
            yield from done
    finally:
        pool.shutdown(cancel_futures=True)


def _or_error(prepare: Callable[[int], _Encoded | None], index: int) -> _Encoded | Exception | None:
    try:
        return prepare(index)
    except (ValueError, OSError) as error:
        return error


@contextmanager
def _sink(dest: Path) -> Iterator[Put]:
    """`put(name, data)` adds a file; everything appears at `dest` when the block ends, nothing if it raises."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    with (_zip_sink if _is_zip(dest) else _folder_sink)(dest) as put:
        yield put


@contextmanager
def _zip_sink(dest: Path) -> Iterator[Put]:
    with atomic_write(dest) as file:
        archive = StoredZip(file)
        yield archive.add
        archive.close()


@contextmanager
def _folder_sink(dest: Path) -> Iterator[Put]:
    dest = dest.resolve()
    try:
        with temporary_beside(dest, folder=True) as temporary:

            def put(name: str, data: bytes) -> None:
                path = temporary / name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(data)

            yield put
            if dest.exists():
                dest.rmdir()  # it is empty, or this refuses
            os.replace(temporary, dest)
    except OSError as error:
        if not error.errno:
            raise
        reason = f"cannot write ({error.strerror}); nothing of it is left"
        raise OSError(error.errno, reason, os.fspath(dest)) from error
