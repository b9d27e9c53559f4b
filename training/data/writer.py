"""Convert a source to the data set format of EDM: numbered PNG files and `dataset.json`, in a zip or a folder.

Images are read, converted and encoded by a pool of threads (decoding and resizing release the interpreter lock) and
written in source order by the caller, so the output does not depend on the number of workers, byte for byte: fixed time
stamps, no compression. The output appears whole or not at all.

Format: `{index // 1000:05d}/img{index:08d}.png` and `{"labels": [[name, label], ...]}`, or null unless all have labels,
with what `training/data/labels.py` describes beside it.
"""

from __future__ import annotations

import io
import json
import os
import sys
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from torch_utils.files import atomic_write
from torch_utils.temporaries import temporary_beside
from training.data.decode import TURNS, decode_image
from training.data.originals import Source
from training.data.transforms import Transform, to_gray_or_rgb

__all__ = ["Summary", "check_destination", "convert"]

Put = Callable[[str, bytes], None]


@dataclass
class Summary:
    """What a conversion did.

    Attributes:
        written, dropped, skipped: images; dropped are too small for the transform, skipped are broken.
        turned: read images with an EXIF orientation other than upright.
        unlabelled: written images that lack a label while others have one; first_unlabelled: the first of them.
        labelled: whether labels were written.
        shape: width, height, channels.
    """

    written: int = 0
    dropped: int = 0
    skipped: int = 0
    turned: int = 0
    unlabelled: int = 0
    first_unlabelled: str = ""
    labelled: bool = False
    shape: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class _Encoded:
    shape: tuple[int, int, int]
    png: bytes
    turned: bool


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
    notify: Callable[[str], None] = tqdm.write,
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
        notify: prints a notice.

    Raises:
        ValueError: an image that cannot be used (named), or none left.
        OSError: the output cannot be written; nothing of it is left.
    """
    count = min(source.size, max_images or source.size)
    summary = Summary()
    entries: list[list[Any]] = []

    def prepare(index: int) -> _Encoded | None:
        image, turn = _load(source, index, background)
        image = transform(image.transpose(turn) if turn is not None and exif == "apply" else image)
        return None if image is None else _encode(image, turn is not None)

    def skip(index: int, error: Exception, allowed: bool) -> None:
        if not allowed:
            raise ValueError(f"{source.name(index)}: {error} (--skip-broken goes on without such images)") from error
        summary.skipped += 1
        notify(f"Skipped {source.name(index)}: {error}")

    pause = 0.2 if sys.stderr.isatty() else 10  # seconds between progress lines; log files stay short
    bar = tqdm(total=count, unit="img", dynamic_ncols=True, desc=dest.name, mininterval=pause)
    with _sink(dest) as put, bar as progress, closing(_ordered(prepare, range(count), workers)) as results:
        for index, future in results:
            progress.update()
            try:
                encoded = future.result()
            except (ValueError, OSError) as error:
                skip(index, error, skip_broken or source.skip_broken)
                continue
            if encoded is None:
                summary.dropped += 1
                continue
            try:
                _check_shape(encoded.shape, summary.shape if summary.written else None, any_size)
            except ValueError as error:
                skip(index, error, skip_broken)
                continue
            digits = f"{index:08d}"
            name = f"{digits[:5]}/img{digits}.png"
            put(name, encoded.png)
            summary.shape = encoded.shape
            summary.written += 1
            summary.turned += encoded.turned
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


def _load(source: Source, index: int, background: str | None) -> tuple[Image.Image, Image.Transpose | None]:
    """An image in mode L or RGB, and how EXIF asks to turn it."""
    data = source.read(index)
    decoded = decode_image(data) if isinstance(data, bytes) else Image.fromarray(data)
    image = to_gray_or_rgb(decoded, background)
    return image.convert("RGB") if source.force_rgb else image, TURNS.get(decoded.info.get("orientation"))


def _encode(image: Image.Image, turned: bool) -> _Encoded:
    pixels = np.asarray(image)  # a fresh image: the old one may carry a colour profile that PNG would store
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=0, optimize=False)
    return _Encoded((image.width, image.height, len(image.getbands())), file.getvalue(), turned)


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
    function: Callable[[int], Any], indices: Iterable[int], workers: int
) -> Iterator[tuple[int, Future[_Encoded | None]]]:
    """Finished futures of `function(index)` in order, computed by `workers` threads a bounded distance ahead."""
    pool = ThreadPoolExecutor(workers)
    pending: deque[tuple[int, Future[Any]]] = deque()
    try:
        for index in indices:
            pending.append((index, pool.submit(function, index)))
            if len(pending) > 8 * workers:
                wait([pending[0][1]])
                yield pending.popleft()
        while pending:
            wait([pending[0][1]])
            yield pending.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _sink(dest: Path) -> Iterator[Put]:
    """`put(name, data)` adds a file; everything appears at `dest` when the block ends, nothing if it raises."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    with (_zip_sink if _is_zip(dest) else _folder_sink)(dest) as put:
        yield put


@contextmanager
def _zip_sink(dest: Path) -> Iterator[Put]:
    with atomic_write(dest) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

        def put(name: str, data: bytes) -> None:
            info = zipfile.ZipInfo(name)  # its default date is the first of the format, whenever we run
            info.create_system, info.external_attr = 3, 0o644 << 16  # the same on every platform
            archive.writestr(info, data)

        yield put


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
